"""Published CLIP weights, brought to the tensor names of `text/clip.Clip`, which are those of transformers' CLIPModel.

Two layouts are read: transformers' own (a folder with config.json beside model.safetensors or pytorch_model.bin, as
FashionCLIP has it: Chia et al. 2022, arXiv 2204.03972) and OpenAI's (Radford et al. 2021, arXiv 2103.00020; also OpenCLIP's
names), as a state dict in one file. Sizes are read from the tensors and held against the config, where there is one.
Every foreign tensor is mapped, known to carry no weights, or an error. No file can run code here: pickles are read as
tensors alone (torch's `weights_only`), and a TorchScript archive, which is a program, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import InputError, choose
from ..base.tensors import read_tensors

CONFIG = "config.json"
FILES = ("model.safetensors", "pytorch_model.bin")  # of a transformers folder, the better one first
ACTIVATIONS = ("quick_gelu", "gelu")  # those that Clip knows; transformers' names are the same
HEAD, WIDEST = 64, 1024  # OpenAI's transformers have heads of 64 channels and at most 1024 channels
NO_WEIGHTS = {  # counters and masks that some versions store beside the weights
    "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids", "input_resolution", "context_length",
    "vocab_size", "attn_mask",
}  # fmt: skip
# What transformers' CLIPTextConfig and CLIPVisionConfig say of what a config leaves out: ViT-B/32.
TEXT = {
    "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048,
    "hidden_act": "quick_gelu", "vocab_size": 49408, "max_position_embeddings": 77, "layer_norm_eps": 1e-5,
}  # fmt: skip
VISION = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "quick_gelu", "image_size": 224, "patch_size": 32, "num_channels": 3, "layer_norm_eps": 1e-5,
}  # fmt: skip
SIZES = {  # what a config calls the sizes of our recipes
    "width": "hidden_size", "layers": "num_hidden_layers", "inner": "intermediate_size", "vocabulary": "vocab_size",
    "length": "max_position_embeddings", "size": "image_size", "patch": "patch_size", "channels": "num_channels",
}  # fmt: skip

# Names of modules, OpenAI's and transformers'; of both towers, of their layers, and of single tensors.
LAYER = {
    "ln_1": "layer_norm1", "attn.out_proj": "self_attn.out_proj", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
SINGLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TURNED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}  # (in, out) -> (out, in)
STACKED = ("q_proj", "k_proj", "v_proj")  # one below the other in OpenAI's attn.in_proj_weight and _bias
INNER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", *LAYER.values())  # modules of a layer


def read_clip(path: Path, activation: str = "quick_gelu") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(values of a `ClipRecipe`, {tensor name: float32 tensor}) from transformers' folder, or from one file of tensors.

    activation: of a model without a config; OpenAI's have "quick_gelu", OpenCLIP's mostly "gelu".
    Pictures must reach these weights as they were taught them: OpenAI's and FashionCLIP's preprocessor_config.json says
    which mean and deviation. Raises InputError for what is not such a model, or would run code.
    """
    if not path.is_dir():
        return from_tensors(read_tensors(path), None, activation)
    if not (path / CONFIG).is_file():
        raise InputError(f"a folder with {CONFIG}", f"{path} without it", "Give the file of tensors itself, or add it.")
    found = [path / name for name in FILES if (path / name).is_file()]
    if not found:
        raise InputError(" or ".join(FILES), f"{path} without it", "Save the model in one piece, best as safetensors.")
    try:
        config = json.loads((path / CONFIG).read_text("utf-8"))
    except ValueError as error:
        raise InputError("a readable config", f"{path / CONFIG} ({error})") from error
    return from_tensors(read_tensors(found[0]), config, activation)


def from_tensors(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, activation: str = "quick_gelu"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(values of a `ClipRecipe`, {name: float32 tensor}) from tensors in either layout; config: transformers' own.

    Without a config, heads have 64 channels, as in all of OpenAI's models. Raises InputError for unknown, missing or
    impossible tensors, and where config and tensors disagree.
    """
    kept = {name: value.detach() for name, value in tensors.items() if name not in NO_WEIGHTS}
    if "visual.class_embedding" in kept:
        kept = _renamed(kept)
    _complete(kept)
    values = _sizes(kept)
    if config is None:
        choose(activation, ACTIVATIONS, "activation")
        for tower in (values["text"], values["image"]):
            if tower["width"] % HEAD or tower["width"] > WIDEST:
                wanted = f"towers of at most {WIDEST} channels, in heads of {HEAD} (OpenAI's)"
                raise InputError(wanted, f"{tower['width']} channels", f"Use transformers' folder: its {CONFIG} says more.")
            tower |= {"heads": tower["width"] // HEAD, "activation": activation}
    else:
        _agree(config, values)
    return values, {name: value.to(torch.float32, copy=True).contiguous() for name, value in kept.items()}


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names -> transformers'."""
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        found = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        visual, index, module, kind = found.groups() if found else ("", "", "", "")
        layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{index}"
        if module == "attn.in_proj":
            for part, rows in zip(STACKED, value.chunk(3), strict=False):  # too few rows: a part is found missing later
                out[f"{layer}.self_attn.{part}.{kind}"] = rows
        elif module in LAYER:
            out[f"{layer}.{LAYER[module]}.{kind}"] = value
        elif name in TURNED:
            out[TURNED[name]] = value.mT if value.dim() == 2 else value
        elif name in SINGLE:
            out[SINGLE[name]] = value
        else:
            raise InputError("tensors of OpenAI's layout alone", f"{name} among them", "Is it another kind of model?")
    return out


def _complete(tensors: Mapping[str, Tensor]) -> None:
    """Every tensor that such a model has must be there, and no other."""
    expected = {*SINGLE.values(), *TURNED.values()}
    for tower in ("text_model", "vision_model"):
        pattern = re.compile(rf"{tower}\.encoder\.layers\.(\d+)\.")
        layers = {found[1] for name in tensors if (found := pattern.match(name))}
        for i in range(max(1, len(layers))):
            expected |= {f"{tower}.encoder.layers.{i}.{module}.{kind}" for module in INNER for kind in ("weight", "bias")}
    missing, unknown = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing or unknown:
        first = (missing + unknown)[0]
        wanted = "the tensors of a CLIP with two transformers, in transformers' or OpenAI's layout"
        raise InputError(wanted, f"{len(missing)} missing, {len(unknown)} unknown ({first} first)")


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes say of a recipe: all but heads and activations."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if tensors[name].dim() != dims:
            raise InputError(f"{name} with {dims} dimensions", str(tuple(tensors[name].shape)))
        return tuple(tensors[name].shape)

    def tower(name: str) -> dict[str, Any]:
        inner, width = shape(f"{name}.encoder.layers.0.mlp.fc1.weight", 2)
        layers = sum(key.startswith(f"{name}.encoder.layers.") and key.endswith(".mlp.fc1.weight") for key in tensors)
        return {"width": width, "layers": layers, "inner": inner}

    vocabulary, _ = shape("text_model.embeddings.token_embedding.weight", 2)
    length, _ = shape("text_model.embeddings.position_embedding.weight", 2)
    places, _ = shape("vision_model.embeddings.position_embedding.weight", 2)
    _, channels, height, patch = shape("vision_model.embeddings.patch_embedding.weight", 4)
    side = isqrt(places)
    if side**2 != places - 1 or not side or height != patch:
        raise InputError("square patches on a square, and one place more", f"{height} x {patch}, {places} places")
    return {
        "text": tower("text_model") | {"vocabulary": vocabulary, "length": length},
        "image": tower("vision_model") | {"size": side * patch, "patch": patch, "channels": channels},
        "shared_width": shape("text_projection.weight", 2)[0],
    }


def _agree(config: Mapping[str, Any], values: dict[str, Any]) -> None:
    """Add heads and activations from transformers' config, after checking that it means these tensors."""
    if not isinstance(config, Mapping) or config.get("model_type", "clip") != "clip":
        kind = config.get("model_type") if isinstance(config, Mapping) else type(config).__name__
        raise InputError("the config of a CLIP", repr(kind))
    for ours, theirs, defaults in (("text", "text_config", TEXT), ("image", "vision_config", VISION)):
        # Where an older config has both forms, transformers goes by the one with _dict.
        said = config.get(theirs + "_dict")
        said = (config.get(theirs) or {}) if said is None else said
        if not isinstance(said, Mapping):
            raise InputError(f"{theirs} with names and values", repr(said)[:100])
        told, tower = defaults | dict(said), values[ours]
        for size, name in SIZES.items():
            if size in tower and told[name] != tower[size]:
                raise InputError(f"tensors with {theirs}.{name} = {told[name]}", f"{tower[size]}", "They are of another model.")
        heads, width = told["num_attention_heads"], tower["width"]
        if not isinstance(heads, int) or heads < 1 or width % heads:
            raise InputError(f"{theirs}.num_attention_heads that divide {width}", repr(heads))
        if told["layer_norm_eps"] != TEXT["layer_norm_eps"]:
            raise InputError(f"{theirs}.layer_norm_eps = {TEXT['layer_norm_eps']}", repr(told["layer_norm_eps"]))
        tower |= {"heads": heads, "activation": choose(str(told["hidden_act"]), ACTIVATIONS, "activation")}
    if config.get("projection_dim", 512) != values["shared_width"]:
        raise InputError(f"tensors with projection_dim = {config.get('projection_dim', 512)}", str(values["shared_width"]))
