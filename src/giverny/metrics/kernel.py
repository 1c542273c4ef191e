"""KID (Binkowski et al. 2018, arXiv 1801.01401): the squared maximum mean discrepancy of Gretton et al. 2012 under a
polynomial kernel. Its estimate is unbiased: 0 on average where both sets come from one distribution, at any size."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.errors import InputError

ROWS = 2048  # of a kernel matrix that is held at once


def polynomial(a: Tensor, b: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m): (a . b / d + 1)^3."""
    base = a @ b.T / a.shape[1] + 1
    return base * base * base


def kernel_sum(a: Tensor, b: Tensor) -> float:
    """Over all pairs."""
    return sum(float(polynomial(rows, b).sum()) for rows in a.split(ROWS))


def mean_of_pairs(a: Tensor) -> float:
    """Over pairs of different rows (n, d)."""
    own = float(((a * a).sum(1) / a.shape[1] + 1).pow(3).sum())
    return (kernel_sum(a, a) - own) / (len(a) * (len(a) - 1))


def mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD of (n, d) and (m, d), in float64; may be below 0. Raises InputError for fewer than two rows."""
    if min(len(a), len(b)) < 2:
        raise InputError("two pictures or more on either side", f"{len(a)} and {len(b)}")
    a, b = a.double(), b.double()
    return mean_of_pairs(a) + mean_of_pairs(b) - 2 * kernel_sum(a, b) / (len(a) * len(b))


def mmd_of_subsets(a: Tensor, b: Tensor, count: int = 100, size: int = 1000, seed: int = 0) -> Tensor:
    """`mmd` of `count` random subsets of `size` rows of either side (count,), as KID is usually reported: their mean and
    standard deviation. Raises InputError where a side has fewer rows."""
    if size > min(len(a), len(b)) or size < 2:
        raise InputError(f"subsets of 2 to {min(len(a), len(b))} pictures", str(size), "name a smaller subset")
    chance = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(count):
        rows = [torch.randperm(len(side), generator=chance)[:size] for side in (a, b)]
        draws.append(mmd(a[rows[0]], b[rows[1]]))
    return torch.tensor(draws, dtype=torch.float64)
