"""Noise schedules: the table a model was trained with; the levels a sampler walks through (`spacings`) are seen through here.

Tables: linear (Ho et al. 2020, arXiv 2006.11239), scaled linear (latent diffusion, arXiv 2112.10752), cosine (Nichol
and Dhariwal 2021, arXiv 2102.09672), zero-terminal SNR (Lin et al. 2023, arXiv 2305.08891).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..base.contracts import Frozen
from ..base.errors import choose
from ..base.table import level_of, time_of
from .names import SPACINGS, Spacing
from .spacings import from_ratios, levels, ve_levels

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
TABLES: tuple[str, ...] = get_args(Table)


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
