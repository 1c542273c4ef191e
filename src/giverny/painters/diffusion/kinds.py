"""Training pictures of two kinds: paintings from a recipe's source, and a photograph beside each, drawn at random anew in every
epoch. Both orders are functions of (seed, step), so a resumed run sees the pairs it would have seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch

from ...base.contracts import Batch, Source
from ...base.runtime import derive_seed
from ...data.catalog import open_named
from ...data.crops import held_out, thinned
from ...data.loader import Kept, Loader
from ...data.toy import ToyShapes
from .recipe import DataRecipe


class Photographs:
    """The other kind. name: of a set or a path; "toy" is made on the spot, other shapes than the paintings'."""

    def __init__(self, name: str, data: DataRecipe) -> None:
        self.source: Source = ToyShapes(count=192, size=16, seed=1) if name == "toy" else open_named(name)
        self.data = data
        seed = derive_seed(self.source.fingerprint)
        self.held, kept = held_out(self.source, data.validation, seed)
        self.kept = thinned(self.source, kept, data.share, seed)
        self._pictures = Kept(self.source, data.size, data.channels)

    def loader(self, batch: int, seed: int, subset: np.ndarray, shard: tuple[int, int], workers: int) -> Loader:
        data = self.data
        return Loader(
            self.source, size=data.size, channels=data.channels, batch=batch, seed=derive_seed(seed, "photographs"),
            fit=data.fit, flip=data.flip, workers=workers, subset=subset, shard=shard, kept=self._pictures,
        )  # fmt: skip

    def held_beside(self, paintings: Batch) -> Batch:
        """The held-out pictures of both kinds, as many as there are of the fewer."""
        rows = min(len(paintings["pixels"]), len(self.held))
        drawn = self.loader(len(self.held), 0, self.held, (0, 1), 0).batch_at(0)["pixels"]
        return pair({key: value[:rows] for key, value in paintings.items()}, {"pixels": drawn[:rows]})


def pair(paintings: Batch, photographs: Batch) -> Batch:
    """What PairsObjective takes."""
    return {"pixels": paintings["pixels"], "photographs": photographs["pixels"]}


def paired(paintings: Loader, photographs: Loader, start: int, device: torch.device) -> Iterator[Batch]:
    """Batches of both from step `start` on, without end."""
    with closing(paintings.stream(start)) as ours, closing(photographs.stream(start)) as theirs:  # type: ignore[type-var]
        for both in zip(ours, theirs, strict=True):
            yield {key: value.to(device) for key, value in pair(*both).items()}
