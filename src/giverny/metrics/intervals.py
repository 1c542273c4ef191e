"""How far a number measured on some pictures may lie from that of all such pictures: 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

import torch
from torch import Tensor

from ..base.errors import InputError

Z = 1.959964  # normal quantile of 97.5 %
GROUPS = 10  # of the jackknife
T_OF_GROUPS = 2.262157  # Student's quantile of 97.5 % at GROUPS - 1 degrees of freedom


def of_share(hits: float, of: float) -> tuple[float, float]:
    """Of a share (Wilson 1927): keeps inside [0, 1] and has a width even at 0 and 1."""
    if of <= 0:
        raise InputError("a share of one picture or more", f"of {of}")
    share, scale = hits / of, 1 + Z * Z / of
    middle = (share + Z * Z / (2 * of)) / scale
    half = Z / scale * sqrt(share * (1 - share) / of + Z * Z / (4 * of * of))
    return (0.0 if not hits else middle - half), (1.0 if hits == of else middle + half)  # there rounding would show


def of_mean(values: Tensor) -> tuple[float, float]:
    """Of the mean of independent values (n,), by their spread. One value: without bounds."""
    mean = float(values.double().mean())
    if len(values) < 2:
        return float("-inf"), float("inf")
    half = Z * float(values.double().std()) / sqrt(len(values))
    return mean - half, mean + half


def group_of(rows: int, groups: int = GROUPS) -> Tensor:
    """(rows,) int64: in turn. Rows of a `Gathered` come in random order, so that any such groups are random ones."""
    return torch.arange(rows) % groups


def jackknife(whole: float, without: Sequence[float]) -> tuple[float, float]:
    """whole: a statistic of all pictures; without: the same where each of the groups is left out (Tukey 1958).

    What a smaller number of pictures adds to every one of them (as to FID) is the same in all, and does not widen it.
    """
    values = torch.tensor(without, dtype=torch.float64)
    error = sqrt((len(values) - 1) * float(values.var(correction=0)))
    return whole - T_OF_GROUPS * error, whole + T_OF_GROUPS * error


def by_groups(rows: Tensor, statistic: Callable[[Tensor], float], whole: float) -> tuple[float, float] | None:
    """The jackknife of any statistic of rows (n, d); None where there are too few to leave a tenth out."""
    if len(rows) < 2 * GROUPS:
        return None
    group = group_of(len(rows))
    return jackknife(whole, [statistic(rows[group != g]) for g in range(GROUPS)])
