"""Noise schedules: the table a model was trained with, and the levels a sampler walks through.

Tables: linear (Ho et al. 2020, arXiv 2006.11239), scaled linear (latent diffusion, arXiv 2112.10752), cosine (Nichol
and Dhariwal 2021, arXiv 2102.09672), zero-terminal SNR (Lin et al. 2023, arXiv 2305.08891). Spacings: Karras et al.
2022 (arXiv 2206.00364), "normal" as in k-diffusion, "leading" and "trailing" as in diffusers, "ddim" as in CompVis.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..base.contracts import Frozen, Levels, NoiseLevel
from ..base.errors import InputError, choose
from ..base.table import level_of, log_ratios, time_of

__all__ = [
    "SPACINGS",
    "TABLES",
    "ScheduleRecipe",
    "Spacing",
    "Table",
    "beta_table",
    "from_ratios",
    "level_of",
    "levels",
    "time_of",
    "ve_levels",
    "zero_terminal",
]

Table = Literal["linear", "scaled_linear", "cosine"]
Spacing = Literal["normal", "karras", "ddim", "trailing", "leading"]
TABLES: tuple[str, ...] = get_args(Table)
SPACINGS: tuple[str, ...] = get_args(Spacing)


# ---------------------------------------------------------------------------------------------------------------------
# Training tables


class ScheduleRecipe(Frozen):
    """How much noise each training time means. The defaults are Stable Diffusion's betas."""

    kind: Table = Field("scaled_linear", description="shape of the table")
    steps: int = Field(1000, ge=2, description="number of training times")
    beta_start: float = Field(0.00085, gt=0, lt=1, description="first beta (unused by cosine)")
    beta_end: float = Field(0.012, gt=0, lt=1, description="last beta (unused by cosine)")
    zero_terminal_snr: bool = Field(False, description="end in pure noise; needs v or sample prediction")

    @model_validator(mode="after")
    def _rising(self) -> ScheduleRecipe:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} must not exceed beta_end {self.beta_end}")
        return self

    def table(self) -> Tensor:
        """alphas_cumprod, float64, shape (steps,)."""
        table = beta_table(self.kind, self.steps, self.beta_start, self.beta_end)
        return zero_terminal(table) if self.zero_terminal_snr else table


def beta_table(kind: Table, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """alphas_cumprod of a schedule, float64, shape (steps,). An unknown kind is an InputError."""
    choose(kind, TABLES, "noise schedule")
    if kind == "cosine":
        # eq. 17 of Nichol and Dhariwal: the offset 0.008 keeps the first betas from being too small to learn from
        times = torch.arange(steps + 1, dtype=torch.float64) / steps
        signal = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    elif kind == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)


def zero_terminal(alphas_cumprod: Tensor, last: float = 0.0) -> Tensor:
    """The table moved and stretched so that its first entry stays and its last becomes `last` (Lin et al., alg. 1).

    last: exactly 0 by default; some programs write 4.8973451890853435e-08 there to keep sigma / alpha finite.
    """
    alphas = alphas_cumprod.double().sqrt()
    table = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
    table[-1] = last
    return table


# ---------------------------------------------------------------------------------------------------------------------
# Levels of a run


def levels(table: Tensor, steps: int, spacing: Spacing = "normal", rho: float = 7.0) -> Levels:
    """The noise levels of a run, float64 on the CPU, variance preserving, noisiest first, ending in the clean (1, 0).

    table: (T,) alphas_cumprod. steps: network steps, at least 1; all spacings but normal and karras want at most T.
    spacing: normal    even in time from the last training time to the first;
             karras    even in (sigma / alpha)^(1 / rho) from the table's largest to its smallest. A zero-terminal table
                       has no largest: there the run starts at alpha = 0, goes down one even step of time, and is Karras
                       from there, since a ramp from the last finite ratio (thousands) would waste most steps on noise;
             trailing  every T/steps-th time counted from the last one;
             leading   every (T // steps)-th time counted from time 1, so the noisiest times are left out;
             ddim      as leading, but all such times below T: one more or so where steps does not divide T (30 -> 31).
    """
    choose(spacing, SPACINGS, "level spacing")
    table = table.detach().to("cpu", torch.float64)
    if steps < 1:
        raise InputError("at least 1 step", str(steps), "choose 10 to 50 steps")
    if steps > len(table) and spacing not in ("normal", "karras"):
        remedy = "take fewer steps, or the spacing 'normal' or 'karras'"
        raise InputError(f"at most {len(table)} steps with the spacing {spacing!r}", str(steps), remedy)
    noisy = _karras(table, steps, rho) if spacing == "karras" else level_of(table, _times(spacing, len(table), steps))
    end = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return Levels(torch.cat([noisy.alpha, end[:1]]), torch.cat([noisy.sigma, end[1:]]))


def _times(spacing: Spacing, total: int, steps: int) -> Tensor:
    """Training times of a run, falling, (steps,) or, for ddim, about so many."""
    if spacing == "normal":
        return torch.linspace(total - 1, 0, steps, dtype=torch.float64)
    if spacing == "trailing":
        return (total - torch.arange(steps, dtype=torch.float64) * total / steps).round() - 1
    stride = total // steps
    if spacing == "ddim":
        # counting from 1 would pass the last time where every time is taken, hence clamp and unique
        return (torch.arange(0, total, stride) + 1).clamp(max=total - 1).unique().flip(0)
    offset = min(1, total - 1 - (steps - 1) * stride)
    return (torch.arange(steps) * stride + offset).flip(0)


def _karras(table: Tensor, steps: int, rho: float) -> NoiseLevel:
    """Eq. 5 of Karras et al. between the table's ends, as VP levels of shape (steps,); see `levels` for alpha = 0."""
    pure = 1 if table[-1] <= 0 else 0  # steps that start from pure noise
    start = level_of(table, (len(table) - 1) * (1 - pure / steps)).ratio
    end = torch.exp(log_ratios(table)[0])
    ramp = torch.linspace(0, 1, steps - pure, dtype=torch.float64)
    ratios = (start ** (1 / rho) + ramp * (end ** (1 / rho) - start ** (1 / rho))) ** rho
    return _preserving(torch.cat([ratios.new_full((pure,), math.inf), ratios]))


def _preserving(ratios: Tensor) -> NoiseLevel:
    """Levels with alpha^2 + sigma^2 = 1 and sigma / alpha = ratios; an infinite ratio is alpha = 0, sigma = 1."""
    alpha = torch.rsqrt(1 + ratios.double() ** 2)
    return NoiseLevel(alpha, torch.where(torch.isinf(ratios), 1.0, ratios.double() * alpha))


def from_ratios(ratios: Tensor) -> Levels:
    """Variance-preserving levels of given sigma / alpha, shape (N + 1,); infinite means pure noise, 0 means clean."""
    level = _preserving(ratios)
    return Levels(level.alpha, level.sigma)


def ve_levels(ratios: Tensor) -> Levels:
    """Variance-exploding levels, alpha = 1 and sigma = ratios: k-diffusion's form. Infinite ratios are a ValueError."""
    if torch.isinf(ratios).any():
        raise ValueError("a run from pure noise (alpha = 0) has no variance-exploding form; use from_ratios")
    return Levels(torch.ones_like(ratios, dtype=torch.float64), ratios.double())
