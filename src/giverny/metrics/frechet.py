"""Frechet distance of two normal distributions (Dowson and Landau 1982), FID where features are Inception's (Heusel et al.
2017, arXiv 1706.08500)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import Moments


@dataclass(frozen=True)
class Frechet:
    """value = between + spread: the squared distance of the means, and what the covariances differ by."""

    between: float
    spread: float

    @property
    def value(self) -> float:
        return self.between + self.spread


def root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a symmetric matrix (d, d) that has no negative eigenvalue but for rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


class Target:
    """One side of the distance, with the root of its covariance worked out once."""

    def __init__(self, moments: Moments) -> None:
        self.mean, self.covariance = moments.mean, moments.covariance
        self.root = root(self.covariance)

    def distance(self, other: Moments) -> Frechet:
        """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64.

        The trace of the root is that of (R S2 R)^(1/2) with R^2 = S1, which is symmetric: its eigenvalues are real and no
        jitter is needed where a covariance has not its full rank.
        """
        covariance = other.covariance
        inner = self.root @ covariance @ self.root
        shared = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
        between = (self.mean - other.mean).square().sum()
        spread = self.covariance.trace() + covariance.trace() - 2 * shared
        return Frechet(float(between), max(float(spread), 0.0))


def frechet(a: Moments, b: Moments) -> Frechet:
    return Target(a).distance(b)
