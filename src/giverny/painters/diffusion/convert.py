"""Published models from one layout to the other, every tensor as it was: a single file <-> a diffusers folder.

What is written has been checked against the networks first; a target is whole or not there.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...autoencoders.kl import KLRecipe
from ...base.errors import InputError
from ...base.recipe import check
from ...base.tensors import unfilled
from ...checkpoints import architecture, configs
from ...checkpoints.diffusers_folder import write_folder
from ...checkpoints.keymaps import Tensors
from ...checkpoints.model_files import CONFIGS, read_published
from ...checkpoints.native import fill
from ...checkpoints.published import Published
from ...checkpoints.single_file import to_ldm, write_single
from ...text.tokenizer import Tokenizer
from .published import FIRST_WORDS, SECOND_WORDS, Reading, build, size_of, words_of
from .recipe import ModelRecipe

SINGLE = ".safetensors"


@dataclass(frozen=True)
class Converted:
    tensors: int
    ignored: tuple[str, ...]  # of the source, not in the target
    notes: tuple[str, ...] = ()


def convert(source: Path, target: Path, reading: Reading | None = None) -> Converted:
    """Write `source` anew: as a single file where `target` ends in .safetensors, else as a diffusers folder.

    Stable Diffusion 1, 2 and XL, and autoencoders alone. Raises InputError.
    """
    reading = reading or Reading()
    if target.exists():
        raise InputError("a place where nothing is", str(target), "Choose another name, or remove it first.")
    model = read_published(source, reading.ema, reading.variant, reading.configs)
    parts, told, recipe = checked(model, reading)
    count = sum(len(tensors) for tensors in parts.values())
    if target.suffix == SINGLE:
        noted = {name: config for name, config in told.items() if name != "index"}
        write_single(target, to_ldm(parts, model.kind), {CONFIGS: json.dumps(noted)})
        return Converted(count, model.ignored)
    words, notes = ({}, ()) if recipe is None else _words(model, recipe, reading)
    staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        write_folder(staged, parts, told, words)
        staged.rename(target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return Converted(count, model.ignored, notes)


def checked(model: Published, reading: Reading) -> tuple[dict[str, Tensors], dict[str, Mapping[str, Any]], ModelRecipe | None]:
    """(parts, a config for each, the recipe unless it is an autoencoder alone), every tensor found to fit its network."""
    if model.kind == "autoencoder":
        tensors = model.part("autoencoder")
        said = model.configs.get("autoencoder", {})
        made = check(KLRecipe, architecture.autoencoder_values(tensors, said), f"{model.path}: architecture")
        with unfilled():
            network = made.build()
        fill(network, tensors, "autoencoder")
        scale = architecture.scale_values(said, model.kind)
        return {"autoencoder": tensors}, {"autoencoder": said or configs.autoencoder(made.model_dump(), scale)}, None
    built = build(model, reading)
    parts, said_of, recipe = built.weights, built.configs, built.recipe
    told: dict[str, Mapping[str, Any]] = {
        **configs.written(recipe.model_dump(mode="json"), size_of(model, said_of, recipe)[1]),
        **said_of,
    }
    if reading.prediction is not None:
        told["scheduler"] = {**told["scheduler"], **configs.predicting(reading.prediction)}
    return parts, told, recipe


def _words(model: Published, recipe: ModelRecipe, reading: Reading) -> tuple[dict[str, str], tuple[str, ...]]:
    """({place in a folder: file of a tokenizer}, what to tell of them): the source's own, else as CLIP's are written."""
    places = (FIRST_WORDS, SECOND_WORDS) if recipe.second else (FIRST_WORDS,)
    if model.layout == "folder" and reading.words is None and all((model.path / place).is_dir() for place in places):
        own = [path for place in places for path in sorted((model.path / place).iterdir()) if path.is_file()]
        return {path.relative_to(model.path).as_posix(): path.read_text("utf-8") for path in own}, ()
    try:
        tokenizer = words_of(model, recipe, reading.words)
    except InputError as error:
        return {}, (f"without a tokenizer folder: {error}",)
    pads = (tokenizer.pad, recipe.second.pad) if recipe.second else (tokenizer.pad,)
    files: dict[str, str] = {}
    for place, pad in zip(places, pads, strict=True):
        files |= {f"{place}/{name}": text for name, text in _written(tokenizer, pad).items()}
    return files, ()


def _written(tokenizer: Tokenizer, padding: int) -> dict[str, str]:
    """A tokenizer folder's files, as CLIP's are."""
    symbols, merges = tokenizer.symbols()
    names = {number: symbol for symbol, number in symbols.items()}
    start, end, pad = (names[number] for number in (tokenizer.start, tokenizer.end, padding))
    settings = {
        "tokenizer_class": "CLIPTokenizer", "bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad,
        "model_max_length": tokenizer.length, "do_lower_case": True, "add_prefix_space": False, "errors": "replace",
    }  # fmt: skip
    return {
        "vocab.json": json.dumps(dict(sorted(symbols.items(), key=lambda pair: pair[1])), ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }
