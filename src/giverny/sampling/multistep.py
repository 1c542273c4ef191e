"""Samplers of one estimate a step that remember earlier ones: LMS, PLMS, and DPM++ in its multistep forms.

A step from pure noise or to clean, or with nothing to remember, is of lower order. What lies infinitely far back, as pure noise
does, is no memory.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..base.contracts import Estimate, Levels, NoiseSource
from ..base.errors import InputError
from .stride import NOISY, Walk, not_negative, strides
from .walks import handed


def lms(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, order: int = 4) -> Walk:
    """Linear multistep (Adams-Bashforth on uneven steps) in sigma / alpha, as in k-diffusion; draws no noise.

    order: slopes that a step is made of, at most. Their polynomial is integrated exactly, where k-diffusion uses quadrature.
    """
    if order < 1:
        raise InputError("an order of at least 1", str(order), "4 is usual")
    past: list[tuple[float, Tensor]] = []  # sigma / alpha and slope there, the latest first
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        slope = stride.noise(x, clean)
        x = stride.land(x, clean)
        if stride.a * NOISY > stride.s:
            past = [(stride.s / stride.a, slope), *past][:order]
            weights = _adams([ratio for ratio, _ in past], stride.t / stride.b)
            # The weights sum to the whole way, which is gone already: only the differences of the slopes are left.
            for weight, (_, earlier) in zip(weights[1:], past[1:], strict=True):
                x = x + stride.b * weight * (earlier - slope)
        x = yield from handed(i, levels, x, clean)
    return x


def _adams(nodes: list[float], end: float) -> list[float]:
    """The integrals from nodes[0] to end of the Lagrange polynomials of all nodes."""
    weights = []
    for j, node in enumerate(nodes):
        polynomial = [1.0]  # coefficients of powers of (tau - nodes[0]), lowest first
        for k, other in enumerate(nodes):
            if k != j:
                root, scale = other - nodes[0], node - other
                raised = [0.0, *polynomial]
                polynomial = [(up - root * c) / scale for up, c in zip(raised, [*polynomial, 0.0], strict=True)]
        way = end - nodes[0]
        weights.append(sum(c * way ** (n + 1) / (n + 1) for n, c in enumerate(polynomial)))
    return weights


def plms(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
    """Pseudo linear multistep (Liu et al. 2022, arXiv 2202.09778) without its Runge-Kutta start, as in CompVis's code.

    The weights are those of even steps of time: use it with the spacings timesteps, leading or ddim. The first step asks for a
    second estimate, at its end. Draws no noise.
    """
    past: list[Tensor] = []  # the noise at earlier steps, the latest first
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        slope = stride.noise(x, clean)
        start, x = x, stride.land(x, clean)
        if stride.a * NOISY > stride.s:
            if past:
                mean = _pseudo([slope, *past])
            elif stride.straight:
                mean = slope
            else:
                mean = 0.5 * (slope + (x - stride.b * estimate(x, levels[i + 1], i)) / stride.t)
            x = (stride.b / stride.a) * start + stride.bend * mean
        past = [slope, *past][:3]
        x = yield from handed(i, levels, x, clean)
    return x


def _pseudo(noises: list[Tensor]) -> Tensor:
    """Eq. 12 of Liu et al. for 2, 3 or 4 estimates of the noise, the latest first."""
    weights = {2: (3, -1), 3: (23, -16, 5), 4: (55, -59, 37, -9)}[len(noises)]
    return sum((w / sum(weights)) * n for w, n in zip(weights, noises, strict=True))  # type: ignore[return-value]


def dpmpp_2m(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
    """DPM-Solver++(2M) (Lu et al., algorithm 2), midpoint form: one estimate a step, the previous one as second order.
    The first step, the step after pure noise and the step to clean are first order. Draws no noise."""
    before, h_before = x, math.inf  # previous estimate, and how far ago in log(alpha / sigma): at first, infinitely
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        target, h = clean, stride.length
        if h < math.inf and h_before < math.inf:
            target = clean + 0.5 * h / h_before * (clean - before)
        x = stride.land(x, target)
        before, h_before = clean, h
        x = yield from handed(i, levels, x, clean)
    return x


def dpmpp_2m_sde(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """k-diffusion's "DPM++ 2M SDE" in its midpoint form: DPM-Solver++(2M) for the SDE. Options as of Euler a.

    With eta = 0 it is DPM++ 2M.
    """
    return _multistep_sde(estimate, x, levels, noise, eta=eta, s_noise=s_noise, order=2, midpoint=True)


def dpmpp_2m_sde_heun(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """k-diffusion's "DPM++ 2M SDE" with solver_type "heun": the slope of the estimate is integrated exactly."""
    return _multistep_sde(estimate, x, levels, noise, eta=eta, s_noise=s_noise, order=2, midpoint=False)


def dpmpp_3m_sde(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """k-diffusion's "DPM++ 3M SDE": two earlier estimates give slope and curvature of the clean estimate."""
    return _multistep_sde(estimate, x, levels, noise, eta=eta, s_noise=s_noise, order=3, midpoint=False)


def _multistep_sde(
    estimate: Estimate,
    x: Tensor,
    levels: Levels,
    noise: NoiseSource,
    *,
    eta: float,
    s_noise: float,
    order: int,
    midpoint: bool,
) -> Walk:
    """The step that the three share, in h = log(alpha' / sigma') - log(alpha / sigma); they differ in how they remember.

    The SDE takes a step of (1 + eta) h and puts back noise of standard deviation sigma' sqrt(1 - e^(-2 eta h)).
    """
    not_negative(eta=eta, s_noise=s_noise)
    past: list[tuple[float, Tensor]] = []  # length of the step that began with it, and estimate; the latest first
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        keep = stride.shrink**eta
        x = stride.quieter(keep).land(x, clean)
        if stride.length < math.inf:
            h = (1 + eta) * stride.length
            slope, curve = _differences(clean, past, stride.length)
            first = 0.5 * -math.expm1(-h) if midpoint else 1 + math.expm1(-h) / h
            if slope is not None:
                x = x + stride.b * first * slope
            if curve is not None:
                x = x - stride.b * (first / h - 0.5) * curve
        if stride.t > 0 and keep < 1:
            x = x + stride.t * math.sqrt(1 - keep**2) * s_noise * noise(levels[i], levels[i + 1])
        past = [(stride.length, clean), *past][: order - 1] if stride.length < math.inf else []
        x = yield from handed(i, levels, x, clean)
    return x


def _differences(clean: Tensor, past: list[tuple[float, Tensor]], length: float) -> tuple[Tensor | None, Tensor | None]:
    """First and second divided difference of the estimates, per step of `length`; None where there are too few."""
    if not past:
        return None, None
    near = past[0][0] / length
    first = (clean - past[0][1]) / near
    if len(past) < 2:
        return first, None
    far = past[1][0] / length
    second = (past[0][1] - past[1][1]) / far
    curve = (first - second) / (near + far)
    return first + curve * near, curve
