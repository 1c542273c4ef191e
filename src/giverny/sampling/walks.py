"""Loops that samplers share: from step to step, with an estimate at the start of each. What differs is how a step ends.

An end is `(estimate, x, clean, stride, i) -> x`: where the step leads whose first estimate is `clean`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

from torch import Tensor

from ..base.contracts import Estimate, Levels, NoiseSource, Step
from .stride import Churn, Stride, Walk, not_negative, strides

End: TypeAlias = Callable[[Estimate, Tensor, Tensor, Stride, int], Tensor]


def handed(i: int, levels: Levels, x: Tensor, clean: Tensor) -> Generator[Step, Tensor | None, Tensor]:
    """Hand out the sample after step i, and take back what the caller makes of it."""
    edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
    return x if edited is None else edited


def churned(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, churn: Churn, end: End) -> Walk:
    """Steps from a little more noise than there is, where that is asked for (see `Churn`)."""
    not_negative(s_churn=churn.s_churn, s_noise=churn.s_noise)
    for i, stride in enumerate(strides(levels)):
        x, stride, here = churn(x, stride, levels, i, noise)
        clean = estimate(x, here, i)
        x = yield from handed(i, levels, end(estimate, x, clean, stride, i), clean)
    return x


def ancestral(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, end: End, *, eta: float, s_noise: float
) -> Walk:
    """Steps down to less noise than asked for, the rest drawn anew. eta: how much is fresh; s_noise: factor on it."""
    not_negative(eta=eta, s_noise=s_noise)
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        down, fresh = stride.fresh(eta)
        x = end(estimate, x, clean, down, i)
        if fresh > 0:
            x = x + fresh * s_noise * noise(levels[i], levels[i + 1])
        x = yield from handed(i, levels, x, clean)
    return x


def landed(estimate: Estimate, x: Tensor, clean: Tensor, stride: Stride, i: int) -> Tensor:
    """The end of a step of first order."""
    return stride.land(x, clean)
