"""A source made worse on purpose, or smaller: what experiments hold a full one against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..base.contracts import Sample, Source
from .attributes import attributes_of
from .folders import FolderSource


class ShuffledCaptions:
    """The same pictures, each with the captions and the label of another one (a contracts.Source): a known-bad control. Whoever
    learns from it can learn what pictures look like, but not what words mean."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.classes = source, source.name, source.classes
        self.fingerprint = f"{source.fingerprint}-shuffled"
        order = np.random.default_rng(0).permutation(len(source))
        self._other = np.empty(len(source), np.int64)
        self._other[order] = np.roll(order, 1)  # one round through all: nobody keeps their own

    def __len__(self) -> int:
        return len(self.source)

    def captions_of(self, index: int) -> tuple[str, ...]:
        return self.source.captions_of(int(self._other[index]))

    def attributes_of(self, index: int) -> Mapping[str, str]:
        return attributes_of(self.source, int(self._other[index]))

    def read(self, index: int) -> Sample:
        own = self.source.read(index)
        label = None if own.label is None else self.source.read(int(self._other[index])).label
        return own.model_copy(update={"captions": self.captions_of(index), "label": label})


class Chosen:
    """Some pictures of a source (a contracts.Source). rows: their indices in it; what: says which, for the fingerprint."""

    def __init__(self, source: Source, rows: Sequence[int], what: str) -> None:
        self.source, self.rows, self.name, self.classes = source, tuple(rows), source.name, source.classes
        self.fingerprint = f"{source.fingerprint}-{what}"
        if isinstance(source, FolderSource):
            self.entries = tuple(source.entries[row] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def captions_of(self, index: int) -> tuple[str, ...]:
        return self.source.captions_of(self.rows[index])

    def attributes_of(self, index: int) -> Mapping[str, str]:
        return attributes_of(self.source, self.rows[index])

    def read(self, index: int) -> Sample:
        return self.source.read(self.rows[index])
