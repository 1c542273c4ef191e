"""Several sets as one, each a class of its own: what a judge that tells them apart learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..base.contracts import Sample, Source
from ..base.errors import InputError
from .attributes import attributes_of
from .head import Head


class Joined:
    """The pictures of all sets, one set after the other (a contracts.Source). sets: class -> the pictures of that class.

    What a set tells of its pictures is kept, but for "class". Where all sets are made of files, so is this.
    """

    def __init__(self, sets: Mapping[str, Source]) -> None:
        for source in sets.values():
            if not len(source):
                raise InputError("sets with pictures", f"{source.name}, which is empty")
        self.sets, self.classes = dict(sets), tuple(sets)
        self.name = " and ".join(source.name for source in sets.values())
        self.fingerprint = "-".join(f"{label}={source.fingerprint}" for label, source in sets.items())
        self._ends = np.cumsum([len(source) for source in sets.values()])
        if all(hasattr(source, "entries") for source in sets.values()):
            listed = [(label, entry) for label, source in sets.items() for entry in source.entries]  # type: ignore[attr-defined]
            self.entries = tuple(replace(entry, name=f"{label}/{entry.name}") for label, entry in listed)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _at(self, index: int) -> tuple[int, Source, int]:
        """(number of the class, its set, index in that)."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self.sets[self.classes[number]]
        return number, source, index - int(self._ends[number]) + len(source)

    def captions_of(self, index: int) -> tuple[str, ...]:
        _, source, place = self._at(index)
        return source.captions_of(place)

    def attributes_of(self, index: int) -> Mapping[str, str]:
        number, source, place = self._at(index)
        return {**attributes_of(source, place), "class": self.classes[number]}

    def read(self, index: int) -> Sample:
        number, source, place = self._at(index)
        sample = source.read(place)
        return sample.model_copy(update={"label": number, "name": f"{self.classes[number]}/{sample.name}"})

    def head(self, count: int) -> Joined:
        """The first pictures of each set."""
        return Joined({label: Head(source, count) for label, source in self.sets.items()})
