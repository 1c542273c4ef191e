"""Opens a published model whichever way it is kept, and says which files that takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..base.errors import InputError
from .diffusers_folder import CONFIG, INDEX, PARTS, component_files, read_folder, read_json
from .hashes import sha256_of
from .native import CARD
from .published import Published
from .single_file import SUFFIXES, read_single

CONFIGS = "giverny.configs"  # in a safetensors header: the configs of a folder, as JSON, where a single file came from one


def is_published(path: Path) -> bool:
    """Whether this looks like a model of others: a file of tensors, or a folder in diffusers' layout."""
    if path.is_dir():
        return not (path / CARD).is_file() and ((path / INDEX).is_file() or (path / CONFIG).is_file())
    return path.is_file() and path.suffix in SUFFIXES


def read_published(
    path: Path,
    ema: bool = False,
    variant: str | None = None,
    configs: Path | None = None,
    precision: torch.dtype | None = None,
) -> Published:
    """A model's tensors by our names, mapped from its files, with what says how to build it.

    ema: the averaged copies of a single file's U-Net. variant: of a folder ("fp16"). configs: a diffusers folder whose
    configs count for a single file (weights in it are not looked at). precision: what tensors are brought to, where they are
    not to stay mapped as they are (a pickle's do). Raises InputError for anything else.
    """
    if path.is_dir():
        if ema:
            raise InputError("a single file for averaged weights (EMA)", f"{path}, a folder", "Choose a --variant of it.")
        return read_folder(path, variant, precision)
    if not path.is_file():
        raise InputError("a model file or folder", f"{path}, which is not there")
    if variant is not None:
        raise InputError(f"a folder for the variant {variant!r}", f"{path}, a single file", "Leave --variant out.")
    model = read_single(path, ema, precision)
    if configs is not None:
        return replace(model, configs=configs_in(configs))
    return replace(model, configs=_noted(path, model.metadata))


def configs_in(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The configs of a diffusers folder by part, and of its scheduler."""
    found: dict[str, Mapping[str, Any]] = {
        part: read_json(folder / name / CONFIG) for name, part in PARTS.items() if (folder / name / CONFIG).is_file()
    }
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        found["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    if not found:
        raise InputError("a folder with unet/config.json and so on", f"{folder} without them")
    return found


def _noted(path: Path, metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Configs in a header of ours."""
    if CONFIGS not in metadata:
        return {}
    try:
        found = json.loads(metadata[CONFIGS])
    except ValueError as error:
        raise InputError(f"readable {CONFIGS} in the header", f"{path} ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(config, dict) for config in found.values()):
        raise InputError(f"configs by part in {CONFIGS}", str(path))
    return found


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or over a folder's files, as `hashes.sha256_of`; worked out once for a file that stays as it is."""
    return sha256_of(path, component_files(path) if path.is_dir() else ())
