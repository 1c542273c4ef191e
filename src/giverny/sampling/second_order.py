"""Samplers that ask for two estimates a step and remember nothing: Heun, Restart, DPM2 and DPM++ in their single-step forms.

Where a step makes sense in first order alone (`Stride.straight`; for DPM++ only from pure noise and to clean), it is one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base.contracts import Estimate, Levels, NoiseSource, Step
from .spacings import from_ratios, karras, ve_levels
from .stride import Churn, Stride, Walk, not_negative, strides
from .walks import ancestral, churned, handed


def heun(
    estimate: Estimate,
    x: Tensor,
    levels: Levels,
    noise: NoiseSource,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Walk:
    """Heun's method (Karras et al. 2022, algorithm 2; without churn, which is the default, algorithm 1)."""
    return churned(estimate, x, levels, noise, Churn(s_churn, s_tmin, s_tmax, s_noise), _by_both_ends)


def _by_both_ends(estimate: Estimate, x: Tensor, clean: Tensor, stride: Stride, i: int) -> Tensor:
    """The end of a step along the mean of the slopes at both ends."""
    there = stride.land(x, clean)
    if stride.straight:
        return there
    ahead = (there - stride.b * estimate(there, stride.end, i)) / stride.t
    return there + 0.5 * stride.bend * (ahead - stride.noise(x, clean))


def dpm2(
    estimate: Estimate,
    x: Tensor,
    levels: Levels,
    noise: NoiseSource,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Walk:
    """k-diffusion's DPM2, after DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927): the slope in the middle of log(sigma)."""
    return churned(estimate, x, levels, noise, Churn(s_churn, s_tmin, s_tmax, s_noise), _by_the_middle)


def dpm2_ancestral(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """k-diffusion's "DPM2 a": DPM2 down to less noise than asked for, the rest drawn anew. Options as of Euler a."""
    return ancestral(estimate, x, levels, noise, _by_the_middle, eta=eta, s_noise=s_noise)


def _by_the_middle(estimate: Estimate, x: Tensor, clean: Tensor, stride: Stride, i: int) -> Tensor:
    """The end of a step along the slope that an estimate in its middle shows."""
    there = stride.land(x, clean)
    if stride.straight:
        return there
    half = stride.half()
    middle = half.land(x, clean)
    slope = (middle - half.b * estimate(middle, half.end, i)) / half.t
    return there + stride.bend * (slope - stride.noise(x, clean))


def dpmpp_2s_ancestral(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """DPM-Solver++(2S) (Lu et al. 2022, algorithm 1) with ancestral noise. Options as of Euler a."""
    return ancestral(estimate, x, levels, noise, _by_its_estimate, eta=eta, s_noise=s_noise)


def _by_its_estimate(estimate: Estimate, x: Tensor, clean: Tensor, stride: Stride, i: int) -> Tensor:
    """The end of a step for the whole of which the estimate in its middle serves."""
    if stride.length == math.inf:
        return stride.land(x, clean)
    half = stride.half()
    return stride.land(x, estimate(half.land(x, clean), half.end, i))


def dpmpp_sde(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """k-diffusion's "DPM++ SDE" with r = 1/2: an ancestral step to the middle, whose estimate serves for the whole step.

    Both draw noise from the same start, so a `brownian.TreeNoise` is what it is meant for. Options as of Euler a.
    """
    not_negative(eta=eta, s_noise=s_noise)
    for i, stride in enumerate(strides(levels)):
        target = clean = estimate(x, levels[i], i)
        if stride.length < math.inf:
            half = stride.half()
            down, fresh = half.fresh(eta)
            middle = down.land(x, clean)
            if fresh > 0:
                middle = middle + fresh * s_noise * noise(levels[i], half.end)
            target = estimate(middle, half.end, i)
        down, fresh = stride.fresh(eta)
        x = down.land(x, target)
        if fresh > 0:
            x = x + fresh * s_noise * noise(levels[i], levels[i + 1])
        x = yield from handed(i, levels, x, clean)
    return x


def restart(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, s_noise: float = 1.0) -> Walk:
    """Restart sampling (Xu et al. 2023, arXiv 2306.14878) by Heun's steps, with AUTOMATIC1111's rule for when and how often.

    Below 20 steps it is Heun. From 20 on, 9 steps (from 36 on, twice a quarter of all) are taken from the run, which becomes
    Karras's between its ends, and spent on going once more from a sigma / alpha of about 2 down to about 0.1, after noise has
    been added to get there. s_noise: factor on that noise.
    """
    not_negative(s_noise=s_noise)
    way = _with_restarts(levels)
    for i, stride in enumerate(way):
        if i and (rise := way[i - 1].rise(stride)) > 0:
            x = (stride.a / way[i - 1].b) * x + rise * s_noise * noise(way[i - 1].end, stride.start)
        clean = estimate(x, stride.start, i)
        x = _by_both_ends(estimate, x, clean, stride, i)
        edited = yield Step(i, len(way), stride.end, x, clean)
        x = x if edited is None else edited
    return x


def _with_restarts(levels: Levels) -> list[Stride]:
    """The steps of a run with restarts, each beginning where the last one ends or, at a restart, above it."""
    total, ratios = levels.steps, levels.ratios.double()
    if total < 20:
        return strides(levels)
    again, times = (9, 1) if total < 36 else (total // 4, 2)
    pure = int(torch.isinf(ratios[0]))  # what is infinite has no place in a ramp
    ramp = karras(total - again * times - pure, ratios[-2], ratios[pure])
    main = torch.cat([ratios[:pure], ramp, ratios[-1:]])
    high, low = (int((main - ratio).abs().argmin()) for ratio in (2.0, 0.1))
    legs = [main]
    if high < low:
        inner = karras(again + 1, main[low], main[high])[1:-1]
        legs = [main[: low + 1], *[torch.cat([main[high, None], inner, main[low, None]])] * times, main[low:]]
    form = ve_levels if bool((levels.alpha == 1).all()) else from_ratios
    return [stride for leg in legs if len(leg) > 1 for stride in strides(form(leg))]
