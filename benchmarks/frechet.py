"""How long a Frechet distance takes once features are there, and how fast features are gathered: ours beside SciPy's root.

    python benchmarks/frechet.py

At 2,048 features, as FID has them. Both forms take turns, each in float64 on the same matrices; minima of the rounds are told
(medians behind them), and how far the two numbers lie apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch

from giverny.metrics.frechet import frechet
from giverny.metrics.moments import Moments


def scipy_distance(a: Moments, b: Moments) -> float:
    """The textbook form, with the root of a matrix that is not symmetric."""
    (m1, s1), (m2, s2) = ((x.mean.numpy(), x.covariance.numpy()) for x in (a, b))
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(scipy.linalg.sqrtm(s1 @ s2))))


def timed(work: Callable[[], float]) -> tuple[float, float]:
    began = time.perf_counter()
    value = work()
    return time.perf_counter() - began, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--count", type=int, default=5000, help="rows of a side")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    chance = torch.Generator().manual_seed(0)
    sides = []
    for shift in (0.0, 0.1):
        rows = torch.randn(args.count, args.width, generator=chance) * torch.rand(args.width, generator=chance) + shift
        moments, began = Moments(args.width), time.perf_counter()
        for part in rows.split(256):
            moments.add(part)
        print(f"gathered {args.count} rows of {args.width}: {time.perf_counter() - began:.2f} s")
        sides.append(moments)
    taken: dict[str, list[float]] = {"ours": [], "scipy": []}
    values: dict[str, float] = {}
    for _ in range(args.rounds):
        for name, work in (("ours", lambda: frechet(*sides).value), ("scipy", lambda: scipy_distance(*sides))):
            seconds, values[name] = timed(work)
            taken[name].append(seconds)
    for name, seconds in taken.items():
        print(f"{name:<6} {min(seconds):7.2f} s ({statistics.median(seconds):.2f})   {values[name]:.10g}")
    print(
        f"scipy / ours {min(taken['scipy']) / min(taken['ours']):.1f}; apart by {abs(values['ours'] / values['scipy'] - 1):.1e}"
    )


if __name__ == "__main__":
    main()
