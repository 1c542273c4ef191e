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


def group_sums(a: Tensor, b: Tensor, groups_a: Tensor, groups_b: Tensor) -> Tensor:
    """Sums of the kernel over pairs, by the groups (n,), (m,) of their sides: (groups of a, groups of b)."""
    to = torch.zeros(int(groups_b.max()) + 1, len(b), dtype=a.dtype)
    to[groups_b, torch.arange(len(b))] = 1
    sums = torch.zeros(int(groups_a.max()) + 1, len(to), dtype=a.dtype)
    for rows, groups in zip(a.split(ROWS), groups_a.split(ROWS), strict=True):
        sums.index_add_(0, groups, polynomial(rows, b) @ to.T)
    return sums


def own(a: Tensor) -> Tensor:
    """(n, d) -> (n,): the kernel of each row with itself."""
    return ((a * a).sum(1) / a.shape[1] + 1).pow(3)


class Target:
    """One side of the distance (m, d), with its own mean over pairs worked out once."""

    def __init__(self, features: Tensor) -> None:
        _at_least_two(features)
        self.rows = features.double()
        self.within = mean_of_pairs(self.rows)

    def distance(self, features: Tensor) -> float:
        """Unbiased squared MMD of (n, d), in float64; may be below 0."""
        return self.without_each(features, torch.zeros(len(features), dtype=torch.int64))[0]

    def without_each(self, features: Tensor, groups: Tensor) -> tuple[float, list[float]]:
        """(the distance of all rows (n, d), the distances where each group (n,) of them is left out)."""
        _at_least_two(features)
        rows, nothing = features.double(), torch.zeros(len(self.rows), dtype=torch.int64)
        among = group_sums(rows, rows, groups, groups)
        same = torch.zeros(len(among), dtype=rows.dtype).index_add_(0, groups, own(rows))
        across = group_sums(rows, self.rows, groups, nothing)[:, 0]
        counts = torch.bincount(groups)

        def value(total: Tensor, diagonal: Tensor, cross: Tensor, count: int) -> float:
            pairs = (total - diagonal) / (count * (count - 1))
            return float(pairs + self.within - 2 * cross / (count * len(self.rows)))

        whole = value(among.sum(), same.sum(), across.sum(), len(rows))
        if len(among) == 1:
            return whole, []
        without = []
        for g in range(len(among)):
            left = among.sum() - among[g].sum() - among[:, g].sum() + among[g, g]
            parts = (left, same.sum() - same[g], across.sum() - across[g])
            without.append(value(*parts, len(rows) - int(counts[g])))
        return whole, without


def mean_of_pairs(a: Tensor) -> float:
    """Over pairs of different rows (n, d)."""
    nothing = torch.zeros(len(a), dtype=torch.int64)
    return float((group_sums(a, a, nothing, nothing)[0, 0] - own(a).sum()) / (len(a) * (len(a) - 1)))


def mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD of (n, d) and (m, d), in float64; may be below 0. Raises InputError for fewer than two rows."""
    _at_least_two(a)
    return Target(b).distance(a)


def _at_least_two(features: Tensor) -> None:
    if len(features) < 2:
        raise InputError("two pictures or more on either side", str(len(features)))


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
