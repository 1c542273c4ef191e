"""Discrete training tables: which noise level a training time stands for, and the way back.

A table is `alphas_cumprod` of Ho et al. 2020 (arXiv 2006.11239): shape (T,), falling, entry t = alpha^2 of training
time t, with sigma^2 = 1 - alpha^2. Between two entries the logarithm of sigma / alpha is linear in time, as in
k-diffusion, so that fractional times mean the same here as there. A zero-terminal table (Lin et al. 2023, arXiv
2305.08891) ends in alpha = 0, where that logarithm is infinite: in its last interval alpha itself is linear in time
(ours), which keeps the map continuous.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .contracts import NoiseLevel


def log_ratios(table: Tensor) -> Tensor:
    """log(sigma / alpha) of every entry, float64, shape (T,), rising; +inf at the end of a zero-terminal table."""
    table = table.double()
    return 0.5 * (torch.log1p(-table) - torch.log(table))


def level_of(table: Tensor, t: Tensor | float) -> NoiseLevel:
    """The variance-preserving noise level of training time t.

    table: (T,) alphas_cumprod, T >= 2. t: () or (B,), whole or fractional, clamped to [0, T - 1].
    Returns float64 tensors shaped like t, on the table's device; exactly alpha = 0 at the end of a zero-terminal table.
    """
    logs = log_ratios(table)
    t = torch.as_tensor(t, dtype=torch.float64, device=table.device).clamp(0, len(table) - 1)
    low = t.floor().clamp(max=len(table) - 2).long()
    weight = t - low
    below, above = logs[low], logs[low + 1]
    open_end = torch.isinf(above)
    log = torch.lerp(below, torch.where(open_end, below, above), weight)
    # alpha^2 = 1 / (1 + ratio^2), written so that neither end of the range loses digits
    alpha, sigma = torch.sigmoid(-2 * log).sqrt(), torch.sigmoid(2 * log).sqrt()
    fading = (1 - weight) * table.double()[low].sqrt()
    return NoiseLevel(
        torch.where(open_end, fading, alpha),
        torch.where(open_end, (1 - fading**2).sqrt(), sigma),
    )


def time_of(table: Tensor, level: NoiseLevel) -> Tensor:
    """The training time of a noise level: the inverse of `level_of`, for any form of level (only sigma / alpha counts).

    level: () or (B,). Returns float64 times shaped like it, fractional, on the table's device. Levels outside the table
    are clamped to its ends: sigma = 0 gives 0, alpha = 0 gives T - 1.
    """
    logs = log_ratios(table)
    alpha, sigma = level.alpha.to(logs), level.sigma.to(logs)
    log = torch.log(sigma / alpha).contiguous()
    low = (torch.searchsorted(logs, log, right=True) - 1).clamp(0, len(table) - 2)
    below, above = logs[low], logs[low + 1]
    fading = 1 - alpha / torch.hypot(alpha, sigma) / table.double()[low].sqrt()
    weight = torch.where(torch.isinf(above), fading, (log - below) / (above - below))
    return low + weight.clamp(0, 1)
