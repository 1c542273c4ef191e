"""Is one cell better than another, or is it chance? Comparisons paired by seed, corrected for how many there are.

The test is Student's t on the differences, seed by seed (Student 1908). It is exact where these are independent and normal,
for any number of seeds from two on. Pairing takes out what two cells of one seed share (draws of the training, noise of the
painting); where they share nothing it is as valid, and only less sharp.

A sentence speaks of what the seeds vary: trainings and pictures of two recipes, or the pictures of two finished models, and
then not of how well such models turn out. It speaks of the prompts that were asked, and of no others.

Why not flip signs, which needs no normality: with n seeds such a test never comes below 2 / 2^n, which is 0.25 for three and
0.06 for five. Two comparisons, corrected, would want seven seeds before anything could be said.

Where the t test errs: differences with long tails make it timid. Those in two heaps make it rash: a training that collapses
now and then, so that differences lie near +1 or near -1, "shows" something in 2 / 2^n of draws of nothing, a quarter with
three seeds. No test sees that in three numbers, so look at the rows before you believe a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from ..base.contracts import Frozen
from ..base.errors import InputError
from .curves import words

ALPHA = 0.05  # how often something may be found where there is nothing
ROUNDING = 1e-12  # of the values: differences that vary by less do not vary

UNKNOWN = "cannot be told: "

Better = Literal["higher", "lower"]

# ---------------------------------------------------------------------------------------------------------------------
# Student's t, in float64


def t_tails(t: float, freedom: int) -> float:
    """P(|T| >= |t|): the regularized incomplete beta function I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t^2)
    (DLMF 8.17). Relative error below 1e-13 up to 30 degrees of freedom, 2e-12 at a thousand, far out as well."""
    square = t * t
    x, y = freedom / (freedom + square), 1 / (1 + freedom / square) if square else 0.0  # y is 1 - x without its rounding
    if x == 0 or y == 0:
        return float(y == 0)
    a, b = freedom / 2, 0.5
    front = math.exp(a * math.log(x) + b * math.log(y) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, y) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), from its head on (Lentz's way)."""
    upper, lower = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = lower
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            upper, lower = 1 + term / upper, 1 / (1 + term * lower)
            value *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            break
    return value


@cache
def t_quantile(tails: float, freedom: int) -> float:
    """The t of which P(|T| >= t) = tails, in (0, 1): halving to the last bit."""
    low, high = 0.0, 1.0
    while t_tails(high, freedom) > tails:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if t_tails(middle, freedom) > tails else (low, middle)
    return high


# ---------------------------------------------------------------------------------------------------------------------
# One comparison, and many


@dataclass(frozen=True)
class Paired:
    """The difference first - second over seeds: its mean, the standard error of that, and p of "there is none"."""

    seeds: int
    difference: float
    error: float
    p: float

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float]:
        """Holds the true difference in a share `level` of all experiments."""
        reach = t_quantile(1 - level, self.seeds - 1) * self.error
        return self.difference - reach, self.difference + reach


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """The paired t test, two-sided; the k-th values are of one seed.

    Raises InputError for fewer than two seeds, and where the difference is the same in all of them: then nothing says
    how much of it is chance.
    """
    if len(first) != len(second) or len(first) < 2:
        raise InputError("two seeds or more", "one" if len(first) == 1 else f"{len(first)} and {len(second)}")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, spread = fmean(differences), stdev(differences)
    if not spread > ROUNDING * max(map(abs, (*first, *second))):
        raise InputError("a difference that varies from seed to seed", f"{words(mean)} in each")
    error = spread / math.sqrt(len(differences))
    return Paired(len(differences), mean, error, t_tails(mean / error, len(differences) - 1))


def mean_interval(values: Sequence[float], level: float = 1 - ALPHA) -> tuple[float, float] | None:
    """Holds the true mean in a share `level` of all experiments (Student 1908); None for one value, or for equal ones."""
    try:
        return paired(values, [0.0] * len(values)).interval(level)
    except InputError:
        return None


def holm(p: Sequence[float]) -> list[tuple[float, float]]:
    """(corrected p, level of its interval) of each of m comparisons (Holm 1979): the chance to find anything where there
    is nothing at all stays at ALPHA, whatever the comparisons have to do with each other.

    The smallest p is held against ALPHA / m, the next against ALPHA / (m - 1), and so on up to the first that fails. An
    interval has the level of the step at which its comparison was decided, so that it holds 0 where Holm's test finds
    nothing, and only there.
    """
    found: list[tuple[float, float]] = [(1.0, 1.0)] * len(p)
    highest, left = 0.0, len(p)
    passing = True
    for place, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - place) * p[index]))
        left = len(p) - place if passing else left
        passing = passing and highest <= ALPHA
        found[index] = (highest, 1 - ALPHA / left)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What may be said

Outcomes = Mapping[str, Mapping[int, float | str]]  # cell -> seed -> what was measured, or why nothing was


class Verdict(Frozen):
    """What may be said of two cells. difference: first - second, the mean over seeds, with its interval at `level`."""

    first: str
    second: str
    said: Literal["better", "no difference", "unknown"]  # better: one of the two, whichever the difference speaks for
    sentence: str
    difference: float | None = None
    interval: tuple[float, float] | None = None
    level: float | None = None  # 0.95, or higher where there are several comparisons
    p: float | None = None  # corrected
    winner: str | None = None  # the better one


class Scored(NamedTuple):
    """A score, what it found of each cell, and which values of it are better."""

    name: str
    outcomes: Outcomes
    better: Better


class Worse(NamedTuple):
    """What a control is: a cell known to be worse than another, and the score that has to find it so."""

    than: str
    by: Scored


def judge(
    score: Scored,
    pairs: Sequence[tuple[str, str]],
    base: str,
    controls: Mapping[str, Worse],
    beside: Mapping[str, str] | None = None,
) -> tuple[str, list[Verdict], list[Verdict]]:
    """(what the score is worth here, verdicts on controls, verdicts on pairs).

    A score that does not find every control worse than its cell cannot judge that cell, and decides no pair with it. A cell
    without controls goes by those of the cell it stands beside, {cell: that one}, and at last by those of `base`. Since all
    controls of a cell must be found, their p need no correction (an intersection-union test, Berger 1982). A pair that
    could not be tested still counts among those that p is corrected for.
    """
    tested = [_verdict((than, name), _test(by.outcomes, than, name), by.better) for name, (than, by) in controls.items()]
    held, beside = {control.than for control in controls.values()}, beside or {}
    blind: dict[str, str] = {}
    for found in tested:
        if found.winner != found.first and found.first not in blind:
            seen, of = controls[found.second].by.name, "" if held == {base} else f"{found.first} "
            unable = f"{score.name} cannot judge {of}here: " + ("it" if seen == score.name else seen)
            why = found.sentence.removeprefix(UNKNOWN)
            blind[found.first] = f"{unable} does not find {found.second} worse than {found.first} ({why})"

    def controlled(cell: str) -> str:
        """The cell by whose controls this one is judged."""
        passed = {base}
        while cell not in held and cell not in passed:
            passed.add(cell)
            cell = beside.get(cell, base)
        return cell

    def compared(pair: tuple[str, str]) -> Paired | str:
        by = [controlled(cell) for cell in pair]
        return next((blind[cell] for cell in by if cell in blind), None) or _test(score.outcomes, *pair)

    tests = [compared(pair) for pair in pairs]
    corrected = holm([1.0 if isinstance(test, str) else test.p for test in tests])
    verdicts = [_verdict(pair, test, score.better, *c) for pair, test, c in zip(pairs, tests, corrected, strict=True)]
    if not controls:
        return f"whether {score.name} would find a worse cell here is not known: there is no control", [], verdicts
    finds: dict[tuple[str, str], list[str]] = {}
    for name, (than, by) in controls.items():
        if than not in blind:
            finds.setdefault((than, by.name), []).append(name)
    told = [f"{by} finds {', '.join(worse)} worse than {than}" for (than, by), worse in finds.items()]
    without = [cell for cell in dict.fromkeys(controlled(cell) for pair in pairs for cell in pair) if cell not in held]
    told += [f"whether {score.name} would find a cell worse than {cell} is not known: it has no control" for cell in without]
    return "; ".join([*blind.values(), *told]), tested, verdicts


def _test(outcomes: Outcomes, first: str, second: str) -> Paired | str:
    """The comparison over all seeds, or why there is none. Seeds that failed are not left out: that they failed, and
    others did not, may be what the two differ in."""
    failures = [
        f"{cell} has no value at seed {seed} ({(outcome.splitlines() or [''])[0]})"
        for cell in (first, second)
        for seed, outcome in outcomes[cell].items()
        if isinstance(outcome, str)
    ]
    if failures:
        return failures[0] + (f", and {len(failures) - 1} more" if failures[1:] else "")
    common = sorted(outcomes[first].keys() & outcomes[second].keys())  # a cell may have been given fewer seeds
    if len(common) < 2:
        return "one seed"
    sides = [[float(outcomes[cell][seed]) for seed in common] for cell in (first, second)]
    try:
        return paired(*sides)
    except InputError as error:
        return f"{first} and {second} differ by {error.given} seed, so nothing says how much of it is chance"


def _verdict(
    pair: tuple[str, str], found: Paired | str, better: Better, p: float | None = None, level: float = 1 - ALPHA
) -> Verdict:
    """The sentence on one comparison. p: corrected; None: as it is."""
    if isinstance(found, str):
        return _unknown(pair, found)
    p = found.p if p is None else p
    low, high = found.interval(level)
    numbers: dict[str, Any] = {"difference": found.difference, "interval": (low, high), "level": level, "p": p}
    if p > ALPHA:
        sentence = f"no difference shown between {pair[0]} and {pair[1]}: {_told(found.difference, low, high, level)}"
        return Verdict(first=pair[0], second=pair[1], said="no difference", sentence=sentence, **numbers)
    ordered = pair if (found.difference > 0) == (better == "higher") else pair[::-1]
    nearer, farther = sorted((abs(low), abs(high)))
    size = _told(abs(found.difference), nearer, farther, level)
    sentence = f"{ordered[0]} better than {ordered[1]} by {size}"
    return Verdict(first=pair[0], second=pair[1], said="better", sentence=sentence, winner=ordered[0], **numbers)


def _told(difference: float, low: float, high: float, level: float) -> str:
    return f"{words(difference)} ({100 * level:.4g} % interval {words(low)} to {words(high)})"


def _unknown(pair: tuple[str, str], why: str) -> Verdict:
    return Verdict(first=pair[0], second=pair[1], said="unknown", sentence=UNKNOWN + why)
