"""Samplers: pure generator functions from noise to a clean sample.

Each is `(estimate, x, levels, noise) -> Generator[Step, edited x or None, final x]`, keeps all state in local
variables and calls nobody back: the caller pulls steps, may stop at any time, and may `send` an edited sample that
the next step starts from. Networks enter only as `estimate(x, level, step) -> clean`, which is never asked at a clean
level.

All formulas are written for x = alpha * clean + sigma * noise. With alpha = 1 they are k-diffusion's (Karras et al.
2022, arXiv 2206.00364, and Lu et al. 2022, arXiv 2211.01095); with alpha^2 + sigma^2 = 1 they are DDPM (arXiv
2006.11239) and DDIM (arXiv 2010.02502). Where a second-order formula would divide by alpha = 0, that step is first
order (ours). Weights are Python floats (float64), the sample keeps its dtype. No gradient or inference mode is opened
here, so none can leak to the caller across a `yield`; that is the estimate's business.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import TypeAlias

from torch import Tensor

from ..base.contracts import Estimate, Levels, NoiseSource, Sampler, Step
from ..base.errors import InputError, nearest

Walk: TypeAlias = Generator[Step, Tensor | None, Tensor]


def ddpm(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
    """Ancestral sampling from the posterior q(x' | x, clean), with its own ("small") variance: DDIM with eta = 1."""
    return _ancestral(estimate, x, levels, noise, eta=1.0, s_noise=1.0)


def ddim(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 0.0) -> Walk:
    """DDIM (Song et al. 2020, eq. 12). eta: 0 draws no noise and is the Euler step, 1 is DDPM."""
    return _ancestral(estimate, x, levels, noise, eta=eta, s_noise=1.0)


def euler(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
    """Euler's method on the probability flow ODE in sigma / alpha; draws no noise."""
    return _ancestral(estimate, x, levels, noise, eta=0.0, s_noise=1.0)


def euler_ancestral(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float = 1.0, s_noise: float = 1.0
) -> Walk:
    """k-diffusion's "Euler a": Euler down to less noise than asked for, the rest drawn anew.

    eta: share of fresh noise (0 none, 1 all that the posterior allows). s_noise: factor on it, 1 keeps the variance.
    """
    return _ancestral(estimate, x, levels, noise, eta=eta, s_noise=s_noise)


def heun(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
    """Heun's method (Karras et al., algorithm 1 without churn): two estimates a step. Draws no noise.

    A step to clean, or from less than one part of signal in a hundred of noise, is first order: the slope in sigma /
    alpha has no meaning at sigma = 0, and from almost pure noise one step changes sigma / alpha so much that the mean
    of the two slopes overshoots (from 20000, where the cosine table ends, by more than the sample itself).
    """
    alpha, sigma = _scalars(levels)
    for i in range(levels.steps):
        a, s, b, t = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        clean = estimate(x, levels[i], i)
        start, x = x, _toward(x, clean, a, s, b, t)
        if a > 0.01 * s and t > 0:
            slope = (start - a * clean) / s
            ahead = (x - b * estimate(x, levels[i + 1], i)) / t
            x = x + 0.5 * (t - b * s / a) * (ahead - slope)
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x


def dpmpp_2m(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
    """DPM-Solver++(2M) (Lu et al., algorithm 2), midpoint form: one estimate a step, the previous one as second order.
    The first step, the step after pure noise and the step to clean are first order. Draws no noise."""
    alpha, sigma = _scalars(levels)
    before, h_before = x, math.inf  # previous estimate, and how far ago in log(alpha / sigma): at first, infinitely
    for i in range(levels.steps):
        a, s, b, t = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        clean = estimate(x, levels[i], i)
        h = math.log(s * b / (a * t)) if a > 0 and t > 0 else math.inf
        target = clean
        if h < math.inf and h_before < math.inf:
            target = clean + 0.5 * h / h_before * (clean - before)
        x = _toward(x, target, a, s, b, t)
        before, h_before = clean, h
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x


def _ancestral(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, eta: float, s_noise: float) -> Walk:
    """The first-order step that Euler, Euler a, DDIM and DDPM share; they differ in how much of the noise is fresh.

    With q = ratio' / ratio, the posterior's standard deviation is sigma' sqrt(1 - q^2), both for alpha = 1
    (k-diffusion's sigma_up) and for alpha^2 + sigma^2 = 1 (DDIM's sigma_t); written with q it holds for alpha = 0 as
    well (q = 0).
    """
    if eta < 0:
        raise InputError("an eta of 0 or more", str(eta), "0 draws no fresh noise, 1 is the usual ancestral amount")
    alpha, sigma = _scalars(levels)
    for i in range(levels.steps):
        a, s, b, t = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        clean = estimate(x, levels[i], i)
        fresh = min(1.0, eta * math.sqrt(1 - (t * a / (b * s)) ** 2))
        x = _toward(x, clean, a, s, b, t * math.sqrt(1 - fresh**2))
        if fresh * t > 0:
            x = x + fresh * t * s_noise * noise(levels[i], levels[i + 1])
        edited = yield Step(i, levels.steps, levels[i + 1], x, clean)
        x = x if edited is None else edited
    return x


def _toward(x: Tensor, clean: Tensor, a: float, s: float, b: float, t: float) -> Tensor:
    """From (alpha, sigma) = (a, s) to (b, t), keeping clean and noise: b * clean + t * (x - a * clean) / s."""
    return (t / s) * x + (b - a * t / s) * clean


def _scalars(levels: Levels) -> tuple[list[float], list[float]]:
    """alpha and sigma as float64 Python numbers; a run must lose noise at every step, or its formulas divide by 0."""
    alpha, sigma = levels.alpha.double().tolist(), levels.sigma.double().tolist()
    for i in range(levels.steps):
        if not sigma[i] * alpha[i + 1] > sigma[i + 1] * alpha[i]:
            here, there = (alpha[i], sigma[i]), (alpha[i + 1], sigma[i + 1])
            raise ValueError(f"noise must fall at every step; step {i} goes from {here} to {there} (alpha, sigma)")
    return alpha, sigma


def integrate(walk: Walk) -> Tensor:
    """Run a sampler to its end and return the final sample."""
    while True:
        try:
            next(walk)
        except StopIteration as end:
            final: Tensor = end.value
            return final


# ---------------------------------------------------------------------------------------------------------------------
# Names

SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_a": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}
SAMPLER_NAMES: tuple[str, ...] = tuple(SAMPLERS)


def sampler_name(name: str) -> str:
    """The name in SAMPLERS that is meant: "DPM++ 2M", "Euler a" and "euler-ancestral" are understood as well.

    Raises InputError, naming the nearest spelling, where none is.
    """

    def fold(text: str) -> str:
        return "".join(c for c in text.lower().replace("++", "pp").replace("ancestral", "a") if c.isalnum())

    known = {fold(k): k for k in SAMPLERS}
    if fold(name) not in known:
        close = nearest(fold(name), known)
        for folded, plain in known.items():
            close = close.replace(folded, plain)
        raise InputError("a known sampler", repr(name), close)
    return known[fold(name)]


def get_sampler(name: str) -> Sampler:
    """The sampler of that name, in any usual spelling. Raises InputError where there is none."""
    return SAMPLERS[sampler_name(name)]


def calls_per_step(name: str) -> int:
    """How often a sampler asks for an estimate in one step (its last step may ask once less)."""
    return 2 if sampler_name(name) == "heun" else 1
