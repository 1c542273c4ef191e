"""An experiment on one page: what may be said first, then the numbers it rests on, curves, pictures and conditions.

The page is one HTML file that needs nothing else and may be written at any moment: what has not been run yet says so, what
failed says why, and what is missing or damaged in the store is named and stops nothing. Every number of its table stands
in `table.csv` as well; where the page rounds it, the exact one is the `value` of its `<data>` element.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev

from ..base.contracts import Score
from ..base.files import atomic_write
from ..base.recipe import to_toml
from ..base.runtime import versions
from .cells import WAITING, Row, Table, cells
from .curves import CELL_INKS, cell_style, elapsed, number, words
from .experiment_page_store import conditions_of, gallery_of, learning_of
from .losses import Foretold, foretellers
from .report import Found
from .statistics import ALPHA, Verdict, mean_interval

UNIT_NAMED = re.compile("^([a-z]+) [0-9a-f]{16}: ")  # at the head of a reason


@dataclass(frozen=True)
class Summary:
    """A score over the seeds of a cell. spread: standard deviation over seeds; floors: what its conditions hold, the mean."""

    values: Mapping[int, float]  # seed -> value
    mean: float
    spread: float | None
    interval: tuple[float, float] | None  # of the mean, 95 %
    floors: Mapping[str, float]


@dataclass(frozen=True)
class Line:
    """A cell: one row for each seed."""

    label: str
    base: bool
    control: bool
    rows: Sequence[Row]
    scores: Mapping[str, Summary]
    seconds: Mapping[str, float]  # the mean of those there are
    reasons: Sequence[tuple[str, str]]  # (which seeds, why they have no scores)
    published: str = ""  # what a publication says of it
    indicative: bool = False  # one seed, where others have more


@dataclass(frozen=True)
class Strip:
    """A cell in a dot plot. Places are in percent of the width; ends: where the interval is drawn to."""

    line: Line
    summary: Summary
    dots: Sequence[tuple[int, float, float]]  # (seed, value, place)
    mean: float
    ends: tuple[float, float] | None
    beyond: tuple[bool, bool]  # whether the interval goes on to the left, to the right


@dataclass(frozen=True)
class Plot:
    """Every seed of every cell as a dot."""

    score: str
    strips: Sequence[Strip]
    ticks: Sequence[tuple[float, float]]  # (value, place)
    base: float | None  # place of the base cell's mean


def write_experiment_page(table: Table, store: Path, out: Path) -> Path:
    """Write `report.html`, `table.csv` and `table.json` into the experiment's folder, and return the path of the page.

    table: of any state of the experiment, as `run_experiment` ends with or `survey` finds it. Raises InputError where the
    folder cannot be written to; never because of what lies in the store.
    """
    out = Path(out)
    page = _page(table, Found(Path(store)))
    table.write(out)
    # names and texts may hold halves of letters, for which UTF-8 has no bytes
    atomic_write(out / "report.html", page.encode("utf-8", "replace"))
    return out / "report.html"


def _page(table: Table, found: Found) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": words, "time": elapsed, "brief": brief}
    recipe, lines = table.experiment, lines_of(table)
    text = ""
    with found.attempt("The experiment cannot be written as TOML"):
        text = to_toml(recipe)
    foretold: list[Foretold] = []
    with found.attempt("Whether a loss foretells the score"):
        foretold = foretellers(table, found.run)
    here = files(__package__)
    return environment.from_string(here.joinpath("experiment_page.html.j2").read_text("utf-8")).render(
        style=here.joinpath("page.css").read_text("utf-8"),
        recipe=recipe,
        table=table,
        lines=lines,
        plots=[plot for score in recipe.measure if (plot := plot_of(score, lines)) is not None],
        waiting=sum(row.reason == WAITING for row in table.rows),
        failed=sum(row.reason not in (None, WAITING) for row in table.rows),
        floors=floors,
        able=_able(table),
        said=_said(table.verdicts),
        interval=lambda row, name: next((score.interval for score in row.scores if score.name == name), None),
        value=lambda row, name: next((score.value for score in row.scores if score.name == name), None),
        alpha=ALPHA,
        learning=learning_of(found, table),
        foretold=foretold,
        swatch=_swatch,
        gallery=gallery_of(found, table),
        conditions=conditions_of(found, table),
        text=text,
        missing=found.missing,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=versions()["giverny"],
    )


def _able(table: Table) -> bool:
    """Whether there are controls, and all of them were found worse than the cells they were made of."""
    return bool(table.controls) and all(verdict.winner == verdict.first for verdict in table.controls)


def _said(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """{sentence: the pairs it is said of}: a measure that cannot judge says the same of all."""
    said: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.sentence, []).append(verdict)
    return said


def _swatch(place: int) -> tuple[str, str]:
    """(colour, dashes) of a line in a legend, as SVG says them."""
    ink, dashes = cell_style(place)
    return f"var({CELL_INKS[ink]})", " ".join(f"{2 * length:g}" for length in dashes)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def lines_of(table: Table) -> list[Line]:
    """The cells in the order of the table, the base cell first."""
    known = {cell.label: cell for cell in cells(table.experiment)}
    lines: list[Line] = []
    for label, group in groupby(table.rows, key=lambda row: row.label):
        rows = list(group)
        scores = {name: summary for name in table.experiment.measure if (summary := _summary(rows, name)) is not None}
        spent = {kind: [row.seconds[kind] for row in rows if kind in row.seconds] for kind in ("training", "painting")}
        seconds = {kind: fmean(values) for kind, values in spent.items() if values}
        control = rows[0].control is not None
        base = not lines and (table.experiment.against == "base" or bool(table.experiment.control))
        few = len(rows) == 1 < len(table.experiment.seeds)
        lines.append(Line(label, base, control, rows, scores, seconds, _reasons(rows), known[label].published, few))
    return lines


def _summary(rows: Sequence[Row], name: str) -> Summary | None:
    found = {row.seed: score for row in rows for score in row.scores if score.name == name}
    if not found:
        return None
    values = {seed: score.value for seed, score in found.items()}
    known: dict[str, list[float]] = {}
    for score in found.values():
        for key, floor in floors(score).items():
            known.setdefault(key, []).append(floor)
    several = list(values.values())
    spread = stdev(several) if len(several) > 1 else None
    means = {key: fmean(numbers) for key, numbers in known.items()}
    return Summary(values, fmean(several), spread, mean_interval(several), means)


def brief(spread: float) -> str:
    """A spread to two digits, which is more than few seeds tell of it."""
    return f"{spread:.0f}" if spread >= 10 else f"{spread:.2g}"


def floors(score: Score) -> dict[str, float]:
    """What a score's conditions say of how low (or high) it can come, by name."""
    told = {key: number(value) for key, value in score.conditions.items() if key.startswith("floor")}
    return {key.replace("_", " "): value for key, value in told.items() if value is not None}


def _reasons(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Equal reasons once, without the names of units, which differ from seed to seed."""
    seeds: dict[str, list[str]] = {}
    for row in rows:
        if row.reason is not None:
            seeds.setdefault(UNIT_NAMED.sub(r"\1: ", row.reason), []).append(str(row.seed))
    return [(f"seed{'s' if len(which) > 1 else ''} {', '.join(which)}", why) for why, which in seeds.items()]


# ---------------------------------------------------------------------------------------------------------------------
# Dots


def plot_of(score: str, lines: Sequence[Line]) -> Plot | None:
    """The dot plot of a score; None where there are no values. An interval may reach 0.6 of the dots' own range beyond
    them: those of two seeds would leave no room for the dots."""
    from matplotlib.ticker import MaxNLocator

    shown = [(line, line.scores[score]) for line in lines if score in line.scores]
    if not shown:
        return None
    dots = [value for _, summary in shown for value in summary.values.values()]
    ends = [end for _, summary in shown if summary.interval for end in summary.interval]
    least, most = min(dots), max(dots)
    span = most - least or abs(most) / 10 or 1.0
    low, high = max(min(ends, default=least), least - 0.6 * span), min(max(ends, default=most), most + 0.6 * span)
    low, high = min(low, least) - 0.03 * span, max(high, most) + 0.03 * span

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 3)

    strips = []
    for line, summary in shown:
        left, right = summary.interval or (summary.mean, summary.mean)
        strips.append(
            Strip(
                line,
                summary,
                dots=[(seed, value, place(value)) for seed, value in summary.values.items()],
                mean=place(summary.mean),
                ends=(place(left), place(right)) if summary.interval else None,
                beyond=(left < low, right > high),
            )
        )
    ticks = [(float(tick), place(tick)) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return Plot(score, strips, ticks, strips[0].mean if strips[0].line.base else None)
