"""The model folder: card.json, weights.safetensors, tokenizer.json where words are involved. The folder alone paints.

Weights may be stored in half precision to be small; they are read back as float32. Many weights lie in several files,
weights-00001-of-00003.safetensors and so on, each small enough to be kept in a repository; the card names them all.
Nothing in a folder can run code.

A published model is kept by a card that says where its own file or folder lies and how it is known: gigabytes are not copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..base.contracts import Frozen, Score
from ..base.errors import InputError
from ..base.files import atomic_write, fingerprint, sha256_file

CARD, WEIGHTS = "card.json", "weights.safetensors"
MOST = 15_000_000  # bytes of tensors in one file, unless a single tensor is larger


class Link(Frozen):
    """A file or folder of others that weights are read from, where it lies."""

    path: str  # from the model folder, or absolute
    sha256: str  # as `hashes.sha256_of`
    ema: bool = False  # the averaged copies of its U-Net
    variant: str | None = None  # of a diffusers folder


class Card(Frozen):
    """What a model is, what it was made from, and how good it is under which conditions."""

    family: str  # which painter opens it
    name: str
    title: str = ""
    task: str = "text to picture"
    size: tuple[int, int]  # width and height it paints by default
    recipe: dict[str, Any]  # networks and schedule, enough to build it
    knobs: dict[str, Any] = Field(default_factory=dict)  # its own defaults
    prompts: tuple[str, ...] = ()  # examples of what it understands
    data: dict[str, Any] = Field(default_factory=dict)  # name, pictures, licence
    licence: str = ""  # of the weights
    training: dict[str, Any] = Field(default_factory=dict)  # seconds and steps per stage, device, versions
    scores: tuple[Score, ...] = ()
    parameters: dict[str, int] = Field(default_factory=dict)  # per network
    files: dict[str, str] = Field(default_factory=dict)  # name -> SHA-256
    links: dict[str, Link] = Field(default_factory=dict)  # of a published model: "model", and "autoencoder" if another's

    @property
    def fingerprint(self) -> str:
        """Names weights and recipe together; unchanged by scores, by other words on the card and by where files lie."""
        linked = {name: [link.sha256, link.ema] for name, link in self.links.items()}
        return fingerprint([self.family, self.recipe, self.files, *([linked] if linked else [])])


def write_model(
    folder: Path,
    card: Card,
    networks: Mapping[str, nn.Module],
    extras: Mapping[str, str],
    dtype: torch.dtype = torch.float16,
    most: int = MOST,
) -> Card:
    """Write a model folder; the card comes last, so that a folder with a card is whole. Returns the card as written.

    Tensors with values that `dtype` does not reach, such as a norm's running variance, stay as they are. Raises InputError
    for weights that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            tensors[f"{name}.{key}"] = _within(value.detach().cpu(), dtype).contiguous()
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise InputError("weights that are finite", f"{len(bad)} tensors that are not, {bad[0]} first")
    shards = split(tensors, most)
    for name, part in shards.items():
        atomic_write(folder / name, save(part, {"format": "pt"}))
    for name, text in extras.items():
        atomic_write(folder / name, text)
    files = {name: sha256_file(folder / name) for name in (*shards, *extras)}
    parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    card = card.model_copy(update={"files": files, "parameters": parameters})
    write_card(folder, card)
    for path in folder.glob(f"{Path(WEIGHTS).stem}*{Path(WEIGHTS).suffix}"):
        if path.name not in files:  # of a former model in this folder
            path.unlink()
    return card


def _within(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype` where that holds all of its values."""
    if not value.is_floating_point():
        return value
    made = value.to(dtype)
    return made if bool(torch.isfinite(made).all()) else value


def split(tensors: Mapping[str, Tensor], most: int) -> dict[str, dict[str, Tensor]]:
    """{file name: tensors}, in order, as few files as that allows with at most `most` bytes of tensors each."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        if parts[-1] and size + value.nbytes > most:
            parts.append({})
            size = 0
        parts[-1][key] = value
        size += value.nbytes
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    stem, suffix = Path(WEIGHTS).stem, Path(WEIGHTS).suffix
    return {f"{stem}-{i:05d}-of-{len(parts):05d}{suffix}": part for i, part in enumerate(parts, 1)}


def write_card(folder: Path, card: Card) -> None:
    atomic_write(folder / CARD, json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")


def read_card(folder: Path) -> Card:
    path = folder / CARD
    if not path.is_file():
        raise InputError(f"a model folder (with {CARD})", str(folder), "See `giverny models` for what is here.")
    try:
        return Card.model_validate_json(path.read_text("utf-8"))
    except (ValidationError, ValueError) as error:
        raise InputError("a readable card", f"{path} ({str(error).splitlines()[0]})") from error


def check_files(folder: Path, card: Card) -> None:
    """Raises InputError where a file beside the card is not the one on the card."""
    for name, digest in card.files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{name} beside the card", f"{folder} without it", "Copy the whole model folder again.")
        if sha256_file(path) != digest:
            raise InputError(f"{name} as on the card", f"{path} with other content", "Copy the whole model folder again.")


def read_weights(folder: Path, card: Card) -> dict[str, dict[str, Tensor]]:
    """{network: {tensor name: float32 tensor}}, after checking that every file is the one on the card."""
    check_files(folder, card)
    networks: dict[str, dict[str, Tensor]] = {}
    for file in card.files:
        if not file.endswith(Path(WEIGHTS).suffix):
            continue
        for key, value in load_file(str(folder / file)).items():
            network, name = key.split(".", 1)
            networks.setdefault(network, {})[name] = value.float() if value.is_floating_point() else value
    return networks


def fill(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> nn.Module:
    """Load tensors into a network; every one must fit, none may be missing."""
    expected = network.state_dict()
    missing, surplus = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    shapes = [k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape]
    if missing or surplus or shapes:
        words = f"{len(missing)} missing, {len(surplus)} unknown, {len(shapes)} of another shape"
        first = next(iter(sorted(missing) + sorted(surplus) + sorted(shapes)))
        raise InputError(f"tensors that fit the {what}", f"{words} ({first} first)")
    network.load_state_dict(dict(tensors), assign=True)
    return network
