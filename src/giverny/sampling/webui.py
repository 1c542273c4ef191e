"""Seeds as AUTOMATIC1111's web interface reads them (modules/rng.py and processing.py): which noise a picture's numbers mean.

What is ours, and the default, is `base.runtime.PictureStreams`; this is for painting pictures of that program again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.streams import Stream, stream

ALIKE = 0.9995  # mean cosine from which that program mixes noises in a straight line


class Seed(NamedTuple):
    """Seed and variation seed of one picture; strength: how far the initial noise is towards that of the variation seed."""

    seed: int
    variation: int = 0
    strength: float = 0.0


def batch_seeds(seed: int, count: int, variation: int = 0, strength: float = 0.0) -> list[Seed]:
    """The seeds of `count` pictures asked for at once, those of later batches further on: picture k has seed + k.

    With a variation (strength above 0) all have the same seed, and variation seed + k.
    """
    return [Seed(seed if strength else seed + k, variation + k, strength) for k in range(count)]


def column_slerp(share: float, low: Tensor, high: Tensor) -> Tensor:
    """Between two noises (C, H, W) along spheres, each column (of H numbers) by itself: `strength` of a variation seed.

    Where both are almost alike, it is a straight line that leads the other way, as in the original: share 1 gives `low`.
    """
    cosine = (low / low.norm(dim=1, keepdim=True) * (high / high.norm(dim=1, keepdim=True))).sum(1).clamp(-1, 1)
    if cosine.mean() > ALIKE:
        return low * share + high * (1 - share)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    straight = sine < 1e-6  # ours: the original divides by 0
    sine = torch.where(straight, 1, sine)
    near = torch.where(straight, 1 - share, torch.sin((1 - share) * angle) / sine)
    far = torch.where(straight, share, torch.sin(share * angle) / sine)
    return near.unsqueeze(1) * low + far.unsqueeze(1) * high


class WebuiStreams:
    """Noise of B pictures as that program draws it; in place of `PictureStreams` for `PictureNoise` and `TreeNoise`.

    source: "cpu" or "nv", its setting "RNG". Only the initial noise is mixed with that of variation seeds. resize_from: width
    and height in pixels of the picture whose noise is pasted into the middle of this one's, or None (`factor` pixels are one
    place of the sample). delta: "ENSD", added to the seeds for all draws but the first.
    """

    def __init__(
        self,
        seeds: Sequence[Seed],
        source: str = "nv",
        resize_from: tuple[int, int] | None = None,
        delta: int = 0,
        factor: int = 8,
    ) -> None:
        self.seeds, self.source = tuple(one.seed for one in seeds), source
        self.toward: tuple[tuple[int, float] | None, ...] = (None,) * len(self.seeds)  # its Brownian trees are not mixed
        self._seeds, self._resize_from, self._delta, self._factor = tuple(seeds), resize_from, delta, factor
        self._streams: list[Stream] | None = None

    def again(self) -> WebuiStreams:
        """For a second pass over the same pictures: the same seeds from their beginning, variations and all."""
        return WebuiStreams(self._seeds, self.source, self._resize_from, self._delta, self._factor)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Unit noise, float32 (B, *shape) on the CPU: first the initial noise, then a fresh draw each time."""
        if self._streams is not None:
            return torch.stack([own.normal(shape) for own in self._streams])
        streams = [stream(seed, self.source) for seed in self.seeds]
        first = [self._first(own, one, tuple(shape)) for own, one in zip(streams, self._seeds, strict=True)]
        self._streams = [stream(seed + self._delta, self.source) for seed in self.seeds] if self._delta else streams
        return torch.stack(first)

    def _first(self, own: Stream, one: Seed, shape: tuple[int, ...]) -> Tensor:
        small = shape
        if self._resize_from is not None:
            small = shape[0], self._resize_from[1] // self._factor, self._resize_from[0] // self._factor
        drawn = own.normal(shape) if small == shape else stream(one.seed, self.source).normal(small)
        if one.strength:
            drawn = column_slerp(one.strength, drawn, stream(one.variation, self.source).normal(small))
        return drawn if small == shape else pasted(drawn, own.normal(shape))


def pasted(patch: Tensor, ground: Tensor) -> Tensor:
    """The middle of `patch` (C, h, w) in the middle of `ground` (C, H, W); either may be the larger along each side."""
    result = ground.clone()
    cuts = []
    for inner, outer in zip(patch.shape[1:], ground.shape[1:], strict=True):
        shift = (outer - inner) // 2  # rounded down: an odd surplus of the patch leaves one place of the ground as it was
        size = inner if shift >= 0 else inner + 2 * shift
        cuts.append((slice(max(shift, 0), max(shift, 0) + size), slice(max(-shift, 0), max(-shift, 0) + size)))
    (top, from_top), (left, from_left) = cuts
    result[:, top, left] = patch[:, from_top, from_left]
    return result
