"""How alike two sets of pictures are (kernel distance, spread, nearest neighbour, sharpness), and how sure shares are.

The kernel distance (KID) is Binkowski et al. 2018, arXiv 1801.01401: the unbiased squared maximum mean discrepancy of
Gretton et al. 2012 under a polynomial kernel. Everything is calculated in the precision of its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def wilson(hits: float, of: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): keeps inside [0, 1] and has a width even at 0 and 1.

    Both may be fractions, where some pictures count more than others (see `even_share`).
    """
    share, scale = hits / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / scale
    half = z / scale * (share * (1 - share) / of + z * z / (4 * of * of)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def even_share(hits: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """(the share of hits where every group counts alike, as many equal pictures as would tell it as surely).

    hits: bool (N,); groups: (N,). Kish's effective number: groups of few pictures make it small.
    """
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shares = np.bincount(inverse, hits.astype(np.float64)) / counts
    return float(shares.mean()), len(counts) ** 2 / float((1 / counts).sum())


def share_ratio(share: tuple[float, float], real: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    """(share / real, its 95 % interval), each as (share, of how many); by the spread of logarithms (Katz et al. 1978).

    A share of none counts as half a picture, since its logarithm would be without end.
    """
    (a, n), (b, m) = share, real
    top, bottom = max(a, 0.5 / n), max(b, 0.5 / m)
    error = ((1 - top) / (top * n) + (1 - bottom) / (bottom * m)) ** 0.5
    ratio = top / bottom
    return ratio, (ratio * float(np.exp(-1.959964 * error)), ratio * float(np.exp(1.959964 * error)))


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, d), (m, d) -> (n, m): (a . b / d + 1)^3."""
    base = a @ b.T / a.shape[1] + 1
    return base * base * base  # many times faster than a power


def mean_apart(square: np.ndarray, classes: int = 1) -> float:
    """Mean of a square matrix, pairs of a picture with itself left out since they would bias it.

    classes: rows come class by class, so many classes of equal size. Pairs within a class then weigh as much as they
    would among infinitely many pictures: of 500 pictures in 10 classes, 49 in 499 other ones are of the same class, not
    1 in 10, and where classes lie far apart that would bias a distance by more than is to be measured.
    """
    size = len(square) // classes
    blocks = [square[i : i + size, i : i + size] for i in range(0, len(square), size)]
    same = sum(float(block.sum()) for block in blocks)
    apart = same - float(np.trace(square))
    return (float(square.sum()) - same + apart * size / (size - 1)) / len(square) ** 2


class Reference:
    """One side of the kernel distance, (m, d), with what does not depend on the other side worked out once.

    classes: as for `mean_apart`, of both sides; 1 gives KID as it is defined for pictures drawn without regard to class.
    """

    def __init__(self, features: np.ndarray, classes: int = 1) -> None:
        self.features, self.classes, size = features, classes, len(features) // classes
        total = sum(float(kernel(part, features).sum()) for part in np.array_split(features, max(1, len(features) // 500)))
        blocks = [features[i : i + size] for i in range(0, len(features), size)]
        inner = [mean_apart(kernel(block, block)) - float(kernel(block, block).mean()) for block in blocks]
        self.within = total / len(features) ** 2 + sum(inner) / classes**2

    def distance(self, features: np.ndarray, halves: int = 0) -> tuple[float, float]:
        """Unbiased squared MMD of (n, d), and its standard error by half-samples (0 where none are asked for).

        Halves drawn without replacement, class by class, vary among themselves as whole sets of n do (and more where the
        distance is near 0: the error is then too large rather than too small).
        """
        square, across = kernel(features, features), kernel(features, self.features).mean(1)
        chance, size = np.random.default_rng(0), len(features) // self.classes

        def value(rows: np.ndarray) -> float:
            return mean_apart(square[np.ix_(rows, rows)], self.classes) + self.within - 2 * float(across[rows].mean())

        draws = [[c * size + chance.permutation(size)[: size // 2] for c in range(self.classes)] for _ in range(halves)]
        error = float(np.std([value(np.concatenate(draw)) for draw in draws], ddof=1)) if halves > 1 else 0.0
        return value(np.arange(len(features))), error


def spread(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes, then over columns, of the standard deviation over a class's pictures. values: (N, d)."""
    return float(np.mean([values[labels == c].std(0, ddof=1).mean() for c in np.unique(labels)]))


def feature_spread(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the root of the trace of the class's covariance: the usual distance from its mean."""
    return float(np.mean([values[labels == c].var(0, ddof=1).sum() ** 0.5 for c in np.unique(labels)]))


def pair_distance(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the mean Euclidean distance between two pictures of a class."""
    return float(np.mean([mean_apart(distances(values[labels == c], values[labels == c])) for c in np.unique(labels)]))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean: (n, d), (m, d) -> (n, m)."""
    return np.sqrt(np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0))


def nearest_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, d), (m, d) -> (n,): how far the closest row of b is."""
    return np.min([distances(a, part).min(1) for part in np.array_split(b, max(1, len(b) // 5000))], axis=0)


def sharpness(pictures: np.ndarray) -> float:
    """Mean step between neighbours in a row. pictures: (N, H, W) or (N, H, W, C)."""
    return float(np.abs(np.diff(pictures, axis=2)).mean())


def balanced(labels: np.ndarray, of: int, seed: int, classes: Sequence[int] = range(10)) -> np.ndarray:
    """Indices of `of` pictures drawn at random, equally many of each class, class by class."""
    chance, each = np.random.default_rng(seed), of // len(classes)
    return np.concatenate([chance.permutation(np.flatnonzero(labels == c))[:each] for c in classes])


def drawn_like(labels: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Indices of pictures drawn at random, class by class: as many as `wanted` has of a class, or all where there are fewer."""
    classes, counts = np.unique(wanted, return_counts=True)
    chance = np.random.default_rng(seed)
    drawn = [chance.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, counts, strict=True)]
    return np.concatenate(drawn) if drawn else np.empty(0, np.int64)
