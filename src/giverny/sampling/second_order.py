"""Samplers that ask for two estimates a step and remember nothing: Heun, Restart, DPM2 and DPM++ in their single-step forms.

Where a step makes sense in first order alone (`Stride.straight`; for DPM++ only from pure noise and to clean), it is one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base.contracts import Estimate, Levels, NoiseLevel, NoiseSource, Step
from .spacings import from_ratios, karras, ve_levels
from .stride import Churn, Stride, Walk, not_negative, strides


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
    not_negative(s_churn=s_churn, s_noise=s_noise)
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise)
    for i, stride in enumerate(strides(levels)):
        x, stride, here = churn(x, stride, levels, i, noise)
        x, clean = _heun_step(estimate, x, stride, here, levels[i + 1], i)
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x


def _heun_step(
    estimate: Estimate, x: Tensor, stride: Stride, here: NoiseLevel, there: NoiseLevel, i: int
) -> tuple[Tensor, Tensor]:
    """The sample after the mean of the slopes at both ends, and the first clean estimate."""
    clean = estimate(x, here, i)
    start, x = x, stride.land(x, clean)
    if not stride.straight:
        ahead = (x - stride.b * estimate(x, there, i)) / stride.t
        x = x + 0.5 * stride.bend * (ahead - stride.noise(start, clean))
    return x, clean


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
    not_negative(s_churn=s_churn, s_noise=s_noise)
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise)
    for i, stride in enumerate(strides(levels)):
        x, stride, here = churn(x, stride, levels, i, noise)
        clean = estimate(x, here, i)
        x = _by_the_middle(estimate, x, clean, stride, i)
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x


def dpm2_ancestral(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """k-diffusion's "DPM2 a": DPM2 down to less noise than asked for, the rest drawn anew. Options as of Euler a."""
    not_negative(eta=eta, s_noise=s_noise)
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        down, fresh = stride.fresh(eta)
        x = _by_the_middle(estimate, x, clean, down, i)
        if fresh > 0:
            x = x + fresh * s_noise * noise(levels[i], levels[i + 1])
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x


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
    not_negative(eta=eta, s_noise=s_noise)
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        down, fresh = stride.fresh(eta)
        target = clean
        if down.length < math.inf:
            half = down.half()
            target = estimate(half.land(x, clean), half.end, i)
        x = down.land(x, target)
        if fresh > 0:
            x = x + fresh * s_noise * noise(levels[i], levels[i + 1])
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x


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
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
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
        x, clean = _heun_step(estimate, x, stride, stride.start, stride.end, i)
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
