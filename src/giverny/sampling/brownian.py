"""Brownian trees: noise of the SDE samplers that belongs to the way between two noise levels, not to the order of asking.

W is one Brownian path per picture, over sigma / alpha from 0 to infinity. Noise for a step is (W(there) - W(here)) / sqrt(the
way between them), as in k-diffusion's BrownianTreeNoiseSampler, so two samplers, or one with twice the steps, follow the same
path, and the increments of neighbouring steps add up to that of both.

The tree is ours ("giverny-1"): k-diffusion's is torchsde's, whose numbers it does not give. Levy's construction (1948): halving
intervals, each middle being drawn from its own seed between ends that are known. Intervals are halved in sigma / (1 + sigma),
which makes infinity an ordinary end; variances are those of sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..base.contracts import NoiseLevel
from ..base.runtime import derive_seed
from ..base.streams import stream
from .noise import PictureNoise, Streams

TREE = "giverny-1"
DEPTH = 20  # halvings: two levels closer than 2^-20 in sigma / (1 + sigma) share their last random number
KEPT = 4  # values of the path kept: each step ends where the next one begins


class BrownianTree:
    """One picture's Brownian path. seed, source: where its numbers come from; shape: of the sample."""

    def __init__(self, seed: int, shape: Sequence[int], source: str = "cpu") -> None:
        self.seed, self.shape, self.source = seed, tuple(shape), source
        self._known: dict[float, Tensor] = {}

    def noise(self, here: float, there: float) -> Tensor:
        """Unit noise (shape), float64, for the way from one sigma / alpha to another one; either may be infinite.

        The way from infinity is so long that what lies beyond its end no longer counts: it is the same for every end.
        """
        if math.isinf(here) or math.isinf(there):
            return self._normal(0) * (-1 if math.isinf(here) else 1)
        return (self.at(there) - self.at(here)) / math.sqrt(abs(there - here))

    def at(self, sigma: float) -> Tensor:
        """The path at sigma, 0 <= sigma < infinity: float64 (shape), of variance sigma. The same at every call."""
        found = self._known.get(sigma)
        if found is None:
            found = self._descend(sigma)
            # a new dict in one assignment: threads at worst work the same value out twice
            self._known = dict([*self._known.items(), (sigma, found)][-KEPT:])
        return found

    def _descend(self, sigma: float) -> Tensor:
        low, high = 0.0, 1.0  # ends of an interval in sigma / (1 + sigma)
        start, end = torch.zeros(self.shape, dtype=torch.float64), None  # the path there; at infinity it is unknown
        place = 1  # of the interval, in the order of a heap
        for _ in range(DEPTH):
            middle = (low + high) / 2
            value = self._between(place, _sigma(middle), _sigma(low), start, _sigma(high), end)
            if _sigma(middle) <= sigma:
                low, start, place = middle, value, 2 * place + 1
            else:
                high, end, place = middle, value, 2 * place
        return self._between(place, sigma, _sigma(low), start, _sigma(high), end)

    def _between(self, place: int, at: float, low: float, start: Tensor, high: float, end: Tensor | None) -> Tensor:
        """The path at a sigma between two where it is known, given its random number: the Brownian bridge."""
        if end is None:
            return start + math.sqrt(at - low) * self._normal(place)
        part = (at - low) / (high - low)
        return start + part * (end - start) + math.sqrt(part * (high - at)) * self._normal(place)

    def _normal(self, place: int) -> Tensor:
        return stream(derive_seed("brownian", TREE, self.seed, place), self.source).normal(self.shape).double()


def _sigma(place: float) -> float:
    return place / (1 - place) if place < 1 else math.inf


class TreeNoise(PictureNoise):
    """The noise of one run with a Brownian tree per picture; `initial` is the streams' draw, as ever.

    A picture with part of its noise from another seed has the weighted sum of both paths, which is Brownian as well; at the
    ends of the way it is either path to the bit. A tree of another shape is another tree.
    """

    def __init__(
        self,
        streams: Streams,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(streams, shape, dtype, device)
        self._paths = [
            [(self._tree(seed), 1.0)] if other is None else _blend(self._tree(seed), self._tree(other[0]), other[1])
            for seed, other in zip(streams.seeds, streams.toward, strict=True)
        ]

    @property
    def name(self) -> str:
        return f"{self.streams.source}+{TREE}"

    def __call__(self, here: NoiseLevel, there: NoiseLevel) -> Tensor:
        """Unit noise (B, C, H, W) for the way between two levels, the same whenever it is asked for. Levels of shape ()."""
        way = float(here.ratio), float(there.ratio)
        drawn = [sum(weight * tree.noise(*way) for tree, weight in path) for path in self._paths]
        return torch.stack([torch.as_tensor(one) for one in drawn]).to(self.device, self.dtype)

    def _tree(self, seed: int) -> BrownianTree:
        return BrownianTree(derive_seed("picture", seed, *self.shape), self.shape, self.streams.source)


def _blend(tree: BrownianTree, other: BrownianTree, share: float) -> list[tuple[BrownianTree, float]]:
    """Both paths with weights whose squares sum to 1, along the quarter circle."""
    if share in (0, 1):
        return [(other if share else tree, 1.0)]
    return [(tree, math.cos(share * math.pi / 2)), (other, math.sin(share * math.pi / 2))]
