"""Scores of painted pictures against real ones: from gathered features to numbers with interval, conditions and floor.

An interval is that of the painted pictures: how far other pictures of the same painter would move the number; the reference is
taken as it is. A floor is what real pictures score against other real pictures of the same set. For the unbiased KID it
is 0 on average, so that what 1 in 20 draws exceeds is told as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..base.contracts import Score
from ..base.errors import InputError, choose
from . import frechet, kernel
from .gather import Gathered
from .intervals import GROUPS, by_groups, group_of, jackknife, of_mean, of_share
from .manifold import neighbours
from .memorization import THRESHOLD, Direction, memorization_distance, mifid
from .moments import Moments
from .pairs import mean_apart, nearest

ROWS = 5_000  # of a side, in what compares every picture with every other
DRAWS = 20  # of real pictures, for a floor
WIDE = 512  # features from which on a Frechet distance takes seconds: fewer of them are then worked out
K = 3  # the neighbour that a ball reaches to
BY_GROUPS = f"leaving out each of {GROUPS} groups of the painted pictures"
BY_SPREAD = "the spread from picture to picture"


@dataclass(frozen=True)
class Sides:
    """The two sets of a comparison, as one instrument saw them, and what is said of every score of theirs."""

    painted: Gathered
    real: Gathered
    conditions: Mapping[str, Any]
    seed: int = 0  # of draws for floors

    def __post_init__(self) -> None:
        for side, found in (("painted", self.painted), ("real", self.real)):
            if found.count < 2:
                raise InputError(f"two {side} pictures or more", str(found.count), "Statistics of fewer do not exist.")
        if self.painted.width != self.real.width:
            raise InputError("both sets seen by one instrument", f"{self.painted.width} and {self.real.width} features")

    def score(self, name: str, value: float, interval: tuple[float, float] | None, by: str, **more: Any) -> Score:
        told: dict[str, Any] = {"n": self.painted.count, "n_reference": self.real.count, **self.conditions, **more}
        if interval is not None:
            told["interval_by"] = by
        for side, found in (("painted", self.painted), ("reference", self.real)):
            if found.alike:
                told[f"alike_{side}"] = f"{found.alike} of {len(found.rows)} pictures are copies of another one"
        return Score(name=name, value=value, interval=interval, conditions=told)

    def some(self, most: int = ROWS) -> tuple[Tensor, Tensor]:
        return self.painted.rows[:most], self.real.rows[:most]

    def draws(self, size: int, of: int, count: int) -> list[np.ndarray]:
        """Rows drawn without replacement for floors."""
        chance = np.random.default_rng(self.seed)
        return [chance.permutation(of)[:size] for _ in range(count)]


def fid(sides: Sides) -> list[Score]:
    """FID, or the Frechet distance under another instrument's features; biased upwards the fewer the pictures are."""
    painted, real = sides.painted, sides.real
    target = frechet.Target(real.moments)
    found = target.distance(painted.moments)
    rows = painted.rows
    interval = by_groups(rows, lambda part: target.distance(Moments.of(part)).value, found.value)
    if interval is not None and len(rows) < painted.count:  # the sample strays more than all pictures do
        shrink = (len(rows) / painted.count) ** 0.5
        low, high = interval
        interval = found.value + (low - found.value) * shrink, found.value + (high - found.value) * shrink
    size = min(painted.count, len(real.rows) // 2)
    floors = []
    for drawn in sides.draws(size, len(real.rows), 1 if real.width > WIDE else 5) if size > 1 else ():
        rest = np.setdiff1d(np.arange(len(real.rows)), drawn)
        floors.append(frechet.frechet(Moments.of(real.rows[rest]), Moments.of(real.rows[drawn])).value)
    more: dict[str, Any] = {"of_means": found.between}
    if floors:
        more |= {"floor": fmean(floors), "floor_n": [size, len(real.rows) - size]}
    if min(painted.count, real.count) <= painted.width:
        more["note"] = (
            f"fewer pictures than features ({painted.width}): the value is far above that of many pictures, and says something "
            "beside others of equal n alone"
        )
    return [sides.score("FID", found.value, interval, BY_GROUPS, **more)]


def kid(sides: Sides) -> list[Score]:
    """KID over all pairs of at most `ROWS` pictures a side: unbiased at any number of pictures."""
    ours, theirs = sides.some()
    target = kernel.Target(theirs)
    groups = GROUPS if len(ours) >= 2 * GROUPS else 1
    value, without = target.without_each(ours, group_of(len(ours), groups))
    floors = kid_floors(theirs, sides.draws(min(len(ours), len(theirs) // 2), len(theirs), DRAWS))
    more: dict[str, Any] = {"rows": [len(ours), len(theirs)]}
    if floors:
        more |= {"floor": fmean(floors), "floor_high": float(np.percentile(floors, 95)),
                 "floor_n": [min(len(ours), len(theirs) // 2), len(theirs) - min(len(ours), len(theirs) // 2)]}  # fmt: skip
    return [sides.score("KID", value, jackknife(value, without) if without else None, BY_GROUPS, **more)]


def kid_floors(real: Tensor, draws: Sequence[np.ndarray]) -> list[float]:
    """KID of each draw of the rows (m, d) against the rows that were not drawn; none for draws of fewer than two."""
    if not draws or len(draws[0]) < 2:
        return []
    rows = real.double()
    square = torch.cat([kernel.polynomial(part, rows) for part in rows.split(kernel.ROWS)])
    diagonal, found = square.diagonal(), []
    for drawn in draws:
        chosen = torch.zeros(len(rows), dtype=torch.float64)
        chosen[torch.from_numpy(drawn)] = 1
        other, n = 1 - chosen, len(drawn)
        m = len(rows) - n
        toward = square @ torch.stack([chosen, other], 1)  # (m, 2)
        among = (float(chosen @ toward[:, 0]) - float(chosen @ diagonal)) / (n * (n - 1))
        rest = (float(other @ toward[:, 1]) - float(other @ diagonal)) / (m * (m - 1))
        found.append(among + rest - 2 * float(chosen @ toward[:, 1]) / (n * m))
    return found


def memorization(sides: Sides, direction: Direction = "painted to real", threshold: float = THRESHOLD) -> list[Score]:
    """MiFID as competitions score it, and the distance to the nearest real picture that it asks for."""
    ours, theirs = sides.some()
    distance = memorization_distance(ours, theirs, direction)
    apart = frechet.frechet(sides.real.moments, sides.painted.moments).value
    more: dict[str, Any] = {"direction": direction, "rows": [len(ours), len(theirs)]}
    if not str(sides.conditions.get("features", "")).startswith("inception"):
        more["note"] = f"MiFID's threshold of {threshold} is one of Inception's features: with others read the distance itself"
    return [
        sides.score("MiFID", mifid(apart, distance, threshold), None, "", threshold=threshold, distance=distance,
                    fires=distance < threshold, **more),
        sides.score("memorization distance", distance, None, "", **more),
    ]  # fmt: skip


def manifold(sides: Sides, k: int = K) -> list[Score]:
    """Precision, recall, density and coverage, and what real pictures come to among themselves."""
    ours, theirs = sides.some()
    found = neighbours(ours, theirs, k)
    floor = neighbours(theirs[::2], theirs[1::2], k) if len(theirs) > 2 * k + 1 else None
    more = {"k": k, "rows": [len(ours), len(theirs)]}
    scores = []
    for name in ("precision", "recall", "coverage", "density"):
        values: Tensor = getattr(found, name).double()
        share = name != "density"
        interval = of_share(float(values.sum()), len(values)) if share else of_mean(values)
        told = {"floor": float(getattr(floor, name).double().mean())} if floor is not None else {}
        scores.append(sides.score(name, float(values.mean()), interval, BY_SPREAD, **more, **told))
    return scores


def diversity(sides: Sides) -> list[Score]:
    """How far painted pictures are from each other, over how far real ones are: 1 as varied, less is more alike."""
    ours, theirs = sides.some()
    real = mean_apart(theirs)
    if real == 0:
        raise InputError("real pictures that differ", "pictures that all look the same to the instrument")
    ratio = mean_apart(ours) / real
    interval = by_groups(ours, lambda part: mean_apart(part) / real, ratio)
    return [sides.score("diversity", ratio, interval, BY_GROUPS, rows=[len(ours), len(theirs)])]


def closeness(sides: Sides) -> list[Score]:
    """Distance to the nearest reference picture, over that of one half of the reference to the other: 1 is as new as new
    photographs are, near 0 is copied. The reference ought to be what was trained on."""
    ours, theirs = sides.some()
    halves = theirs[::2], theirs[1::2]
    if min(map(len, halves)) < 1:
        raise InputError("two reference pictures or more", str(len(theirs)))
    usual = nearest(*halves)[0]
    distances = nearest(ours, halves[1])[0]  # against as many as the other half is
    real = float(usual.mean())
    if real == 0:
        raise InputError("reference pictures that differ", "halves that hold the same pictures")
    low, high = of_mean(distances)
    smallest = float(distances.min())
    more = {"rows": [len(ours), len(halves[1])], "smallest": smallest / real, "copies": int((distances < 1e-6 * real).sum())}
    return [sides.score("nearest / real", float(distances.mean()) / real, (low / real, high / real), BY_SPREAD, **more)]


@dataclass(frozen=True)
class Kind:
    """A measure by name. better: which values of its first score are."""

    of: Callable[[Sides], list[Score]]
    what: str
    better: Literal["higher", "lower"]


KINDS: Mapping[str, Kind] = {
    "kid": Kind(kid, "kernel distance, unbiased: right for few pictures", "lower"),
    "fid": Kind(fid, "Frechet distance: the usual one; only beside others of equal n", "lower"),
    "mifid": Kind(memorization, "FID over a suspiciously small distance to what was learnt from", "lower"),
    "manifold": Kind(manifold, "precision, recall, density, coverage", "higher"),
    "diversity": Kind(diversity, "how far pictures are from each other, beside real ones", "higher"),
    "nearest": Kind(closeness, "how far the nearest reference picture is: are pictures copied?", "higher"),
}


def measure(sides: Sides, kinds: Sequence[str]) -> list[Score]:
    """The scores of each kind, in order. Raises InputError for a kind there is not."""
    return [score for kind in kinds for score in KINDS[choose(kind, KINDS, "measure")].of(sides)]
