"""DPM-Solver of orders 1 to 3 (Lu et al. 2022, arXiv 2206.00927) with steps of its own, as k-diffusion has it: "DPM fast", even
in log(sigma / alpha), and "DPM adaptive", as long as an estimate of the error allows.

Of a run's levels they take the ends alone: the noisiest, and the cleanest that is still noisy. There they stop, at alpha = 1,
as in k-diffusion, where that sample is taken for clean. From pure noise, of which no logarithm is known, they first take the
run's own first step (ours).
"""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from ..base.contracts import Estimate, Levels, NoiseSource, Step
from .spacings import from_ratios, ve_levels
from .stride import Stride, Walk, not_negative, strides
from .walks import handed

# Of the adaptive solver, k-diffusion's numbers: error allowed of a value, and at all; how far the first step goes in
# log(sigma / alpha); a step is taken where the next one may have this part of its length or more.
RELATIVE, ABSOLUTE, FIRST, TAKEN = 0.05, 0.0078, 0.05, 0.81
SHORTEST = 1e-3  # ours: a step that is taken whatever its error, since a network in few bits may never satisfy it


def dpm_fast(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """DPM-Solver-fast: as many estimates as the run has steps, in steps of third order and a last one or two of less.

    `Step.index` counts estimates; the last of each step is told. Options as of Euler a.
    """
    not_negative(eta=eta, s_noise=s_noise)
    x, i = yield from _begun(estimate, x, levels)
    count = levels.steps - i
    rest = [2, 1] if count % 3 == 0 else [count % 3]
    orders = [3] * (count // 3 + 1 - len(rest)) + rest
    ends = _ends(levels, i)
    if ends is None:
        return x
    own = _between(levels, torch.linspace(*ends, len(orders) + 1, dtype=torch.float64), ends[1])
    for k, stride in enumerate(strides(own)):
        asked = _Asked(estimate, i, levels.steps)
        clean = asked(x, stride)
        down, fresh = _fresh(stride, eta, math.exp(-ends[1]))
        _, x = _tried(asked, x, clean, down, orders[k])
        if fresh > 0:
            x = x + fresh * s_noise * noise(own[k], own[k + 1])
        i = asked.calls
        edited = yield Step(i - 1, levels.steps, own[k + 1], x, clean)
        x = x if edited is None else edited
    return x


def dpm_adaptive(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """DPM-Solver-23: steps as long as the difference between second and third order allows.

    How many steps there will be is not known: `Step.total` is None. The error is that of all samples together, so for a picture
    that does not depend on its batch run it alone. Options as of Euler a.
    """
    not_negative(eta=eta, s_noise=s_noise)
    x, i = yield from _begun(estimate, x, levels)
    ends = _ends(levels, i)
    if ends is None:
        return x
    (place, last), length, told = ends, FIRST, i
    before, clean = x / levels[i].for_sample(x)[0], None
    while place < last - 1e-5:
        there = min(last, place + length)
        own = _between(levels, torch.tensor([place, there], dtype=torch.float64), last)
        (stride,) = strides(own)
        asked = _Asked(estimate, i, levels.steps)
        clean = asked(x, stride) if clean is None else clean
        down, fresh = _fresh(stride, eta, math.exp(-last))
        low, high = _tried(asked, x, clean, down, 3)
        i = asked.calls
        error = _error(low / down.b, high / down.b, before)
        factor = 1 + math.atan((error + 1e-8) ** (-1 / (1.5 if eta else 3)) - 1)
        taken = not factor < TAKEN or length <= SHORTEST  # what is no number goes on, for the caller to see
        length = max(length * factor, SHORTEST)
        if taken:
            x, before = high, low / down.b
            if fresh > 0:
                x = x + fresh * s_noise * noise(own[0], own[1])
            edited = yield Step(told, None, own[1], x, clean)
            x = x if edited is None else edited
            place, clean, told = there if math.isfinite(error) else last, None, told + 1
    return x


class _Asked:
    """An estimate that counts how often it is asked; prompts and guidance change with that count."""

    def __init__(self, estimate: Estimate, calls: int, most: int) -> None:
        self.estimate, self.calls, self.most = estimate, calls, most

    def __call__(self, x: Tensor, stride: Stride) -> Tensor:
        """At the start of a stride."""
        self.calls += 1
        return self.estimate(x, stride.start, min(self.calls, self.most) - 1)


def _begun(estimate: Estimate, x: Tensor, levels: Levels) -> Generator[Step, Tensor | None, tuple[Tensor, int]]:
    """The sample, and how many of the run's own steps were taken: that from pure noise, and all where none has two ends."""
    count = int(levels.alpha[0] == 0)
    if _ends(levels, count) is None:
        count = levels.steps
    for i, stride in enumerate(strides(levels)[:count]):
        clean = estimate(x, levels[i], i)
        x = yield from handed(i, levels, stride.land(x, clean), clean)
    return x, count


def _ends(levels: Levels, first: int) -> tuple[float, float] | None:
    """log(alpha / sigma) at both ends of what is left of a run; None where that is nothing."""
    last = levels.steps - int(levels.sigma[-1] == 0)
    if last <= first:
        return None
    return -math.log(levels.ratios[first]), -math.log(levels.ratios[last])


def _between(levels: Levels, places: Tensor, last: float) -> Levels:
    """Levels at these log(alpha / sigma), in the form of the run, but at `last` with alpha = 1."""
    made = (ve_levels if bool((levels.alpha == 1).all()) else from_ratios)(torch.exp(-places))
    if places[-1] < last:
        return made
    return Levels(torch.cat([made.alpha[:-1], torch.ones(1).double()]), torch.cat([made.sigma[:-1], torch.exp(-places[-1:])]))


def _fresh(stride: Stride, eta: float, least: float) -> tuple[Stride, float]:
    """As `Stride.fresh`, but never below the sigma / alpha where the run ends."""
    down, fresh = stride.fresh(eta)
    if down.t >= stride.b * least:
        return down, fresh
    down = Stride(stride.a, stride.s, stride.b, stride.b * least)
    rest = 1 - (down.t / stride.t) ** 2
    return down, stride.t * math.sqrt(rest) if rest > 1e-12 else 0.0


def _tried(asked: _Asked, x: Tensor, clean: Tensor, stride: Stride, order: int) -> tuple[Tensor, Tensor]:
    """A step's end in the order below, and in this one: the paper's, by how the noise that is estimated changes on the way."""
    straight, h, noise = stride.land(x, clean), stride.length, stride.noise(x, clean)
    if order == 1:
        return straight, straight

    def change(part: Stride, more: Tensor | float = 0.0) -> Tensor:
        there = part.land(x, clean) + more
        return (there - part.b * asked(there, Stride(part.b, part.t, stride.b, stride.t))) / part.t - noise

    first = 1 / 2 if order == 2 else 1 / 3
    near = change(stride.part(first))
    second = straight - stride.t / (2 * first) * math.expm1(h) * near
    if order == 2:
        return straight, second
    far = stride.part(2 / 3)
    bent = change(far, -far.t * 2 * (math.expm1(2 / 3 * h) / (2 / 3 * h) - 1) * near)
    return second, straight - stride.t * 3 / 2 * (math.expm1(h) / h - 1) * bent


def _error(low: Tensor, high: Tensor, before: Tensor) -> float:
    """How far two orders lie apart: 1 is what is allowed."""
    allowed = torch.clamp(RELATIVE * torch.maximum(low.abs(), before.abs()), min=ABSOLUTE)
    return float(torch.linalg.vector_norm((low - high) / allowed)) / low.numel() ** 0.5
