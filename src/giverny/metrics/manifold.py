"""Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020, arXiv
2002.09797): how much of one set of pictures lies among those of the other, where every picture rules a ball that reaches to its
k-th neighbour in its own set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.errors import InputError

ROWS = 1024  # of a distance matrix that is held at once


@dataclass(frozen=True)
class Neighbours:
    """Picture by picture; the means are the measures."""

    precision: Tensor  # bool (n,): the painted picture lies inside a ball of a real one
    recall: Tensor  # bool (m,): the real picture lies inside a ball of a painted one
    density: Tensor  # float64 (n,): balls of real pictures that a painted one lies in, over k: not bounded by 1
    coverage: Tensor  # bool (m,): the real picture's ball holds a painted one


@dataclass(frozen=True)
class Manifold:
    precision: float
    recall: float
    density: float
    coverage: float

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def reaches(features: Tensor, k: int) -> Tensor:
    """(n, d) -> (n,): distance of each row to its k-th nearest other one."""
    found = [torch.cdist(rows, features).kthvalue(k + 1, dim=1).values for rows in features.split(ROWS)]
    return torch.cat(found)


def neighbours(painted: Tensor, real: Tensor, k: int = 3) -> Neighbours:
    """painted (n, d), real (m, d), Euclidean. Raises InputError where a side has not more than k rows."""
    if k < 1 or min(len(painted), len(real)) <= k:
        raise InputError(f"more than k = {k} >= 1 pictures on either side", f"{len(painted)} and {len(real)}")
    painted, real = painted.double(), real.double()
    reach_painted, reach_real = reaches(painted, k), reaches(real, k)
    inside, balls = [], []
    reached, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for rows, reach in zip(painted.split(ROWS), reach_painted.split(ROWS), strict=True):
        apart = torch.cdist(rows, real)  # (rows, m)
        within = apart <= reach_real
        inside.append(within.any(1))
        balls.append(within.sum(1).double() / k)
        covered |= within.any(0)
        reached |= (apart <= reach[:, None]).any(0)
    return Neighbours(torch.cat(inside), reached, torch.cat(balls), covered)


def manifold(painted: Tensor, real: Tensor, k: int = 3) -> Manifold:
    """The means over `neighbours`."""
    found = neighbours(painted, real, k)
    means = (float(part.double().mean()) for part in (found.precision, found.recall, found.density, found.coverage))
    return Manifold(*means)
