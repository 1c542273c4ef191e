"""Curves of runs as small drawings: which quantities belong together, and how a line is drawn for a page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Curve = list[tuple[float, float]]  # (step, value), in the order of steps

POINTS = 300  # of a drawn line
FEW = 40  # values that are each marked; more are smoothed
# Colours that curves are drawn in, and what the page's style calls them.
FAINT, LINE, TRAIN, VALID = "#010203", "#010204", "#010205", "#010206"
INKS = {FAINT: "--faint", LINE: "--line", TRAIN: "--train", VALID: "--valid"}
CELL_INKS = {f"#01030{index}": f"--cell{index}" for index in range(8)}  # of the cells of an experiment, in turn
DASHES = ((), (5.0, 2.0), (1.5, 1.5), (7.0, 2.0, 1.5, 2.0), (3.0, 1.2))  # in widths of the line, in turn; the first is solid


@dataclass(frozen=True)
class Stroke:
    """A line as it is drawn."""

    curve: Curve
    color: str
    smooth: bool  # where there are many values, their moving median
    dashes: tuple[float, ...] = ()
    alone: bool = True  # or nearly: there is room to show single values as well


def cell_style(index: int) -> tuple[str, tuple[float, ...]]:
    """(colour, dashes) of an experiment's cell; neighbours differ in both, so that they differ in grey as well."""
    return list(CELL_INKS)[index % len(CELL_INKS)], DASHES[index % len(DASHES)]


def read_curves(records: Sequence[Any]) -> dict[str, Curve]:
    """The finite numbers of a log by name, in the order of steps; a step told twice counts as told last."""
    curves: dict[str, dict[float, float]] = {}
    for record in records:
        step = number(record.get("step")) if isinstance(record, dict) else None
        if step is None:
            continue
        for key, value in record.items():
            found = number(value)
            if key != "step" and found is not None:
                curves.setdefault(key, {})[step] = found
    return {key: sorted(curve.items()) for key, curve in curves.items()}


def quantities(curves: Mapping[str, Curve], learning_rate: float | None) -> list[tuple[str, dict[str, Curve]]]:
    """[(title, {"train" | "valid" | "": curve})]: what is measured in training and in validation shares a chart."""
    grouped: dict[str, dict[str, Curve]] = {}
    several = any(key.startswith("train/") and "." in key for key in curves)  # turns have learning rates of their own
    for key, curve in curves.items():
        kind, _, name = key.partition("/")
        if key == "train/rate" and learning_rate is not None and not several:
            grouped["learning rate"] = {"": [(step, value * learning_rate) for step, value in curve]}
        elif key == "train/rate":
            grouped["learning rate (1: its full height)"] = {"": curve}
        elif key == "time/step":
            grouped["seconds per step"] = {"": curve}
        elif kind == "checkpoint":
            grouped[f"{name} of checkpoints"] = {"": curve}
        elif kind in ("train", "valid") and name:
            grouped.setdefault(name, {})[kind] = curve
        else:
            grouped[key] = {"": curve}
    grouped.pop("skipped", None)  # counted in the table
    loss = grouped.get("loss", {})
    if list(loss) == ["train"] and any(
        lines.get("train") == loss["train"] for name, lines in grouped.items() if name != "loss"
    ):
        del grouped["loss"]  # it is that quantity and nothing else

    def rank(title: str) -> int:
        if title.startswith("learning rate") or title == "seconds per step":
            return 5
        if title.endswith(" of checkpoints"):
            return 0
        word = title.rpartition(".")[2]
        return (
            4
            if word == "norm"
            else 0
            if len(grouped[title]) > 1
            else 1
            if word == "loss"
            else 2
            if "valid" in grouped[title]
            else 3
        )

    return [(title.replace("_", " "), grouped[title]) for title in sorted(grouped, key=rank)]


def told_of(kind: str, curve: Curve) -> str:
    """Where a line ends; of a line alone in its chart, also how high it was."""
    last = words(curve[-1][1])
    if kind:
        return f"{'validation' if kind == 'valid' else kind} {last}"
    return f"last {last}, highest {words(max(value for _, value in curve))}"


def draw(lines: Mapping[str, Curve], salt: str, linear: bool) -> str:
    """The lines "train", "valid" and "" of a quantity as an SVG element. linear: even where values lie far apart."""
    strokes = [Stroke(curve, VALID if kind == "valid" else TRAIN, kind != "valid") for kind, curve in lines.items()]
    return _drawn(strokes, salt, linear)


def draw_cells(lines: Sequence[tuple[int, Curve]], salt: str, linear: bool) -> str:
    """(place of a cell, curve) of a quantity as an SVG element; a cell has one line for each of its trainings."""
    styles = [cell_style(index) for index, _ in lines]
    strokes = [Stroke(c, color, True, dashes, False) for (_, c), (color, dashes) in zip(lines, styles, strict=True)]
    return _drawn(strokes, salt, linear)


def _drawn(strokes: Sequence[Stroke], salt: str, linear: bool) -> str:
    """An SVG element, 360 x 200, in the colours and the font of the page."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    own = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 10, "axes.linewidth": 0.6, "axes.edgecolor": LINE}
    own |= {"axes.spines.top": False, "axes.spines.right": False, "xtick.color": FAINT, "ytick.color": FAINT}
    own |= {"axes.labelcolor": FAINT, "xtick.major.size": 3, "ytick.major.size": 0}
    # the defaults first: a person's own style must not reach the page; all of it is put back afterwards
    with matplotlib.style.context(["default", own]), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(5, 2.78), dpi=72)
        axes = figure.add_axes((0.115, 0.175, 0.87, 0.8))
        values = [value for stroke in strokes for _, value in stroke.curve]
        if not linear and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        for stroke in strokes:
            _draw_line(axes, stroke)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
        axes.grid(axis="y", color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("step", labelpad=1)
        buffer = io.StringIO()
        about = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # nothing, so that equal curves give equal pages
        figure.savefig(buffer, format="svg", transparent=True, metadata=about)
    return _for_page(buffer.getvalue())


def _draw_line(axes: Any, stroke: Stroke) -> None:
    """Measured values; where there are many to be smoothed, their moving median, over them where there is room."""
    style: dict[str, Any] = {"color": stroke.color, "linestyle": (0, stroke.dashes) if stroke.dashes else "-"}
    steps, values = (np.array(part, dtype=np.float64) for part in zip(*stroke.curve, strict=True))
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int))
    if not stroke.smooth or len(steps) < FEW:
        marker = "o" if len(steps) < (FEW if stroke.alone else 2) else None
        axes.plot(steps[chosen], values[chosen], linewidth=1.4, marker=marker, markersize=2.6, **style)
        return
    around = [min(len(steps) // FEW, i, len(steps) - 1 - i) for i in chosen]  # fewer at the ends, where it must not lean
    middle = [np.median(values[i - n : i + n + 1]) for i, n in zip(chosen, around, strict=True)]
    if stroke.alone:
        axes.plot(steps[chosen], values[chosen], linewidth=0.7, alpha=0.35, **style)
    axes.plot(steps[chosen], middle, linewidth=1.4, **style)


def _for_page(svg: str) -> str:
    """The bare element: no prolog, no fixed size, no font, no names of groups (which would repeat on a page)."""
    svg = svg[svg.index("<svg") :].replace("<svg ", '<svg aria-hidden="true" ', 1)
    svg = re.sub(r' (?:width|height)="[^"]*pt"', "", svg)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)  # coordinates, not the words
    for ink, name in (INKS | CELL_INKS).items():
        svg = svg.replace(ink, f"var({name})")
    return svg


def number(value: Any) -> float | None:
    """A finite number as a float; None for everything else, true and false among it."""
    try:
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def words(value: Any) -> str:
    """A number to read: whole ones with their thousands apart, others to four digits; "?" for what is no number."""
    found = number(value)
    if found is None:
        return "?"
    return f"{found:,.0f}" if abs(found) < 1e12 and found.is_integer() else f"{found:.4g}"


def elapsed(value: Any) -> str:
    """Seconds in the unit that suits them."""
    seconds = number(value)
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
