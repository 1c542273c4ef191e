"""MiFID (Bai et al. 2021, arXiv 2106.03062): FID over a distance to what was learnt from, where that is suspiciously small."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import InputError, choose

Direction = Literal["painted to real", "real to painted"]
DIRECTIONS: tuple[Direction, ...] = ("painted to real", "real to painted")
THRESHOLD = 0.1  # of the competitions that used Inception
ROWS = 2048
TINY = 1e-15  # as in the scoring program: never divided by nothing


def nearest_cosine(a: Tensor, b: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n,): 1 - |cos| to the most similar row of b. Rows that sum to 0 are left out on either side, as
    the competition's scoring does."""
    a, b = (F.normalize(side[side.sum(1) != 0].double(), dim=1) for side in (a, b))
    if not len(a) or not len(b):
        raise InputError("features that are not all zero", f"{len(a)} and {len(b)} rows left")
    return torch.cat([1 - (rows @ b.T).abs().amax(1) for rows in a.split(ROWS)])


def memorization_distance(painted: Tensor, real: Tensor, direction: Direction = "painted to real") -> float:
    """Mean distance of painted pictures to their nearest real one; "real to painted" is what torchmetrics takes."""
    choose(direction, DIRECTIONS, "direction")
    sides = (painted, real) if direction == "painted to real" else (real, painted)
    return float(nearest_cosine(*sides).mean())


def mifid(fid: float, distance: float, threshold: float = THRESHOLD) -> float:
    """FID as it is where the distance is `threshold` or more, else FID / distance."""
    return fid / ((distance if distance < threshold else 1.0) + TINY)
