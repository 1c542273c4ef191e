"""Samplers of first order: one estimate a step, no memory. See `samplers` for what all of them share."""

from __future__ import annotations

import math

from torch import Tensor

from ..base.contracts import Estimate, Levels, NoiseSource, Step
from .stride import Churn, Walk, not_negative, strides


def ddpm(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
    """Ancestral sampling from the posterior q(x' | x, clean), with its own ("small") variance: DDIM with eta = 1."""
    return _ancestral(estimate, x, levels, noise, eta=1.0, s_noise=1.0)


def ddim(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 0.0) -> Walk:
    """DDIM (Song et al. 2020, eq. 12). eta: 0 draws no noise and is the Euler step, 1 is DDPM."""
    return _ancestral(estimate, x, levels, noise, eta=eta, s_noise=1.0)


def euler(
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
    """Euler's method on the probability flow ODE in sigma / alpha; draws no noise without churn (see `Churn`)."""
    not_negative(s_churn=s_churn, s_noise=s_noise)
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise)
    for i, stride in enumerate(strides(levels)):
        x, stride, here = churn(x, stride, levels, i, noise)
        clean = estimate(x, here, i)
        x = stride.land(x, clean)
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x


def euler_ancestral(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """k-diffusion's "Euler a": Euler down to less noise than asked for, the rest drawn anew.

    eta: share of fresh noise (0 none, 1 all that the posterior allows). s_noise: factor on it, 1 keeps the variance.
    """
    return _ancestral(estimate, x, levels, noise, eta=eta, s_noise=s_noise)


def lcm(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
    """Consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1): each clean estimate is noised anew.

    For latent consistency models (arXiv 2310.04378) the estimate is `consistency.consistent`'s.
    """
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        x = stride.b * clean
        if stride.t > 0:
            x = x + stride.t * noise(levels[i], levels[i + 1])
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x


def _ancestral(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float, s_noise: float) -> Walk:
    """The step that DDPM, DDIM and Euler a share; they differ in how much of the noise is fresh."""
    not_negative(eta=eta, s_noise=s_noise)
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        down, fresh = stride.fresh(eta)
        x = down.land(x, clean)
        if fresh > 0:
            x = x + fresh * s_noise * noise(levels[i], levels[i + 1])
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x
