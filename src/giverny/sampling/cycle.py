"""A picture as the noises that ancestral sampling would have drawn to paint it (Wu and De la Torre 2022, arXiv 2210.05559).

`encode` draws a way from a picture into noise and notes, for each step of ancestral sampling along it, what one model's mean
leaves to chance. `decode` walks the way again with these notes: with the same model it comes back to the picture, with another
one to a picture of what that one has learnt, which shares the noises. Ours: the last step draws no noise, so that what is left
there is kept as it is; and a run may begin at any level, as SDEdit does.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from ..base.contracts import Estimate, Levels, NoiseSource, Step
from .stride import Walk, strides


@dataclass(frozen=True, eq=False)
class Noises:
    """Pictures (B, C, H, W) as one model sees them along one run of levels."""

    start: Tensor  # (B, C, H, W), the sample at the run's first level
    left: tuple[Tensor, ...]  # per step (B, C, H, W): what is added to its mean


def encode(
    estimate: Estimate, clean: Tensor, start: Tensor, levels: Levels, noise: NoiseSource, eta: float = 1.0
) -> Generator[Step, Tensor | None, Noises]:
    """The noises of clean samples under a model's estimate, told step by step.

    start: the clean samples with unit noise at the first level; noise: that of the steps. eta: as of `first_order.ddim`, 1 for
    DDPM; with less, the noises say less of the picture.
    """
    x, left = start, []
    for i, stride in enumerate(strides(levels)):
        down, fresh = stride.fresh(eta)
        after = down.land(x, clean)  # a draw from q(x' | x, clean)
        if fresh > 0:
            after = after + fresh * noise(levels[i], levels[i + 1])
        seen = estimate(x, levels[i], i)
        left.append(after - down.land(x, seen))
        edited = yield Step(i, levels.steps, levels[i + 1], after, seen)
        x = after if edited is None else edited
    return Noises(start, tuple(left))


def decode(estimate: Estimate, noises: Noises, levels: Levels, eta: float = 1.0, first: int = 0) -> Walk:
    """The samples that a model's estimate makes of these noises along the same levels, step by step, as a sampler does.

    first: the number of the first step, where others went before.
    """
    x = noises.start
    for i, (stride, left) in enumerate(zip(strides(levels), noises.left, strict=True)):
        clean = estimate(x, levels[i], i)
        x = stride.fresh(eta)[0].land(x, clean) + left
        edited = yield Step(first + i, first + levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x
