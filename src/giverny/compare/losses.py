"""Does any loss foretell the score? Rank correlation (Spearman 1904) of what trainings ended at with how their pictures scored.

Over all rows a loss may foretell nothing but which cell a row is of, as anything would that differs from cell to cell; so it
is told as well what is left within cells, where both are taken less their cell's mean. Losses of different objectives stand on
different scales: where cells differ in theirs, only what holds within cells says something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import factorial, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from ..training.log import read_log
from .cells import Row, Table
from .statistics import holm, t_tails

UNTOLD = frozenset({"train/rate", "train/skipped"})  # settings and counts, no losses
LEAST = 5  # rows, below which nothing is said
LAST = 5  # records of a quantity that are averaged: one step's loss is mostly chance


@dataclass(frozen=True)
class Foretold:
    """rho: from -1 to 1. p: of "they have nothing to do with each other", corrected for how many quantities were tried."""

    quantity: str  # stage and name in its log: "denoiser: valid/error"
    rows: int
    rho: float
    p: float
    within: float | None  # rho of what is left within cells; None where every cell has one row


def foretellers(table: Table, store: Path) -> list[Foretold]:
    """Of every quantity that enough trainings logged; the closest first. Each training counts once, with the first cell that
    has it: cells that differ in settings of the painting share one."""
    score = table.experiment.primary
    found: dict[str, tuple[Row, float, dict[str, float]]] = {}
    for row in table.rows:
        value = next((s.value for s in row.scores if s.name == score), None)
        losses = last_of(store / "training" / row.training / "work") if row.training else {}
        if value is not None and losses:
            found.setdefault(row.training, (row, value, losses))
    rows: list[Foretold] = []
    for name in sorted({name for *_, losses in found.values() for name in losses}):
        logged = [one for one in found.values() if name in one[2]]
        cells, values = [row.label for row, *_ in logged], [value for _, value, _ in logged]
        series = [losses[name] for *_, losses in logged]
        if len(logged) >= LEAST and len(set(series)) > 1 and len(set(values)) > 1:
            rows.append(_foretold(name, series, values, _within(series, values, cells)))
    return _corrected(rows)


def foretold_by(records: Sequence[Mapping[str, Any]], values: Mapping[int, float]) -> list[Foretold]:
    """The same over the checkpoints of one run. values: {step: score}. A quantity counts with its mean since the checkpoint
    before; those of one run hang on each other, so that p is too small where a loss and the score only drift together."""
    steps = sorted(values)
    names = sorted({key for record in records for key in record if key.startswith(("train/", "valid/"))} - UNTOLD)
    rows: list[Foretold] = []
    for name in names:
        series, scores = [], []
        for before, step in zip([0, *steps], steps, strict=False):
            seen = [float(record[name]) for record in records if name in record and before < record["step"] <= step]
            if seen:
                series.append(fmean(seen))
                scores.append(values[step])
        if len(series) >= LEAST and len(set(series)) > 1 and len(set(scores)) > 1:
            rows.append(_foretold(name, series, scores, None))
    return _corrected(rows)


def _foretold(name: str, series: Sequence[float], values: Sequence[float], within: float | None) -> Foretold:
    """One quantity by itself."""
    rho = spearman(series, values)
    return Foretold(name, len(series), rho, _p(rho, len(series)), within)


def _corrected(rows: Sequence[Foretold]) -> list[Foretold]:
    """The closest first, each p corrected for how many there are."""
    levels = holm([row.p for row in rows])
    told = [replace(row, p=level[0]) for row, level in zip(rows, levels, strict=True)]
    return sorted(told, key=lambda f: -abs(f.rho))


def last_of(run: Path) -> dict[str, float]:
    """{"stage: quantity": mean of its last records} of what a run's stages logged."""
    found: dict[str, float] = {}
    for log in sorted((run / "stages").glob("*/metrics.jsonl")):
        records = read_log(log)
        names = sorted({k for record in records for k in record if k.startswith(("train/", "valid/"))})
        for name in names:
            series = [float(record[name]) for record in records if name in record]
            if name not in UNTOLD:
                found[f"{log.parent.name}: {name}"] = fmean(series[-LAST:])
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of ranks; equal values share theirs. Raises ZeroDivisionError where one of them does not vary."""
    return _pearson(_ranks(a), _ranks(b))


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]


def _pearson(a: Sequence[float], b: Sequence[float]) -> float:
    x, y = [v - fmean(a) for v in a], [v - fmean(b) for v in b]
    return sum(map(float.__mul__, x, y)) / sqrt(sum(v * v for v in x) * sum(v * v for v in y))


def _within(a: Sequence[float], b: Sequence[float], cells: Sequence[str]) -> float | None:
    """Over rows less their cell's mean; rows that are alone in their cell say nothing."""
    left: list[tuple[float, float]] = []
    for cell in dict.fromkeys(cells):
        own = [i for i, c in enumerate(cells) if c == cell]
        means = fmean(a[i] for i in own), fmean(b[i] for i in own)
        left += [(a[i] - means[0], b[i] - means[1]) for i in own] if len(own) > 1 else []
    x, y = ([pair[k] for pair in left] for k in (0, 1))
    return spearman(x, y) if len(left) >= LEAST and len(set(x)) > 1 and len(set(y)) > 1 else None


def _p(rho: float, n: int) -> float:
    """Student's approximation, two-sided (Kendall and Stuart); exact enough from about ten rows on, and never below the
    chance that n rows come in one order or its reverse."""
    least = 2 / factorial(n)
    return least if abs(rho) >= 1 else max(least, t_tails(rho * sqrt((n - 2) / (1 - rho * rho)), n - 2))
