"""Guidance: a weighted sum of estimates under several conditions, as one function from noisy sample to clean estimate.

Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) is two branches; composition of prompts (Liu et al.
2022, arXiv 2206.01714) and edits are more. The interval in which it acts is from Kynkäänniemi et al. 2024 (arXiv
2404.07724). That its direction changes slowly from step to step and may be kept for a few was seen by Lv et al. 2024
(FasterCache, arXiv 2410.19355), who keep parts of its spectrum; here it is kept whole.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.contracts import Branch, Condition, ConditionPlan, Denoise, Estimate, NoiseLevel, Prepared, Probe
from ..base.errors import InputError
from .contrast import Origin, rescaled


@dataclass(frozen=True, eq=False)
class FixedPlan:
    """The same branches at every step."""

    branches: Sequence[Branch]

    def at(self, step: int, total: int, level: NoiseLevel) -> Sequence[Branch]:
        return self.branches


@dataclass(frozen=True, eq=False)
class IntervalPlan:
    """`inside` while the level lies in the interval, `outside` otherwise; see `position` for the scale."""

    inside: Sequence[Branch]
    outside: Sequence[Branch]
    interval: tuple[float, float]

    def at(self, step: int, total: int, level: NoiseLevel) -> Sequence[Branch]:
        low, high = self.interval
        return self.inside if low <= position(level) <= high else self.outside


@dataclass(frozen=True, eq=False)
class StagedPlan:
    """Plans one after the other: plans[i] from step starts[i] on. starts rise from 0."""

    starts: Sequence[int]
    plans: Sequence[ConditionPlan]

    def at(self, step: int, total: int, level: NoiseLevel) -> Sequence[Branch]:
        return self.plans[bisect_right(self.starts, step) - 1].at(step, total, level)


def position(level: NoiseLevel) -> float:
    """Where one level, shape (), lies between clean (0) and pure noise (1): 2/pi * atan(sigma / alpha)."""
    return 2 / math.pi * math.atan2(float(level.sigma), float(level.alpha))


def classifier_free(
    positive: Condition,
    negative: Condition | None,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> ConditionPlan:
    """negative + scale * (positive - negative) inside the interval, the positive branch alone outside it.

    positive, negative: conditions of B pictures; negative is usually that of the empty prompt. scale: 1 leaves the
    model as it is, at the cost of one branch. interval: (low, high) on the scale of `position`, 0 clean to 1 pure
    noise. Raises InputError for a scale other than 1 without a negative condition, and for an interval outside 0..1.
    """
    return composed([(positive, 1.0)], negative, scale, interval)


def composed(
    positive: Sequence[tuple[Condition, float]],
    negative: Condition | None,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> ConditionPlan:
    """negative + scale * sum of weight * (positive - negative) inside the interval, the same at scale 1 outside it.

    positive: conditions and their weights, as joined by AND in a prompt; see `classifier_free` for the rest.
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise InputError("a guidance interval with 0 <= low <= high <= 1", str(interval), "0 is clean, 1 is pure noise")
    if not math.isfinite(scale):
        raise InputError("a finite guidance scale", str(scale), "1 is unguided, 1.5 to 8 are usual")

    def branches(scale: float) -> tuple[Branch, ...]:
        terms = tuple(Branch(condition, scale * weight) for condition, weight in positive)
        rest = 1 - sum(term.weight for term in terms)
        if rest == 0:
            return terms
        if negative is None:
            raise InputError("a negative or empty condition to move away from", f"guidance {scale} alone", "use guidance 1")
        return (*terms, Branch(negative, rest))

    inside = branches(scale)
    return FixedPlan(inside) if scale == 1 or (low, high) == (0, 1) else IntervalPlan(inside, branches(1), (low, high))


def guided(
    denoise: Denoise,
    plan: ConditionPlan,
    total: int,
    probe: Probe | None = None,
    grad: bool = False,
    every: int = 1,
    rescale: float = 0.0,
    origin: Origin | None = None,
) -> Estimate:
    """The estimate a sampler asks for: at each call, the sum of weight * denoised over the branches in force.

    k branches of B pictures are one network call of B samples and k * B rows of conditions, branch after branch (a probe
    sees them in this order);
    branches of weight 0 cost nothing. Conditions are prepared once per set of them, in a cache that lives and dies with
    the returned function, so that two requests never meet. total: steps of the run, for the plan.
    grad: False runs the network in inference mode, opened and closed within each call (the sum is an ordinary tensor);
    True leaves the gradient mode to the caller.
    every: 1 asks all branches at each call. At n, only each n-th call does while the same branches are in force; in between
    the first is asked alone, and what the others added to it last time is added again. Cheaper by up to (k - 1) / k of the
    rows, and no longer exact.
    rescale: share 0 to 1 of the way to the standard deviation of the first branch's prediction, see `contrast.rescaled`; wants
    the `origin` of this denoiser's estimates. What is kept for `every` is kept as it was before.
    Raises InputError where the denoiser cannot do what is asked, and for `every` below 1.
    """
    if rescale and origin is None:
        raise ValueError("rescaled guidance wants the origin of the denoiser's estimates")
    if every < 1:
        raise InputError("guidance worked out at every estimate (1) or more seldom (2, 3, ...)", str(every))
    for wanted, asked in (("probe", probe is not None), ("grad", grad)):
        if asked and wanted not in denoise.can:
            given = f"one that can {sorted(denoise.can) or 'neither'}"
            raise InputError(f"a denoiser that can {wanted!r}", given, "use the plain backend")
    cache: dict[tuple[int, ...], tuple[list[Condition], Prepared]] = {}

    def prepared_for(conditions: list[Condition]) -> Prepared:
        key = tuple(id(c) for c in conditions)
        if key not in cache:
            while len(cache) >= 8:  # a plan that makes new conditions at every step must not fill the memory
                del cache[next(iter(cache))]
            # the conditions are kept beside what was made of them: an id means nothing once its object is gone
            cache[key] = conditions, denoise.prepare(Condition.join(conditions))
        return cache[key][1]

    pushed: Push | None = None

    def estimate(x: Tensor, level: NoiseLevel, step: int) -> Tensor:
        nonlocal pushed
        branches = [b for b in plan.at(step, total, level) if b.weight != 0]
        if not branches:
            raise ValueError(f"the condition plan has no branch with a weight at step {step}")
        if all(b.condition.rows is None for b in branches):  # told nothing, all branches say the same, and weigh 1 together
            branches = [Branch(branches[0].condition, 1.0)]
        push = pushed if pushed is not None and pushed.calls < every and pushed.branches == branches else None
        asked = branches if push is None else branches[:1]
        k = len(asked)
        with nullcontext() if grad else torch.inference_mode():
            prepared = prepared_for([b.condition for b in asked])
            cleans = denoise(x, level, prepared, probe).to(x.dtype).chunk(k)
        if push is not None:
            push.calls += 1
            result = cleans[0] + push.added
        else:
            result = branches[0].weight * cleans[0]
            for branch, clean in zip(branches[1:], cleans[1:], strict=True):
                result = torch.add(result, clean, alpha=branch.weight)
            pushed = Push(branches, (result - cleans[0]).detach()) if every > 1 and k > 1 else None
        if rescale and origin is not None and len(branches) > 1:
            return rescaled(result, cleans[0], origin(x, level), rescale)
        return result

    return estimate


@dataclass(eq=False)
class Push:
    """What guidance added to the estimate of its first branch, and for how many calls this has served."""

    branches: list[Branch]
    added: Tensor
    calls: int = 1
