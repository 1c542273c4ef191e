"""Names of tensors in the layout that Stable Diffusion was released in (LDM), and ours, which are those of diffusers folders.

Maps are made from the number of levels and of blocks, and from which levels attend, so that any size is read. Facts: CompVis
stable-diffusion, ldm/modules (names); diffusers, scripts/convert_diffusers_to_original_stable_diffusion.py (which is which);
open_clip, model.py (the text tower of Stable Diffusion 2). Tensors are the same but for two things: LDM's autoencoder attends
with 1x1 convolutions where ours has linear maps, and OpenCLIP keeps queries, keys and values in one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

RESIDUAL = {  # ours -> LDM, inside a residual block of the U-Net
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
PLACE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers' first names -> ours
LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
         "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
STACKED = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Levels:
    """What a U-Net's names depend on."""

    blocks: int  # residual blocks a level on the way down
    attends: tuple[bool, ...]  # by level


def moved(name: str, modules: Mapping[str, str]) -> str | None:
    """A tensor's name after its module (the longest that is known) has been renamed; None where none is."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        if (new := modules.get(".".join(parts[:k]))) is not None:
            return ".".join([new, *parts[k:]])
    return None


def turned(modules: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in modules.items()}


# ---------------------------------------------------------------------------------------------------------------------
# U-Net


def denoiser_modules(levels: Levels) -> dict[str, str]:
    """{our module: LDM's} of a U-Net."""
    count, step = len(levels.attends), levels.blocks + 1
    out = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
        "class_embedding.linear_1": "label_emb.0.0", "class_embedding.linear_2": "label_emb.0.2",
        "mid_block.attentions.0": "middle_block.1", "conv_norm_out": "out.0", "conv_out": "out.2",
    }  # fmt: skip
    residual = {f"mid_block.resnets.{i}": f"middle_block.{2 * i}" for i in range(2)}
    for i in range(count):
        for j in range(levels.blocks):
            residual[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{step * i + j + 1}.0"
            if levels.attends[i]:
                out[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{step * i + j + 1}.1"
        if i < count - 1:
            out[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{step * i + step}.0.op"
        attends = levels.attends[count - 1 - i]
        for j in range(step):
            residual[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{step * i + j}.0"
            if attends:
                out[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{step * i + j}.1"
        if i < count - 1:
            out[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{step * i + step - 1}.{1 + attends}.conv"
    return out | {f"{a}.{ours}": f"{b}.{theirs}" for a, b in residual.items() for ours, theirs in RESIDUAL.items()}


def levels_in_ldm(names: Iterable[str]) -> Levels:
    """From a U-Net's names in LDM's layout; what is missing shows later, as missing tensors."""
    names = set(names)
    downs = sorted(int(found[1]) for n in names if (found := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", n)))
    places = [int(found[1]) for n in names if (found := re.match(r"input_blocks\.(\d+)\.0\.in_layers\.0\.weight", n))]
    blocks = (downs[0] if downs else max(places, default=0) + 1) - 1
    attending = {int(found[1]) for n in names if (found := re.match(r"input_blocks\.(\d+)\.1\.", n))}
    return Levels(max(1, blocks), tuple((blocks + 1) * i + 1 in attending for i in range(len(downs) + 1)))


def levels_in_ours(names: Iterable[str]) -> Levels:
    """From a U-Net's names in ours."""
    names = set(names)
    levels = {int(found[1]) for n in names if (found := re.match(r"down_blocks\.(\d+)\.", n))}
    blocks = {found[1] for n in names if (found := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", n))}
    attending = {int(found[1]) for n in names if (found := re.match(r"down_blocks\.(\d+)\.attentions\.", n))}
    return Levels(max(1, len(blocks)), tuple(i in attending for i in range(max(levels, default=0) + 1)))


# ---------------------------------------------------------------------------------------------------------------------
# Autoencoder


def autoencoder_modules(levels: int, blocks: int) -> dict[str, str]:
    """{our module: LDM's} of a KL autoencoder. blocks: of the encoder, a level; the decoder has one more."""
    out = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side, way, size, more in (("encoder", "down", "downsample", 0), ("decoder", "up", "upsample", 1)):
        out |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        out[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        residual = {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in range(2)}
        for ours, theirs in PLACE_ATTENTION.items():
            out[f"{side}.mid_block.attentions.0.{ours}"] = f"{side}.mid.attn_1.{theirs}"
        for i in range(levels):
            there = i if side == "encoder" else levels - 1 - i  # LDM counts both from the picture
            for j in range(blocks + more):
                residual[f"{side}.{way}_blocks.{i}.resnets.{j}"] = f"{side}.{way}.{there}.block.{j}"
            if i < levels - 1:
                out[f"{side}.{way}_blocks.{i}.{size}rs.0.conv"] = f"{side}.{way}.{there}.{size}.conv"
        for a, b in residual.items():
            out |= {f"{a}.{name}": f"{b}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")}
            out[f"{a}.conv_shortcut"] = f"{b}.nin_shortcut"
    return out


def autoencoder_size(names: Iterable[str]) -> tuple[int, int]:
    """(levels, blocks) from an autoencoder's names, in either layout."""
    found = [m for n in names if (m := re.match(r"encoder\.down(?:_blocks)?\.(\d+)\.(?:block|resnets)\.(\d+)\.", n))]
    return max((int(m[1]) for m in found), default=0) + 1, max((int(m[2]) for m in found), default=0) + 1


def in_attention(name: str) -> bool:
    """Whether a tensor (ours) is one of those that LDM keeps as a 1x1 convolution."""
    return ".attentions." in name and name.endswith(".weight") and not name.endswith("group_norm.weight")


def flattened(name: str, value: Tensor) -> Tensor:
    """(C, C, 1, 1) -> (C, C) where ours is a linear map."""
    return value.flatten(1) if in_attention(name) and value.dim() == 4 and value.shape[2:] == (1, 1) else value


def with_new_attention(tensors: Mapping[str, Tensor]) -> Tensors:
    """An autoencoder's tensors by diffusers' names, of whichever version, with ours."""
    out: Tensors = {}
    for name, value in tensors.items():
        where, dot, last = name.partition(".attentions.0.")
        module, kind = last.rsplit(".", 1) if dot and "." in last else (last, "")
        new = f"{where}{dot}{OLD_ATTENTION[module]}.{kind}" if module in OLD_ATTENTION else name
        out[new] = flattened(new, value)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Text


def text_from_openclip(tensors: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
    """(our tensors, names nobody knows) of an OpenCLIP text tower. The projection is left as it lies: (width, shared)."""
    out: Tensors = {}
    unknown = []
    single = turned(OPENCLIP_SINGLE)
    for name, value in tensors.items():
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        if found and found[2] == "attn.in_proj" and len(value) % 3 == 0:
            for part, rows in zip(STACKED, value.chunk(3), strict=True):
                out[f"encoder.layers.{found[1]}.self_attn.{part}.{found[3]}"] = rows
        elif found and found[2] in LAYER.values():
            out[f"encoder.layers.{found[1]}.{turned(LAYER)[found[2]]}.{found[3]}"] = value
        elif name in single:
            out[single[name]] = value
        else:
            unknown.append(name)
    return out, unknown


def text_to_openclip(tensors: Mapping[str, Tensor]) -> Tensors:
    """Our text tower by OpenCLIP's names."""
    out: Tensors = {}
    for name, value in tensors.items():
        found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if found is None:
            out[OPENCLIP_SINGLE[name]] = value
            continue
        layer = f"transformer.resblocks.{found[1]}"
        if found[2] in LAYER:
            out[f"{layer}.{LAYER[found[2]]}.{found[3]}"] = value
        elif found[2].endswith(STACKED[0]):
            rows = [tensors[f"encoder.layers.{found[1]}.self_attn.{part}.{found[3]}"] for part in STACKED]
            out[f"{layer}.attn.in_proj_{found[3]}"] = torch.cat(rows)
    return out


OPENCLIP_SINGLE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
