"""Curves of a run as small drawings: which quantities belong together, and how a line is drawn for the report page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

Curve = list[tuple[float, float]]  # (step, value), in the order of steps

POINTS = 300  # of a drawn line
FEW = 40  # values that are each marked; more are smoothed
# Colours that curves are drawn in, and what the page's style calls them.
FAINT, LINE, TRAIN, VALID = "#010203", "#010204", "#010205", "#010206"
INKS = {FAINT: "--faint", LINE: "--line", TRAIN: "--train", VALID: "--valid"}


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
    """An SVG element, 360 x 200, in the colours and the font of the page. linear: even where values lie far apart."""
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
        values = [value for curve in lines.values() for _, value in curve]
        if not linear and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        for kind, curve in lines.items():
            _draw_line(axes, curve, kind == "valid")
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


def _draw_line(axes: Any, curve: Curve, valid: bool) -> None:
    """Measured values; where there are many, faint, with their moving median over them."""
    color = VALID if valid else TRAIN
    steps, values = (np.array(part, dtype=np.float64) for part in zip(*curve, strict=True))
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int))
    if valid or len(steps) < FEW:
        marker = "o" if len(steps) < FEW else None
        axes.plot(steps[chosen], values[chosen], color=color, linewidth=1.4, marker=marker, markersize=2.6)
        return
    around = [min(len(steps) // FEW, i, len(steps) - 1 - i) for i in chosen]  # fewer at the ends, where it must not lean
    middle = [np.median(values[i - n : i + n + 1]) for i, n in zip(chosen, around, strict=True)]
    axes.plot(steps[chosen], values[chosen], color=color, linewidth=0.7, alpha=0.35)
    axes.plot(steps[chosen], middle, color=color, linewidth=1.4)


def _for_page(svg: str) -> str:
    """The bare element: no prolog, no fixed size, no font, no names of groups (which would repeat on a page)."""
    svg = svg[svg.index("<svg") :].replace("<svg ", '<svg aria-hidden="true" ', 1)
    svg = re.sub(r' (?:width|height)="[^"]*pt"', "", svg)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)  # coordinates, not the words
    for ink, name in INKS.items():
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
