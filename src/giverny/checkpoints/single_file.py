"""Stable Diffusion in one file, .safetensors or .ckpt, in the layout it was released in (LDM): read, and written.

Facts: CompVis stable-diffusion, ldm/models/diffusion/ddpm.py (prefixes, EMA copies); AUTOMATIC1111 stable-diffusion-webui,
modules/sd_models.py (old files without text_model, SD 2.1 turbo in the layout of SGM) and sd_vae.py (autoencoders alone).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..base.errors import InputError
from ..base.files import atomic_path
from ..base.tensors import brought, read_pickle, read_safetensors
from . import keymaps as keys
from .keymaps import Tensors
from .published import IGNORABLE, REFINER, Kind, Published, few, kind_in_ldm, stranger

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
PREFIXES = {  # of a name in the file -> the part it belongs to, and how that is spelt
    "model.diffusion_model.": ("denoiser", "ldm"),
    "first_stage_model.": ("autoencoder", "ldm"),
    "cond_stage_model.transformer.": ("text", "transformers"),
    "cond_stage_model.model.": ("text", "openclip"),
    "conditioner.embedders.0.transformer.": ("text", "transformers"),
    "conditioner.embedders.1.model.": ("text_2", "openclip"),
}
DENOISER, AUTOENCODER, CLIP, OPENCLIP, FIRST, SECOND = PREFIXES
TURBO, WIDTH_2 = "conditioner.embedders.0.model.", 1024  # SD 2.1 turbo's text tower, and how wide it is
PROJECTION = "text_projection"  # of OpenCLIP's tower: (width, shared)
LAST = "transformer.resblocks.23."  # of OpenCLIP's tower: SD 2 looks at what the layer before it says


def read_single(path: Path, ema: bool = False, precision: torch.dtype | None = None) -> Published:
    """ema: the U-Net's averaged copies instead of its last weights. precision: as for `base.tensors.brought`, which a pickle
    is not. Raises InputError for what is no such model."""
    stored, ignored, metadata = _stored(path)
    places = {id(value): name for name, value in stored.items()}  # in the file, whatever they are called from here on
    if (norm := stored.get(TURBO + "ln_final.weight")) is not None and len(norm) == WIDTH_2:
        stored = {n.replace(TURBO, OPENCLIP) if n.startswith(TURBO) else n: v for n, v in stored.items()}
    names = list(stored)
    kind = kind_in_ldm({name: tuple(value.shape) for name, value in stored.items()})
    if kind == "autoencoder":
        stored = {n if n.startswith(AUTOENCODER) or IGNORABLE.fullmatch(n) else AUTOENCODER + n: v for n, v in stored.items()}
    if kind == "refiner":
        raise InputError("a model that paints by itself", f"{path}, {REFINER}", "Use the base model.")
    kept, left = {}, []
    for name, value in stored.items():
        if IGNORABLE.fullmatch(name) or (kind == "sd2" and name.startswith(OPENCLIP + LAST)):
            left.append(name)
        else:
            kept[name] = value
    if ema:
        kept |= _averaged(path, stored)
    if precision is not None and path.suffix == ".safetensors":
        found = brought(path, [places[id(value)] for value in kept.values()], precision)
        kept = {name: found[places[id(value)]] for name, value in kept.items()}
    parts, unknown = from_ldm(kept, kind)
    if unknown or not parts:
        known = stranger(names)
        given = f"{path}, {known}" if known else f"{path} with tensors of no known meaning: {few(unknown)}"
        raise InputError("a Stable Diffusion model or its autoencoder", given, "Is it another kind of model?")
    marks = frozenset({"v_pred", "ztsnr"} & stored.keys() | ({"ema"} if ema else set()))
    return Published(path, "single file", kind, parts, {}, tuple(sorted([*ignored, *left])), marks, metadata)


def what_else(path: Path) -> str | None:
    """What a file is, where it is a known kind that is no model; None for models and for what nobody knows."""
    tensors, beside, _ = _stored(path)
    return stranger([*tensors, *beside])


def _stored(path: Path) -> tuple[Tensors, list[str], dict[str, str]]:
    """(tensors by the file's names, names of what else there was, the header's notes)."""
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return tensors, [], metadata
    held = read_pickle(path)
    if not isinstance(held, Mapping):
        raise InputError("tensors by name", f"{path}, which holds {type(held).__name__}", "Save the model's state_dict().")
    inner = held.get("state_dict", held)
    beside = [str(name) for name in held if name != "state_dict"] if inner is not held else []
    if not isinstance(inner, Mapping):
        raise InputError("tensors by name in state_dict", f"{path}, {type(inner).__name__}")
    beside += [str(name) for name, value in inner.items() if not isinstance(value, Tensor)]
    return {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}, beside, {}


def _averaged(path: Path, stored: Mapping[str, Tensor]) -> Tensors:
    """The U-Net's EMA copies, under its own names; they lie at `model_ema.` and the name without first word and dots."""
    own = [name for name in stored if name.startswith(DENOISER)]
    names = {name: "model_ema." + name.split(".", 1)[1].replace(".", "") for name in own}
    missing = [flat for flat in names.values() if flat not in stored]
    if missing or not names:
        given = f"{path}, which lacks {few(missing)}"
        raise InputError("a model with averaged weights (EMA) of its whole U-Net", given, "Open it without --ema.")
    return {name: stored[flat] for name, flat in names.items()}


def _ours(part: str, spelling: str, tensors: Tensors, projects: bool) -> tuple[Tensors, list[str]]:
    """(a part's tensors by our names, names nobody knows)."""
    if spelling == "transformers":
        return {name.removeprefix("text_model."): value for name, value in tensors.items()}, []
    if spelling == "openclip":
        kept = {name: value for name, value in tensors.items() if not (projects and name == PROJECTION)}
        out, unknown = keys.text_from_openclip(kept)
        return out | {name: tensors[name] for name in tensors.keys() - kept.keys()}, unknown
    if part == "autoencoder" and any("down_blocks." in name for name in tensors):
        return keys.with_new_attention(tensors), []
    modules = (
        keys.denoiser_modules(keys.levels_in_ldm(tensors))
        if part == "denoiser"
        else keys.autoencoder_modules(*keys.autoencoder_size(tensors))
    )
    back = keys.turned(modules)
    named = {name: keys.moved(name, back) for name in tensors}
    out = {new: tensors[name] for name, new in named.items() if new is not None}
    if part == "autoencoder":
        out = {name: keys.flattened(name, value) for name, value in out.items()}
    return out, [name for name, new in named.items() if new is None]


def from_ldm(stored: Mapping[str, Tensor], kind: Kind) -> tuple[dict[str, Tensors], list[str]]:
    """(parts by our names, names that have no meaning) of a single file's tensors."""
    found: dict[tuple[str, str], Tensors] = {}
    unknown = []
    for name, value in stored.items():
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is None:
            unknown.append(name)
        else:
            found.setdefault(PREFIXES[prefix], {})[name.removeprefix(prefix)] = value
    parts: dict[str, Tensors] = {}
    for (part, spelling), tensors in found.items():
        new, strange = _ours(part, spelling, tensors, kind == "sdxl")
        parts[part] = {**parts.get(part, {}), **new}
        unknown += [f"{part}: {name}" for name in strange]
    if PROJECTION in parts.get("text_2", {}):
        parts["projection"] = {"weight": parts["text_2"].pop(PROJECTION).mT}
    return parts, unknown


def to_ldm(parts: Mapping[str, Tensors], kind: Kind) -> Tensors:
    """Parts by the names of a single file; of an autoencoder alone, without its prefix."""
    out: Tensors = {}
    if "denoiser" in parts:
        modules = keys.denoiser_modules(keys.levels_in_ours(parts["denoiser"]))
        out |= {DENOISER + _named(n, modules): v for n, v in parts["denoiser"].items()}
    if "autoencoder" in parts:
        modules = keys.autoencoder_modules(*keys.autoencoder_size(parts["autoencoder"]))
        prefix = "" if kind == "autoencoder" else AUTOENCODER
        for name, value in parts["autoencoder"].items():
            out[prefix + _named(name, modules)] = value[:, :, None, None] if keys.in_attention(name) else value
    if "text" in parts and kind == "sd2":
        out |= {OPENCLIP + n: v for n, v in keys.text_to_openclip(parts["text"]).items()}
    elif "text" in parts:
        out |= {f"{FIRST if kind == 'sdxl' else CLIP}text_model.{n}": v for n, v in parts["text"].items()}
    if "text_2" in parts:
        out |= {SECOND + n: v for n, v in keys.text_to_openclip(parts["text_2"]).items()}
    if "projection" in parts:
        out[SECOND + PROJECTION] = parts["projection"]["weight"].mT
    return out


def _named(name: str, modules: Mapping[str, str]) -> str:
    new = keys.moved(name, modules)
    if new is None:
        raise InputError("tensors that LDM's layout has names for", name)
    return new


def write_single(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """A whole safetensors file or nothing."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({n: v.contiguous() for n, v in tensors.items()}, str(temporary), {"format": "pt", **metadata})
