"""Samplers of first order: one estimate a step, no memory. See `samplers` for what all of them share."""

from __future__ import annotations

import math

from torch import Tensor

from ..base.contracts import Estimate, Levels, NoiseSource
from .stride import Churn, Walk, strides
from .walks import ancestral, churned, handed, landed


def ddpm(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
    """Ancestral sampling from the posterior q(x' | x, clean), with its own ("small") variance: DDIM with eta = 1."""
    return ancestral(estimate, x, levels, noise, landed, eta=1.0, s_noise=1.0)


def ddim(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 0.0) -> Walk:
    """DDIM (Song et al. 2020, eq. 12). eta: 0 draws no noise and is the Euler step, 1 is DDPM."""
    return ancestral(estimate, x, levels, noise, landed, eta=eta, s_noise=1.0)


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
    return churned(estimate, x, levels, noise, Churn(s_churn, s_tmin, s_tmax, s_noise), landed)


def euler_ancestral(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """k-diffusion's "Euler a": Euler down to less noise than asked for, the rest drawn anew.

    eta: share of fresh noise (0 none, 1 all that the posterior allows). s_noise: factor on it, 1 keeps the variance.
    """
    return ancestral(estimate, x, levels, noise, landed, eta=eta, s_noise=s_noise)


def lcm(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
    """Consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1): each clean estimate is noised anew.

    For latent consistency models (arXiv 2310.04378) the estimate is `consistency.consistent`'s.
    """
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        x = stride.b * clean
        if stride.t > 0:
            x = x + stride.t * noise(levels[i], levels[i + 1])
        x = yield from handed(i, levels, x, clean)
    return x
