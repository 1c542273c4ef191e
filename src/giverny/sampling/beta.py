"""The beta distribution: how much of it lies below a place, and where a share of it ends. Plain float64.

The regularised incomplete beta function by its continued fraction (DLMF 8.17.22), evaluated from the front (Lentz 1976, as
modified by Thompson and Barnett 1986), and on the side of the mean where it converges fast.
"""

from __future__ import annotations

import math

TINY = 1e-300  # takes the place of a denominator that vanishes


def beta_cdf(x: float, alpha: float, beta: float) -> float:
    """The share of the distribution below x, 0 to 1. alpha, beta > 0."""
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (alpha + 1) / (alpha + beta + 2):
        return 1 - beta_cdf(1 - x, beta, alpha)
    log_front = alpha * math.log(x) + beta * math.log1p(-x) - _log_beta(alpha, beta)
    return math.exp(log_front) / alpha / _fraction(x, alpha, beta)


def _fraction(x: float, alpha: float, beta: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)) of DLMF 8.17.22, to the last digit."""
    value, up, down = 1.0, 1.0, 0.0
    for n in range(1, 1000):
        m = n // 2
        if n % 2:
            d = -(alpha + m) * (alpha + beta + m) / ((alpha + n - 1) * (alpha + n)) * x
        else:
            d = m * (beta - m) / ((alpha + n - 1) * (alpha + n)) * x
        down = 1 / ((1 + d * down) or TINY)
        up = (1 + d / up) or TINY
        value *= up * down
        if abs(up * down - 1) < 1e-16:
            break
    return value


def beta_quantile(share: float, alpha: float, beta: float) -> float:
    """Where `share` (0 to 1) of the distribution ends: the inverse of `beta_cdf`."""
    if share <= 0 or share >= 1:
        return float(share >= 1)
    if share > beta_cdf(0.5, alpha, beta):  # from the other side, where places near the end have all their digits
        return 1 - _lower_quantile(1 - share, beta, alpha)
    return _lower_quantile(share, alpha, beta)


def _lower_quantile(share: float, alpha: float, beta: float) -> float:
    """A quantile of the lower half, by Newton's method kept inside a bracket."""
    low, high, x = 0.0, 0.5, 0.25
    for _ in range(200):
        miss = beta_cdf(x, alpha, beta) - share
        low, high = (x, high) if miss < 0 else (low, x)
        density = math.exp((alpha - 1) * math.log(x) + (beta - 1) * math.log1p(-x) - _log_beta(alpha, beta))
        step = x - miss / density if density > 0 else low
        following = step if low < step < high else 0.5 * (low + high)
        if following == x or high - low < 1e-17:
            break
        x = following
    return x


def _log_beta(alpha: float, beta: float) -> float:
    return math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
