"""Seeds as ComfyUI reads them (comfy/sample.py): one draw for all pictures of a batch, from one seed.

So a picture is known by the seed and by its row in the batch, and the first one alone is what a batch of one gives. What is
ours, and the default, is `base.runtime.PictureStreams`; this is for painting pictures of that program again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.runtime import derive_seed
from ..base.streams import Stream, stream


class Place(NamedTuple):
    """One picture: row `row` of the `of` that were drawn from this seed."""

    seed: int
    row: int = 0
    of: int = 1


class ComfyStreams:
    """Noise of B pictures as that program draws it; in place of `PictureStreams` for `PictureNoise` and `TreeNoise`.

    The initial noise is always torch's on the CPU. source: of the later draws; "cpu" goes on with the same stream, which is
    what it does without a graphics card, "nv" has an NVIDIA card's own stream of the same seed. Rows beside those asked for are
    drawn and left out.
    """

    def __init__(self, places: Sequence[Place], source: str = "cpu") -> None:
        self.source, self._places = source, tuple(places)
        # Brownian trees are one a picture, and ours: those of the rows behind the first must be others.
        self.seeds = tuple(one.seed if one.row == 0 else derive_seed("row", one.seed, one.row) for one in places)
        self.toward: tuple[tuple[int, float] | None, ...] = (None,) * len(self.seeds)
        self._batches = {(one.seed, one.of): stream(one.seed, "cpu") for one in places}
        self._later: dict[tuple[int, int], Stream] | None = None

    def again(self) -> ComfyStreams:
        """For a second pass over the same pictures, there a sampler of its own: the same seeds from their beginning."""
        return ComfyStreams(self._places, self.source)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Unit noise, float32 (B, *shape) on the CPU: first the initial noise, then a fresh draw each time."""
        streams = self._batches if self._later is None else self._later
        drawn = {(seed, of): own.normal((of, *shape)) for (seed, of), own in streams.items()}
        if self._later is None:
            fresh = {batch: stream(batch[0], self.source) for batch in streams}
            self._later = streams if self.source == "cpu" else fresh
        return torch.stack([drawn[one.seed, one.of][one.row] for one in self._places])
