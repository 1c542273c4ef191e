"""Published models by name: how one is kept among the user's own, and what can be said of a file before it is used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..base.errors import InputError
from ..base.files import atomic_write, sha256_file
from ..checkpoints.diffusers_folder import component_files
from ..checkpoints.embeddings import read_embedding
from ..checkpoints.hashes import DATA, model_hash, noted, old_hash
from ..checkpoints.lora import read_lora
from ..checkpoints.model_files import digest_of, read_published
from ..checkpoints.native import Link, read_card, write_card
from ..checkpoints.published import TITLES, Published
from ..checkpoints.single_file import what_else
from ..painters.diffusion.convert import checked
from ..painters.diffusion.published import Reading, find_published, licence_of, size_of
from .opening import find_model, published_path, user_models

SOURCE = "source"  # the folder in a model folder that holds a copy of the model's own files


def add_published(
    path: Path,
    name: str | None = None,
    reading: Reading | None = None,
    place: Path | None = None,
    replace: bool = False,
    copy: bool = False,
) -> Path:
    """Keep a Stable Diffusion model of others under a name: a folder with a card and the tokenizer, whose card says where the
    weights lie. copy: bring the weights along too. Returns the folder; raises InputError."""
    target = (place or user_models()) / (name or path.stem)
    if target.exists() and not replace:  # said before a large file is read
        raise InputError("a name that is free", f"{target.name}, taken by {target}", "Use --name or --replace.")
    found = find_published(path, target.name, reading)
    staged = target.with_name(f".{target.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    links = dict(found.card.links)
    if copy:
        links = {part: _copied(link, staged / SOURCE / part, staged) for part, link in links.items()}
    atomic_write(staged / "tokenizer.json", found.tokenizer.to_json())
    files = {"tokenizer.json": sha256_file(staged / "tokenizer.json")}
    write_card(staged, found.card.model_copy(update={"files": files, "links": links}))
    if target.exists():
        shutil.rmtree(target)
    staged.rename(target)
    return target


def _copied(link: Link, place: Path, root: Path) -> Link:
    """The link to a copy of its files below `place`, said from `root`."""
    source = Path(link.path)
    target = place / source.name
    for file in component_files(source) if source.is_dir() else (source,):
        to = target / file.relative_to(source) if source.is_dir() else target
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, to)
    return link.model_copy(update={"path": target.relative_to(root).as_posix()})


def describe_published(model: str | Path, reading: Reading | None = None) -> dict[str, Any]:
    """What a model, an autoencoder, a LoRA or an embedding is, as plain data: kind, parameters, hashes, and what was left out.

    model: a path, or the name of a model that was added. Raises InputError where nothing of the kind can be read.
    """
    path = published_path(model) or Path(model).expanduser()
    if published_path(model) is None and not path.is_file():
        folder = find_model(model)
        card = read_card(folder)
        if "model" not in card.links:
            own = {"kind": card.family, "title": card.title, "parameters": card.parameters, "licence": card.licence}
            return {"path": str(folder), **own, "prediction": card.recipe.get("prediction"), "fingerprint": card.fingerprint}
        link = card.links["model"]
        path, reading = folder / link.path, Reading(ema=link.ema, variant=link.variant)
        return {**describe_published(path, reading), "prediction": card.recipe["prediction"], "size": list(card.size)}
    common = {"path": str(path), "bytes": _size(path), "hashes": hashes_of(path)}
    other = what_else(path) if path.is_file() else None
    if other is not None:
        return {"kind": other, **common, **_adapter(path, other)}
    reading = reading or Reading()
    found = read_published(path, reading.ema, reading.variant, reading.configs)
    return {**_described(found, reading), **common}


def _described(model: Published, reading: Reading) -> dict[str, Any]:
    dtypes = sorted({str(v.dtype).removeprefix("torch.") for tensors in model.parts.values() for v in tensors.values()})
    told: dict[str, Any] = {
        "kind": TITLES[model.kind], "task": model.task, "layout": model.layout, "dtypes": dtypes,
        "title": model.metadata.get("modelspec.title", ""), "licence": licence_of(model),
        "parameters": {part: sum(v.numel() for v in tensors.values()) for part, tensors in model.parts.items()},
        "ignored": list(model.ignored),
    }  # fmt: skip
    try:
        _, configs, recipe = checked(model, reading)
    except InputError as error:  # it is described all the same: that is what one looks for here
        return {**told, "paints": False, "why": str(error)}
    if recipe is None:
        return {**told, "paints": False, "why": "An autoencoder alone: give it with a model."}
    return {**told, "paints": True, "prediction": recipe.prediction, "size": list(size_of(model, configs, recipe))}


def _adapter(path: Path, kind: str) -> dict[str, Any]:
    if "LoRA" in kind:
        lora = read_lora(path)
        base = lora.metadata.get("ss_base_model_version", "")
        return {"changes": len(lora.changes), "ranks": list(lora.ranks), "base": base}
    if "embedding" in kind:
        word, vectors = read_embedding(path)
        return {"word": word, "vectors": {encoder: list(v.shape) for encoder, v in vectors.items()}}
    return {}


def hashes_of(path: Path) -> dict[str, str]:
    """The names a model is known by: of a file "sha256", "model" (10 digits), "old" (8), and for safetensors "data" (12);
    of a folder our own "sha256" alone."""
    digest = digest_of(path)
    if path.is_dir():
        return {"sha256": digest}
    data = {"data": noted(path, part="data")[:DATA]} if path.suffix == ".safetensors" else {}
    return {"sha256": digest, "model": model_hash(digest), "old": old_hash(path)} | data


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in component_files(path)) if path.is_dir() else path.stat().st_size
