"""Count, mean and covariance of rows that come in batches, in constant memory and whatever their order."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..base.errors import InputError


class Moments:
    """Sums over rows of width d, in float64: to the digits that are printed, order and batches leave no trace."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """features: (n, d)."""
        moments = cls(features.shape[1])
        moments.add(features)
        return moments

    @classmethod
    def joined(cls, parts: Iterable[Moments]) -> Moments:
        """Those of all rows together. Raises InputError where there is no part."""
        parts = list(parts)
        if not parts:
            raise InputError("one set of features or more", "none")
        whole = cls(len(parts[0].total))
        for part in parts:
            whole.count += part.count
            whole.total += part.total
            whole.products += part.products
        return whole

    def add(self, features: Tensor) -> None:
        """Raises InputError for rows of another width or with a number that is none."""
        if features.dim() != 2 or features.shape[1] != len(self.total):
            raise InputError(f"features (n, {len(self.total)})", str(tuple(features.shape)))
        rows = features.to("cpu", torch.float64)
        if not torch.isfinite(rows).all():
            bad = int((~torch.isfinite(rows)).any(1).sum())
            raise InputError("features that are numbers", f"{bad} of {len(rows)} rows with NaN or infinity")
        self.count += len(rows)
        self.total += rows.sum(0)
        self.products += rows.T @ rows

    @property
    def mean(self) -> Tensor:  # (d,)
        self._at_least(1)
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(d, d), unbiased: divided by n - 1. Raises InputError for fewer than two rows."""
        self._at_least(2)
        centred = self.products - torch.outer(self.total, self.total) / self.count
        return (centred + centred.T) / (2 * (self.count - 1))

    def _at_least(self, wanted: int) -> None:
        if self.count < wanted:
            raise InputError(f"{wanted} pictures or more", str(self.count), "statistics of fewer do not exist")
