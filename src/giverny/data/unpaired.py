"""Two sets of pictures that do not correspond: what is given, and what it is to look like (Zhu et al. 2017).

Batches go through what is given epoch by epoch, and draw what is wanted at random. As all batches here they are a function
of (seed, step).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..base.contracts import Batch, Sample, Source
from ..base.errors import InputError
from .chance import hashed
from .head import Head
from .loader import Fit, Kept, Loader


class Unpaired:
    """Both sets as one (a contracts.Source): what is wanted, then what is given."""

    classes: tuple[str, ...] = ()

    def __init__(self, wanted: Source, given: Source) -> None:
        for source in (wanted, given):
            if not len(source):
                raise InputError("two sets with pictures", f"{source.name}, which is empty")
        self.wanted, self.given = wanted, given
        self.name = f"{given.name} to {wanted.name}"
        self.fingerprint = f"{given.fingerprint}-{wanted.fingerprint}"

    def __len__(self) -> int:
        return len(self.wanted) + len(self.given)

    def _at(self, index: int) -> tuple[Source, int]:
        first = len(self.wanted)
        return (self.wanted, index) if index < first else (self.given, index - first)

    def captions_of(self, index: int) -> tuple[str, ...]:
        source, place = self._at(index)
        return source.captions_of(place)

    def read(self, index: int) -> Sample:
        source, place = self._at(index)
        return source.read(place)

    def head(self, count: int) -> Unpaired:
        """The first pictures of both."""
        return Unpaired(Head(self.wanted, count), Head(self.given, count))


class _Drawn(Loader):
    """Pictures drawn with replacement, each draw an epoch of its own."""

    def rows_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        places = step * self.batch + np.asarray(self._rows)
        return places, self._subset[hashed("drawn", self._seed, 0, places) % np.uint64(len(self._subset))]


class UnpairedLoader(Loader):
    """Batches of both sets. Mirrored and cut out of a somewhat larger picture, each picture for itself."""

    def __init__(
        self,
        source: Unpaired,
        *,
        size: tuple[int, int],  # width and height of what is handed out
        batch: int,
        seed: int,
        fit: Fit = "crop",
        flip: bool = False,
        larger: tuple[int, int] | None = None,  # width and height of what random parts of that size are cut out of
        shard: tuple[int, int] = (0, 1),
        workers: int = 2,
        given: np.ndarray | None = None,  # indices to take; None: all
        wanted: np.ndarray | None = None,
        kept: tuple[Kept, Kept] | None = None,  # of what is given and of what is wanted, at the larger size
    ) -> None:
        larger = larger or size
        common: dict[str, Any] = dict(size=larger, channels=3, batch=batch, fit=fit, flip=flip, shard=shard)
        first, second = kept or (None, None)
        super().__init__(source.given, **common, seed=seed, workers=workers, subset=given, kept=first)
        self._wanted = _Drawn(source.wanted, **common, seed=seed + 1, workers=0, subset=wanted, kept=second)
        self._cut, self._spare = size, (larger[0] - size[0], larger[1] - size[1])
        self._longest = max(len(self._subset), len(self._wanted._subset))

    def batch_at(self, step: int) -> Batch:
        """given, wanted: float32 (b, 3, H, W) in [-1, 1]; epochs: int64 (b,), of the larger set."""
        places = step * self.batch + np.asarray(self._rows)
        return {
            "given": self._part(super().batch_at(step)["pixels"], *self.rows_at(step)),
            "wanted": self._part(self._wanted.batch_at(step)["pixels"], *self._wanted.rows_at(step)),
            "epochs": torch.from_numpy(places // self._longest),
        }

    def _part(self, pixels: torch.Tensor, epochs: np.ndarray, indices: np.ndarray) -> torch.Tensor:
        if not any(self._spare):
            return pixels
        drawn = zip(("across", "down"), self._spare, strict=True)
        across, down = ((hashed(name, self._seed, epochs, indices) % np.uint64(spare + 1)).tolist() for name, spare in drawn)
        wide, high = self._cut
        return torch.stack([p[:, y : y + high, x : x + wide] for p, x, y in zip(pixels, across, down, strict=True)])
