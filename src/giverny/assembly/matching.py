"""Which of the models here a picture's file means: by hash, else by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from ..base.errors import InputError
from ..base.infotext import Parameters
from ..checkpoints.hashes import DATA, OLD, SHORT, noted, old_hash
from ..checkpoints.native import Card, read_card
from .opening import models

_ENDINGS = (".safetensors", ".ckpt", ".pt")


class Match(NamedTuple):
    """A model that can be opened by name."""

    name: str
    by: Literal["hash", "name"]


def identities(card: Card) -> Iterator[str]:
    """Every whole hash a model's card says it answers to: its fingerprint, and the SHA-256 of each of its files and of what a
    published one is read from. What is longer than what a file says counts by its beginning (A1111 writes 10 digits)."""
    yield card.fingerprint
    yield from card.files.values()
    if "model" in card.links:
        yield card.links["model"].sha256


def match_model(parameters: Parameters, known: Mapping[str, Path] | None = None) -> Match | None:
    """The model here that a file means. known: {name: folder}, those that can be opened by name by default.

    A hash counts before the name: 8 digits are the old hash, of a part of the file; 10 and more of all of it, and where no
    file has that, 12 and more of its tensors alone. Of the name neither the folder nor the ending nor capitals count. None
    where no model here is meant.
    """
    places = models() if known is None else known
    hashed = parameters.settings.get("Model hash", "").lower()
    for meant in (_by_card, _by_file):
        for name, folder in places.items() if len(hashed) >= OLD else ():
            if meant(folder, read_card(folder), hashed):
                return Match(name, "hash")
    wanted = _bare(parameters.settings.get("Model", ""))
    return next((Match(name, "name") for name in places if _bare(name) == wanted), None)


def _by_card(folder: Path, card: Card, hashed: str) -> bool:
    return len(hashed) >= SHORT and any(whole.lower().startswith(hashed) for whole in identities(card))


def _by_file(folder: Path, card: Card, hashed: str) -> bool:
    """By what the card does not say of the single file that a published model is read from, where that is still there. The
    digest of a large file's tensors is noted, so that it is worked out once."""
    file = folder / card.links["model"].path if "model" in card.links else None
    if file is None or not file.is_file():
        return False
    if len(hashed) == OLD:
        return old_hash(file) == hashed
    return len(hashed) >= DATA and file.suffix == ".safetensors" and noted(file, part="data").startswith(hashed)


def model_meant(parameters: Parameters) -> str:
    """The name to open the model by. Raises InputError where none here is meant."""
    found = match_model(parameters)
    if found is None:
        said = " ".join(filter(None, (parameters.settings.get("Model"), parameters.settings.get("Model hash"))))
        remedy = "Paint with another one by -m MODEL; `giverny models` lists them."
        raise InputError("a model that is here", f"{said or 'a file that names none'}, which is not", remedy)
    return found.name


def _bare(name: str) -> str:
    """Of "SD/v1-5-pruned-emaonly.safetensors" it is "v1-5-pruned-emaonly"."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1].lower()
    return next((last.removesuffix(end) for end in _ENDINGS if last.endswith(end)), last)
