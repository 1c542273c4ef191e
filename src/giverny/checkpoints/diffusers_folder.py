"""Stable Diffusion as diffusers keeps it: a folder with model_index.json and one folder a component; read, and written.

Also one component's folder alone (an autoencoder). Facts: diffusers, pipelines/pipeline_loading_utils.py and
utils/constants.py; transformers, utils/__init__.py (names of files, variants, shards).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..base.errors import InputError
from ..base.files import atomic_write
from ..base.tensors import read_tensors
from .keymaps import Tensors, with_new_attention
from .published import REFINER, Kind, Published, few
from .single_file import write_single

INDEX, CONFIG = "model_index.json", "config.json"
PARTS = {"unet": "denoiser", "vae": "autoencoder", "text_encoder": "text", "text_encoder_2": "text_2"}
NETWORKS = {  # component -> the classes that are read
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
TEXTS = ("text", "text_2")  # parts that transformers keeps
PROJECTION = "text_projection.weight"  # of the second text tower, there among its tensors
ADDED = ("add_embedding.", "class_embedding.")  # the U-Net's map of a pooled vector, theirs and ours
WORDS = ("tokenizer", "tokenizer_2", "scheduler")
LEFT = ("safety_checker", "feature_extractor", "image_encoder")  # looked at by nobody here
TRANSFORMERS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
USUAL = (("diffusion_pytorch_model", ".safetensors"), ("diffusion_pytorch_model", ".bin"))


def read_folder(folder: Path, variant: str | None = None, precision: torch.dtype | None = None) -> Published:
    """variant: "fp16" and the like; None: the plain files, or the only variant there is. Raises InputError."""
    if not (folder / INDEX).is_file():
        return _autoencoder(folder, variant, precision)
    index = read_json(folder / INDEX)
    here = {name for name, value in index.items() if isinstance(value, list) and value and value[-1] is not None}
    if "text_encoder_2" in here and "text_encoder" not in here:
        raise InputError("a model that paints by itself", f"{folder}, {REFINER}", "Use the base model.")
    strange = here - {*NETWORKS, *WORDS, *LEFT}
    if strange:
        raise InputError("a Stable Diffusion pipeline", f"{folder} with {', '.join(sorted(strange))}", "Is it another kind?")
    parts: dict[str, Tensors] = {}
    configs: dict[str, Mapping[str, Any]] = {"index": index}
    ignored = [f"{name}/" for name in LEFT if name in here]
    for name in NETWORKS:
        if name not in here:
            if name != "text_encoder_2":
                raise InputError(f"the component {name}", f"{folder / INDEX} without it", "Fetch the whole folder.")
            continue
        if index[name][-1] not in NETWORKS[name]:
            raise InputError(f"{name} of class {' or '.join(NETWORKS[name])}", str(index[name][-1]), "Is it another kind?")
        tensors, config = _component(folder / name, variant, precision)
        parts[PARTS[name]], left = _ours(name, tensors)
        configs[PARTS[name]] = config
        ignored += [f"{name}: {key}" for key in left]
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    if PROJECTION in parts.get("text_2", {}):
        parts["projection"] = {"weight": parts["text_2"].pop(PROJECTION)}
    linear = any(n.endswith("proj_in.weight") and v.dim() == 2 for n, v in parts["denoiser"].items())
    kind: Kind = "sdxl" if "text_2" in parts else "sd2" if linear else "sd1"
    return Published(folder, "folder", kind, parts, configs, tuple(sorted(ignored)))


def _autoencoder(folder: Path, variant: str | None, precision: torch.dtype | None) -> Published:
    tensors, config = _component(folder, variant, precision)
    if config.get("_class_name") != "AutoencoderKL":
        wanted = f"a folder with {INDEX}, or that of an AutoencoderKL"
        raise InputError(wanted, f"{folder}, of class {config.get('_class_name')}", "Give the folder above it.")
    return Published(folder, "folder", "autoencoder", {"autoencoder": with_new_attention(tensors)}, {"autoencoder": config})


def _ours(component: str, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """(tensors by our names, names of what has no weights)."""
    if component == "unet":
        return {n.replace(*ADDED, 1): v for n, v in tensors.items()}, []
    if component == "vae":
        return with_new_attention(tensors), []
    left = [n for n in tensors if n.endswith("position_ids")]
    return {n.removeprefix("text_model."): v for n, v in tensors.items() if n not in left}, left


def _component(folder: Path, variant: str | None, precision: torch.dtype | None) -> tuple[Tensors, dict[str, Any]]:
    """(tensors by the file's names, config) of a component's folder."""
    if not folder.is_dir():
        raise InputError(f"the component {folder.name}", f"{folder.parent} without that folder", "Fetch the whole folder.")
    config = read_json(folder / CONFIG)
    out: Tensors = {}
    files, expected = weight_files(folder, variant)
    for file in files:
        out |= read_tensors(file, precision)
    if missing := expected - out.keys():
        raise InputError("every tensor of the index", f"{folder}, which lacks {few(missing)}", "Fetch the whole folder.")
    return out, config


def weight_files(folder: Path, variant: str | None) -> tuple[list[Path], set[str]]:
    """(the file or the shards of a component's weights, the tensors that an index says are in them).

    Raises InputError where there is none, or several to choose from.
    """
    pairs = (*USUAL, *TRANSFORMERS)
    for stem, suffix in pairs:
        infix = f".{variant}" if variant else ""
        if (whole := folder / f"{stem}{infix}{suffix}").is_file():
            return [whole], set()
        index = folder / f"{stem}{suffix}.index{infix}.json"
        if index.is_file():
            held = read_json(index).get("weight_map", {})
            if not isinstance(held, dict) or not held or any(Path(str(file)).name != file for file in held.values()):
                raise InputError("an index that names files beside it", str(index))
            return [folder / file for file in sorted(set(held.values()))], set(held)
    found = {
        path.name.removeprefix(stem + ".").removesuffix(suffix)
        for stem, suffix in pairs
        for path in folder.glob(f"{stem}.*{suffix}")
    }
    if variant is None and len(found) == 1:
        return weight_files(folder, found.pop())
    if found:
        given = f"{folder} with the variants {', '.join(sorted(found))}"
        raise InputError(f"the variant {variant!r}" if variant else "one variant", given, "Choose one with --variant.")
    raise InputError(f"weights such as {pairs[0][0]}{pairs[0][1]}", f"{folder} without them", "Fetch the whole folder.")


def read_json(path: Path) -> dict[str, Any]:
    """A config. Raises InputError."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path.name}", f"{path.parent} without it", "Fetch the whole folder.") from error
    except ValueError as error:
        raise InputError("a readable config", f"{path} ({error})", "Fetch it again.") from error
    if not isinstance(found, dict):
        raise InputError("a config of names and values", str(path))
    return found


def component_files(folder: Path) -> tuple[Path, ...]:
    """The files that a folder's hash is over: configs, weights and words of the components that are read."""
    places = [folder] if not (folder / INDEX).is_file() else [folder / name for name in (*NETWORKS, *WORDS)]
    found = [p for place in places if place.is_dir() for p in place.iterdir() if p.is_file() and not p.name.startswith(".")]
    return tuple(sorted([*found, *([folder / INDEX] if (folder / INDEX).is_file() else [])]))


def write_folder(
    folder: Path, parts: Mapping[str, Tensors], configs: Mapping[str, Mapping[str, Any]], words: Mapping[str, str]
) -> None:
    """A diffusers folder, or an autoencoder's alone where that is the only part. words: files of tokenizers, by their place.

    `folder` must be new or empty; model_index.json is written last, so that a folder with it is whole.
    """
    names = {part: name for name, part in PARTS.items()}
    for part, name in names.items():
        if part not in parts:
            continue
        place = folder / name if len(parts) > 1 else folder
        stem, suffix = TRANSFORMERS[0] if part in TEXTS else USUAL[0]
        tensors = {("text_model." if part in TEXTS else "") + n: v for n, v in parts[part].items()}
        if part == "denoiser" and "text_2" in parts:
            tensors = {n.replace(ADDED[1], ADDED[0], 1): v for n, v in tensors.items()}
        if part == "text_2":
            tensors[PROJECTION] = parts["projection"]["weight"]
        write_single(place / (stem + suffix), tensors, {})
        _write_json(place / CONFIG, configs[part])
    for name, text in words.items():
        atomic_write(folder / name, text)
    if "scheduler" in configs:
        _write_json(folder / "scheduler" / "scheduler_config.json", configs["scheduler"])
    if "index" in configs:
        _write_json(folder / INDEX, configs["index"])


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
