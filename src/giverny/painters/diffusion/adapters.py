"""What prompts call up beside words: LoRAs, and textual inversions.

A model under LoRAs is networks of its own over the model's tensors, of which those that are changed are new and all others
shared. The model itself stays as it is, so that nothing is left of a LoRA that is no longer called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from ...base.contracts import Denoise
from ...base.errors import InputError
from ...base.files import sha256_file
from ...base.tensors import unfilled
from ...checkpoints.embeddings import read_embedding
from ...checkpoints.hashes import DATA, data_hash
from ...checkpoints.lora import Lora, merged, placed, read_lora
from ...checkpoints.native import fill
from ...text.calls import AdapterCall
from ...text.chunks import Inversions
from .recipe import Parts, assemble

CHANGED = ("denoiser", "text", "text_2")  # the networks that LoRAs change
FILES, MODELS = 8, 3  # LoRA files, and models under LoRAs, that are kept at most: the latest asked for


def adapted(parts: Parts, adapters: Sequence[tuple[Lora, float | Mapping[str, float]]]) -> Parts:
    """The parts with LoRAs added, each times a weight, or one for each of CHANGED. Raises InputError."""
    after = merged(_tensors(parts), adapters)
    recipe, encoder = parts.recipe, parts.encoder
    with unfilled():
        network, tower = recipe.denoiser.build(), recipe.text.build()
        second = recipe.second.text.build() if recipe.second else None
    fill(network, after["denoiser"], "denoiser")
    fill(tower, after["text"], "text")
    if second is not None:
        fill(second, after["text_2"], "text_2")
    return assemble(recipe, encoder.tokenizer, tower, encoder.projection, network, parts.autoencoder, second=second)


def _tensors(parts: Parts) -> dict[str, dict[str, torch.Tensor]]:
    return {name: part.state_dict() for name, part in parts.networks().items() if name in CHANGED}


Mark = tuple[str, int, int]  # path, size, time of change


@dataclass(frozen=True)
class Worn:
    """A model under LoRAs, and the form of its denoiser that paints."""

    parts: Parts
    denoise: Denoise


@dataclass(frozen=True)
class _File:
    mark: Mark
    lora: Lora
    hash: str  # 12 digits, by which other programs know it


class Adapters:
    """The LoRAs and textual inversions that the prompts of one painter may call. Several threads may ask at once.

    parts: the model. form: the form of a denoiser that paints. lora: the file of a LoRA by name, raising InputError;
    words: files of textual inversions by the words that call them. Both are None in a painter that has been given none.
    """

    def __init__(self, parts: Parts, form: Callable[[Parts], Denoise]) -> None:
        self.parts, self.form = parts, form
        self.lora: Callable[[str], Path] | None = None
        self.words: Callable[[], Mapping[str, Path]] | None = None
        self._files: dict[Mark, _File] = {}
        self._worn: dict[tuple[tuple[Mark, float, float], ...], Worn] = {}
        self._lock = Lock()

    def check(self, calls: Sequence[AdapterCall]) -> None:
        """Raises InputError for a call that this model cannot follow: before anything is painted, and without adding."""
        for call in calls:
            placed(self._file(call).lora, _tensors(self.parts))

    def worn(self, calls: Sequence[AdapterCall]) -> Worn:
        """The model under these LoRAs: kept from the last times, or made now. Raises InputError."""
        files = [self._file(call) for call in calls]
        key = tuple((file.mark, call.text, call.image) for file, call in zip(files, calls, strict=True))
        with self._lock:
            found = self._worn.pop(key, None)
            if found is None:
                weights = [{"text": call.text, "text_2": call.text, "denoiser": call.image} for call in calls]
                parts = adapted(self.parts, [(file.lora, weight) for file, weight in zip(files, weights, strict=True)])
                found = Worn(parts, self.form(parts))
            _keep(self._worn, key, found, MODELS)
        return found

    def _file(self, call: AdapterCall) -> _File:
        if self.lora is None or call.kind != "lora" or call.rank is not None:
            wanted = "a prompt without adapters, which this painter cannot take" if self.lora is None else "<lora:name:weight>"
            rank = "" if call.rank is None else f" with a rank of {call.rank}"
            raise InputError(wanted, f"{call.kind} {call.name!r}{rank}", "remove it from the prompt")
        path = self.lora(call.name)
        mark = _mark(path)
        with self._lock:
            found = self._files.pop(mark, None) or _File(mark, read_lora(path), data_hash(path))
            _keep(self._files, mark, found, FILES)
        return found

    def inversions(self, texts: Sequence[str]) -> Inversions | None:
        """The textual inversions whose words stand in these texts. Raises InputError for one that this model cannot read."""
        vectors = {}
        towers = dict(zip(("text", "text_2"), self.parts.encoder.widths, strict=False))
        wanted = " and ".join(map(str, towers.values()))
        for word, path in self._named(texts).items():
            held = read_embedding(path)[1]
            found = {tower: held[tower] for tower in towers if tower in held}
            widths = {tower: value.shape[1] for tower, value in found.items()}
            if widths != towers or len({len(value) for value in found.values()}) > 1:
                given = (
                    f"{path}, of width {' and '.join(map(str, widths.values()))}"
                    if found
                    else f"{path}, for another text tower"
                )
                raise InputError(f"a textual inversion of width {wanted}, as this model reads words", given, "Move it away.")
            vectors[word] = torch.cat(list(found.values()), dim=1)
        return Inversions(self.parts.encoder.tokenizer, vectors) if vectors else None

    def _named(self, texts: Sequence[str]) -> dict[str, Path]:
        """The files whose words stand in these texts."""
        if self.words is None:
            return {}
        split, lower = self.parts.encoder.tokenizer.split, [text.lower() for text in texts]
        maybe = {word: path for word, path in self.words().items() if any(word.lower() in text for text in lower)}
        read = [split(text)[0] for text in texts] if maybe else []
        ids = {word: split(word)[0] for word in maybe}
        return {word: path for word, path in maybe.items() if any(_within(ids[word], text) for text in read)}

    def infotext(self, calls: Sequence[AdapterCall], words: Sequence[str]) -> dict[str, str]:
        """What infotext says of a picture under these LoRAs whose prompts had these textual inversions, as AUTOMATIC1111."""
        files = self.words() if words and self.words is not None else {}
        hashes = {
            "Lora hashes": {call.name: self._file(call).hash for call in calls},
            "TI hashes": {word: sha256_file(files[word])[:DATA] for word in words},
        }
        return {key: ", ".join(f"{name}: {digits}" for name, digits in found.items()) for key, found in hashes.items() if found}


def _mark(path: Path) -> Mark:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError("a readable LoRA", f"{path}: {error.strerror or error}") from error
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def _keep(kept: dict[Any, Any], key: object, value: object, most: int) -> None:
    """Put in as the latest; the oldest go."""
    kept[key] = value
    while len(kept) > most:
        del kept[next(iter(kept))]


def _within(part: Sequence[int], whole: Sequence[int]) -> bool:
    return any(tuple(whole[i : i + len(part)]) == tuple(part) for i in range(len(whole) - len(part) + 1)) if part else False
