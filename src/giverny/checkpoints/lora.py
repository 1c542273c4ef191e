"""LoRA (Hu et al. 2021, arXiv 2106.09685): files that change a model's maps by products of two small ones, read in the three
spellings they come in, and added to a model's tensors.

Kohya's names have underscores for dots and cannot be taken apart: a model's own modules, spelt so, are the dictionary they are
looked up in. Facts: kohya sd-scripts, networks/lora.py; AUTOMATIC1111 stable-diffusion-webui, extensions-builtin/Lora
(network_lora.py: scale, convolutions, the middle map); diffusers, loaders/lora_conversion_utils.py and lora_base.py; PEFT.
Sums are made in float32 and stored once, in the dtype of the model: what is taken off is the model itself, untouched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import InputError
from ..base.tensors import read_safetensors, read_tensors
from . import keymaps as keys
from .keymaps import Tensors
from .published import few

WEIGHTS, CONFIG = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors"), "adapter_config.json"
PARTS = {  # how a name begins -> the part of a model it means
    "lora_unet_": "denoiser", "lora_te_": "text", "lora_te1_": "text", "lora_te2_": "text_2",
    "unet.": "denoiser", "text_encoder.": "text", "text_encoder_2.": "text_2",
}  # fmt: skip
SLOT = re.compile(
    r"(?P<module>.+?)(?:\.lora_(?P<kohya>down|up|mid)\.weight|[._]lora(?:_linear_layer)?\.(?P<old>down|up)\.weight"
    r"|\.lora_(?P<peft>[AB])(?:\.[^.]+)?\.weight|\.(?P<alpha>alpha))"
)
PEFT = {"A": "down", "B": "up"}
OTHERS = {  # other kinds of change, by what is in their names
    "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", ".diff": "full",
    "on_input": "IA3", "w_norm": "norm", "bundle_emb": "bundled embeddings", ".bias": "biases",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """What is added to one map: up * down, times alpha / rank; `mid` stands between them in some convolutions (CP)."""

    down: Tensor  # (r, in) or (r, in, k, k)
    up: Tensor  # (out, r) or (out, r, 1, 1)
    mid: Tensor | None = None  # (r, r, k, k)
    scale: float = 1.0

    def delta(self, shape: torch.Size) -> Tensor | None:
        """float32, of the shape of the map it is added to; None where it does not fit that."""
        down, up = self.down.float(), self.up.float().flatten(1)
        if self.mid is not None:
            product = torch.einsum("om,mnhw,ni->oihw", up, self.mid.float(), down.flatten(1))
        elif up.shape[1] != len(down):
            return None
        else:
            product = (up @ down.flatten(1)).unflatten(1, down.shape[1:])
        wanted = tuple(shape) + (1,) * (4 - len(shape))
        if tuple(product.shape) + (1,) * (4 - product.dim()) != wanted:
            return None
        return product.reshape(shape) * self.scale


@dataclass(frozen=True)
class Lora:
    """Changes by (part, module); a part of "" is not said; modules have underscores for dots."""

    path: Path
    changes: Mapping[tuple[str, str], Change]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({len(change.down) for change in self.changes.values()}))


def read_lora(path: Path) -> Lora:
    """A LoRA from a file, or from a folder as PEFT and diffusers write it. Raises InputError for other kinds of change."""
    folder = path.parent
    if path.is_dir():
        folder, found = path, [path / name for name in WEIGHTS if (path / name).is_file()]
        if not found:
            raise InputError(f"a folder with {' or '.join(WEIGHTS)}", f"{path} without them")
        path = found[0]
    tensors, metadata = read_safetensors(path) if path.suffix == ".safetensors" else (read_tensors(path), {})
    slots: dict[tuple[str, str], dict[str, Tensor]] = {}
    strange = []
    for name, value in tensors.items():
        found_slot = SLOT.fullmatch(name)
        if found_slot is None or any(mark in name for mark in ("dora_scale", "lora_magnitude")):
            strange.append(name)
            continue
        kind = found_slot["kohya"] or found_slot["old"] or (PEFT[found_slot["peft"]] if found_slot["peft"] else "alpha")
        slots.setdefault(_place(found_slot["module"]), {})[kind] = value
    if strange or not slots:
        raise InputError(
            "a LoRA of plain pairs of maps", f"{path} with {_kinds(strange) or 'no tensors'}", "Others are not read."
        )
    halves = [f"{part} {module}" for (part, module), held in slots.items() if not {"down", "up"} <= held.keys()]
    if halves:
        raise InputError("both maps of every change", f"{path}, which lacks one for {few(halves)}", "Copy the file again.")
    told = _config(folder, metadata)
    changes = {
        place: Change(held["down"], held["up"], held.get("mid"), _scale(place, held, told)) for place, held in slots.items()
    }
    return Lora(path, changes, metadata)


def _place(module: str) -> tuple[str, str]:
    """(part, module with underscores) of a name in a file."""
    module = module.removeprefix("base_model.model.")
    part = next((p for p in PARTS if module.startswith(p)), "")
    flat = module.removeprefix(part).replace(".processor", "").replace(".", "_").removeprefix("text_model_")
    return PARTS.get(part, ""), flat + "_0" if flat.endswith("_to_out") else flat


def _kinds(names: Sequence[str]) -> str:
    """What kinds of change these tensors are, with how many there are."""
    counts: dict[str, int] = {}
    for name in names:
        kind = next((kind for mark, kind in OTHERS.items() if mark in name), "")
        counts[kind] = counts.get(kind, 0) + 1
    known = [f"{kind} ({count} tensors)" for kind, count in counts.items() if kind]
    return ", ".join([*known, *([f"unknown tensors: {few(names)}"] if "" in counts else [])])


def _config(folder: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's settings: of a file beside the weights, or of diffusers' notes in the header, by part."""
    try:
        if (folder / CONFIG).is_file():
            return {"": json.loads((folder / CONFIG).read_text("utf-8"))}
        noted: dict[str, Any] = json.loads(metadata.get("lora_adapter_metadata") or "{}")
    except (OSError, ValueError) as error:
        raise InputError("readable settings of a LoRA", f"{folder} ({error})") from error
    told: dict[str, Any] = {}
    for name, value in noted.items():
        part, dot, setting = name.partition(".")
        told.setdefault(PARTS.get(part + dot, ""), {})[setting] = value
    return told


def _scale(place: tuple[str, str], held: Mapping[str, Tensor], told: Mapping[str, Any]) -> float:
    """alpha / rank; 1 where no alpha is told. With PEFT's rslora, alpha / sqrt(rank)."""
    rank = len(held["down"])
    if "alpha" in held:
        return float(held["alpha"]) / rank
    config = told.get(place[0]) or told.get("") or {}
    alpha = config.get("lora_alpha")
    for module, own in (config.get("alpha_pattern") or {}).items():
        if f"_{place[1]}".endswith("_" + module.replace(".", "_")):
            alpha = own
    return 1.0 if alpha is None else float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


# ---------------------------------------------------------------------------------------------------------------------
# Adding


def modules_of(part: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{module with underscores: tensor name} of a part; a U-Net's also by LDM's names, as files for SDXL have them."""
    maps = {name.removesuffix(".weight"): name for name in tensors if name.endswith(".weight")}
    found = {module.replace(".", "_"): name for module, name in maps.items()}
    if part == "denoiser":
        modules = keys.denoiser_modules(keys.levels_in_ours(tensors))
        found |= {theirs.replace(".", "_"): maps[m] for m in maps if (theirs := keys.moved(m, modules)) is not None}
    return found


def placed(lora: Lora, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[tuple[str, str], Change]:
    """Its changes by (part, tensor name). Raises InputError where one has no place in this model, or does not fit there."""
    known = {part: modules_of(part, held) for part, held in tensors.items()}
    out: dict[tuple[str, str], Change] = {}
    lost, misfits = [], []
    for (part, module), change in lora.changes.items():
        where = [p for p in ([part] if part else known) if module in known.get(p, {})]
        if len(where) != 1:
            lost.append(f"{part} {module}".strip())
            continue
        name = known[where[0]][module]
        if _fits(change, tensors[where[0]][name].shape):
            out[where[0], name] = change
        else:
            misfits.append(f"{name}, here {' x '.join(map(str, tensors[where[0]][name].shape))}")
    if lost or misfits:
        what = [f"{len(lost)} maps that it has not, as {lost[0]}"] if lost else []
        what += [f"{len(misfits)} of another size, as {misfits[0]}"] if misfits else []
        base = lora.metadata.get("ss_base_model_version") or lora.metadata.get("modelspec.architecture")
        remedy = f"It was made for another model{f' ({base})' if base else ''}."
        raise InputError("a LoRA made for this model", f"{lora.path}, which changes {' and '.join(what)}", remedy)
    return out


def _fits(change: Change, shape: torch.Size) -> bool:
    """Whether a change has a map's shape, from sizes alone."""
    mid = None if change.mid is None else change.mid.to("meta")
    try:
        return Change(change.down.to("meta"), change.up.to("meta"), mid).delta(shape) is not None
    except RuntimeError:  # maps that do not even fit each other
        return False


def merged(
    tensors: Mapping[str, Mapping[str, Tensor]], adapters: Sequence[tuple[Lora, float | Mapping[str, float]]]
) -> dict[str, Tensors]:
    """A model's tensors, {part: {name: tensor}}, with LoRAs added, each times a weight (or one a part; parts left out: 1).

    Tensors that nothing changes are the given ones; the others are new, of the same dtype. Raises InputError as `placed`.
    """
    sums: dict[tuple[str, str], Tensor] = {}
    for lora, weight in adapters:
        for (part, name), change in placed(lora, tensors).items():
            times = weight if isinstance(weight, int | float) else weight.get(part, 1.0)
            base = tensors[part][name]
            delta = change.delta(base.shape)
            assert delta is not None
            if times != 0:
                before = sums.get((part, name))
                delta = delta.to(base.device) * times
                sums[part, name] = delta if before is None else before + delta
    out = {part: dict(held) for part, held in tensors.items()}
    for (part, name), delta in sums.items():
        base = out[part][name]
        out[part][name] = (base.float() + delta).to(base.dtype)
    return out
