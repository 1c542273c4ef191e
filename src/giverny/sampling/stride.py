"""One step between two noise levels, x = a clean + s noise -> b clean + t noise: what all samplers are written with.

With alpha = 1 (a = b = 1) the formulas are k-diffusion's (Karras et al. 2022, arXiv 2206.00364, and Lu et al. 2022, arXiv
2211.01095); with alpha^2 + sigma^2 = 1 they are those of DDPM (arXiv 2006.11239) and DDIM (arXiv 2010.02502). Levels are
Python floats (float64), the sample keeps its dtype.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..base.contracts import Levels, NoiseLevel, NoiseSource, Step
from ..base.errors import InputError

Walk: TypeAlias = Generator[Step, Tensor | None, Tensor]
NOISY = 100.0  # sigma / alpha from which a slope in it is no guide for a whole step; Stable Diffusion's tables end at 15


@dataclass(frozen=True)
class Stride:
    """From alpha = a, sigma = s > 0 to alpha = b > 0, sigma = t, with less noise: t / b < s / a."""

    a: float
    s: float
    b: float
    t: float

    @property
    def shrink(self) -> float:
        """sigma / alpha there, as a part of what it is here: e^-h of the papers. 0 from pure noise, and to clean."""
        return self.t * self.a / (self.b * self.s)

    @property
    def length(self) -> float:
        """h, the way in log(alpha / sigma); infinite from pure noise, and to clean."""
        a, s, b, t = self.a, self.s, self.b, self.t
        return math.log(s * b / (a * t)) if a > 0 and t > 0 else math.inf

    @property
    def bend(self) -> float:
        """b (t / b - s / a): what a slope in sigma / alpha is multiplied with. Wants a > 0."""
        return self.t - self.b * self.s / self.a

    @property
    def straight(self) -> bool:
        """Whether only a first-order step makes sense: it leads to clean, where a slope in sigma / alpha has no meaning, or
        from almost pure noise, where it changes that ratio so much that a mean of two slopes overshoots (from 20000, where
        the cosine table ends, by more than the sample itself)."""
        return not (self.t > 0 and self.a * NOISY > self.s)

    @property
    def start(self) -> NoiseLevel:
        return _level(self.a, self.s)

    @property
    def end(self) -> NoiseLevel:
        return _level(self.b, self.t)

    def rise(self, after: Stride) -> float:
        """Standard deviation of the noise that leads from this step's end to a noisier start of the next, else 0."""
        if (after.a, after.s) == (self.b, self.t):
            return 0.0
        return math.sqrt(max(0.0, after.s**2 - (after.a * self.t / self.b) ** 2))

    def land(self, x: Tensor, clean: Tensor) -> Tensor:
        """The end of the step if clean is right: clean and noise are kept, b * clean + t * (x - a * clean) / s."""
        return (self.t / self.s) * x + (self.b - self.a * self.t / self.s) * clean

    def noise(self, x: Tensor, clean: Tensor) -> Tensor:
        """The noise in x if clean is right: the slope of x / alpha in sigma / alpha."""
        return (x - self.a * clean) / self.s

    def quieter(self, keep: float) -> Stride:
        """The step to a part of the noise asked for; the rest is drawn anew."""
        return Stride(self.a, self.s, self.b, self.t * keep)

    def half(self) -> Stride:
        """The way to the middle in log(sigma / alpha), in the form of the run: alpha stays 1 where it is 1."""
        return Stride(self.a, self.s, math.sqrt(self.a * self.b), math.sqrt(self.s * self.t))

    def part(self, share: float) -> Stride:
        """The way to this share of it in log(sigma / alpha), in the form of the run. Wants a > 0 and t > 0."""
        return Stride(self.a, self.s, self.a * (self.b / self.a) ** share, self.s * (self.t / self.s) ** share)

    def fresh(self, eta: float) -> tuple[Stride, float]:
        """An ancestral step: how far down to go, and how much new noise to add.

        With q = `shrink` the posterior's standard deviation is t sqrt(1 - q^2), both for alpha = 1 (k-diffusion's sigma_up)
        and for alpha^2 + sigma^2 = 1 (DDIM's sigma_t); written with q it holds for alpha = 0 as well (q = 0).
        """
        share = min(1.0, eta * math.sqrt(1 - self.shrink**2))
        return self.quieter(math.sqrt(1 - share**2)), share * self.t


def _level(alpha: float, sigma: float) -> NoiseLevel:
    return NoiseLevel(torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))


def strides(levels: Levels) -> list[Stride]:
    """The steps of a run. ValueError where noise does not fall at every one, or the formulas would divide by 0."""
    alpha, sigma = levels.alpha.double().tolist(), levels.sigma.double().tolist()
    for i in range(levels.steps):
        if not sigma[i] * alpha[i + 1] > sigma[i + 1] * alpha[i]:
            here, there = (alpha[i], sigma[i]), (alpha[i + 1], sigma[i + 1])
            raise ValueError(f"noise must fall at every step; step {i} goes from {here} to {there} (alpha, sigma)")
    return [Stride(alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]) for i in range(levels.steps)]


def not_negative(**amounts: float) -> None:
    """InputError where an amount of noise asked for is below 0."""
    for name, amount in amounts.items():
        if not amount >= 0:
            raise InputError(
                f"{name} of 0 or more", f"{name} = {amount}", "0 draws no fresh noise; eta = 1 is the usual amount"
            )


class Churn(NamedTuple):
    """Noise added before a step, which is then taken from the noisier level (Karras et al., algorithm 2).

    s_churn: over the whole run, in units of log(sigma); a step adds s_churn / steps of it, at most log(sqrt 2). s_tmin, s_tmax:
    only where sigma / alpha lies between them. s_noise: factor on the noise.
    """

    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float

    def __call__(
        self, x: Tensor, stride: Stride, levels: Levels, i: int, noise: NoiseSource
    ) -> tuple[Tensor, Stride, NoiseLevel]:
        """The sample, the step and the level after churning. Where churn is asked for at all, every step draws, as in
        k-diffusion: so each draw is the same as there. From pure noise nothing is added, there being no more."""
        if self.s_churn == 0:
            return x, stride, levels[i]
        drawn = noise(levels[i], levels[i + 1])
        if stride.a == 0 or not self.s_tmin <= stride.s / stride.a <= self.s_tmax:
            return x, stride, levels[i]
        more = 1 + min(self.s_churn / levels.steps, math.sqrt(2) - 1)
        noisier = Stride(stride.a, stride.s * more, stride.b, stride.t)
        x = x + drawn * self.s_noise * stride.s * math.sqrt(more**2 - 1)
        return x, noisier, noisier.start
