"""A training run on one page: what was trained on what, how it went, and what came out.

The page is one HTML file that needs nothing else: pictures lie inside it, curves are drawn into it (by matplotlib, as
SVG that takes the page's colours, light or dark), and nothing in it asks for an address or runs a program. It may be
written at any moment of a run: a part that is missing or damaged is named on the page and stops nothing.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..base.errors import InputError
from ..base.files import atomic_write
from ..base.images import read_picture
from ..base.runtime import versions
from ..checkpoints.native import CARD, Card, read_card
from ..data.catalog import CATALOG
from ..training.log import read_log
from ..training.state import Counters, read_counters

T = TypeVar("T")
Curve = list[tuple[float, float]]  # (step, value), in the order of steps

STAGES = 20  # shown one by one; runs of more are named and counted
CHARTS, SHOTS = 60, 60  # on the whole page
CHARTS_EACH, SHOTS_EACH = 12, 8  # of a stage, at most
PICTURE_BYTES = 1_500_000  # of all pictures together; a third more once written as text
RECIPE_LETTERS = 100_000
LARGE = 560  # CSS pixels, about how wide the last picture of a stage is shown
POINTS = 300  # of a drawn line
# Colours that the drawing is made with, and what the page's style calls them.
INKS = {"#010203": "--faint", "#010204": "--line", "#010205": "--train", "#010206": "--valid"}
FAINT, LINE, TRAIN, VALID = INKS


@dataclass(frozen=True)
class Chart:
    """A drawn quantity. told: (kind of line, words) of its last and best values; svg: trusted, made here."""

    title: str
    told: Sequence[tuple[str, str]]
    svg: str


@dataclass(frozen=True)
class Shot:
    """A preview. width: in CSS pixels, where it is shown large."""

    label: str
    uri: str
    width: int


@dataclass(frozen=True)
class Stage:
    """What is known of a stage, in words where the page shows words."""

    name: str
    finished: bool = False
    begun: bool = True
    status: str = ""
    steps: float | None = None
    seconds: float | None = None
    batch: float | None = None
    precision: str = ""
    budget: float | None = None  # seconds
    pace: float | None = None  # seconds a step, the median
    skipped: float | None = None
    charts: Sequence[Chart] = ()
    undrawn: Sequence[str] = ()
    shots: Sequence[Shot] = ()
    previews: int = 0  # in the folder


@dataclass
class Found:
    """What a run folder holds, and a list of what could not be had from it."""

    run: Path
    recipe_text: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    card: Card | None = None
    missing: list[str] = field(default_factory=list)

    def attempt(self, what: str, read: Callable[[], T], otherwise: T) -> T:
        """What `read` returns; where it fails, for whatever reason, the page says so and shows the rest."""
        try:
            return read()
        except Exception as error:
            said = (str(error).splitlines() or [""])[0] or type(error).__name__
            self.missing.append(f"{what}: {said.replace(str(self.run) + '/', '')[:300]}")
            return otherwise

    def part(self, *path: str) -> Any:
        """An entry of the recipe, or None."""
        place: Any = self.recipe
        for key in path:
            place = place.get(key) if isinstance(place, dict) else None
        return place


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder, whole or not at all, and return its path.

    The folder may be of a run that is going on, has crashed or is done. Raises InputError where there is no such folder
    or it cannot be written to; never because of what lies in it.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError("a run folder", str(run), "It is made by `giverny train`.")
    found = Found(run)
    _read_recipe(found)
    if (run / "model" / CARD).is_file():
        found.card = found.attempt("The model's card cannot be read", lambda: read_card(run / "model"), None)
    else:
        found.missing.append("No model yet (model/card.json): device, threads and versions are written there at the end.")
    stages = _read_stages(found)
    page = _fill_template(found, stages)
    # names and texts may hold halves of letters that UTF-8 has no bytes for
    atomic_write(run / "report.html", page.encode("utf-8", "replace"))
    return run / "report.html"


def _fill_template(found: Found, stages: Sequence[Stage]) -> str:
    from jinja2 import Environment, StrictUndefined

    text = files(__package__).joinpath("report.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"time": _time, "count": _count, "plain": _plain, "number": _short}
    card, own = found.card, found.recipe
    title = (card and card.title) or own.get("title") or (card and card.name) or own.get("name") or found.run.resolve().name
    final = next((stage for stage in reversed(stages) if stage.shots), None)
    return environment.from_string(text).render(
        title=str(title),
        name=str((card and card.name) or own.get("name") or found.run.resolve().name),
        family=str((card and card.family) or own.get("family") or "unknown family"),
        finished=bool(card) and all(stage.finished for stage in stages),
        conditions=_conditions(found, stages),
        stages=stages,
        final=final,
        prompts=[str(p) for p in (card.prompts if card else own.get("prompts") or ()) if isinstance(p, str)][:40],
        card=card,
        recipe=found.recipe_text[:RECIPE_LETTERS],
        recipe_cut=max(0, len(found.recipe_text) - RECIPE_LETTERS),
        missing=found.missing,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=versions()["giverny"],
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reading the folder


def _read_recipe(found: Found) -> None:
    path = found.run / "recipe.toml"
    if not path.is_file():
        found.missing.append("No recipe (recipe.toml).")
        return
    raw = found.attempt("The recipe cannot be read", path.read_bytes, b"")
    found.recipe_text = raw.decode("utf-8-sig", "replace")
    found.recipe = found.attempt("The recipe is not TOML", lambda: tomllib.loads(found.recipe_text), {})


def _read_stages(found: Found) -> list[Stage]:
    """Stages in the order of the recipe (its tables that have a `loop`), or else of their last line."""
    planned = [name for name, part in found.recipe.items() if isinstance(part, dict) and "loop" in part]
    here = found.attempt("The stages cannot be listed", lambda: _folders(found.run / "stages"), [])
    rank = {name: place for place, name in enumerate(planned)}
    here.sort(key=lambda folder: rank.get(folder.name, len(rank)))
    planned = [name for name in planned if name not in {folder.name for folder in here}]
    if not here and not planned:
        found.missing.append("No stages (stages/): nothing has been trained in this folder.")
    if len(here) > STAGES:
        found.missing.append(f"{len(here) - STAGES} of {len(here)} stages are not shown, {here[STAGES].name} and on.")
    shown = here[:STAGES]
    stages = [_read_stage(found, folder, len(shown)) for folder in shown]
    return stages + [Stage(name, begun=False, status="not begun") for name in planned[:STAGES]]


def _folders(place: Path) -> list[Path]:
    def age(folder: Path) -> tuple[float, str]:
        log = folder / "metrics.jsonl"
        return (log if log.exists() else folder).stat().st_mtime, folder.name

    return sorted((path for path in place.iterdir() if path.is_dir()), key=age) if place.is_dir() else []


def _read_stage(found: Found, folder: Path, stages: int) -> Stage:
    name = folder.name

    def read_note() -> dict[str, Any]:
        note = json.loads((folder / "done.json").read_text("utf-8"))
        return note if isinstance(note, dict) else {}

    finished = (folder / "done.json").is_file()
    note = found.attempt(f"{name}: done.json cannot be read", read_note, {}) if finished else {}
    counters: Counters | None = found.attempt(f"{name}: the state", lambda: read_counters(folder / "state"), None)
    records = found.attempt(f"{name}: metrics.jsonl cannot be read", lambda: read_log(folder / "metrics.jsonl"), [])
    curves = _curves(records)
    if not curves:
        found.missing.append(f"{name}: no curves (nothing in metrics.jsonl).")
    elif not any(key.startswith("valid/") for key in curves):
        found.missing.append(f"{name}: no validation yet.")
    logged = max((curve[-1][0] for curve in curves.values()), default=None)
    steps = _number(note.get("steps")) if finished else counters.step if counters else logged
    status = "finished" if finished else _standing(counters, logged)
    charts, undrawn = _charts(found, name, curves, stages)
    shots, previews = _shots(found, folder, stages)
    precision = note.get("precision") or (counters.precision if counters else "")
    return Stage(
        name=name,
        finished=finished,
        status=status,
        steps=steps,
        seconds=_number(note.get("seconds")) if finished else counters.seconds if counters else None,
        batch=_number(note.get("batch", found.part(name, "loop", "batch"))),
        precision=str(precision),
        budget=counters.plan.budget if counters else None,
        pace=median(value for _, value in curves["time/step"]) if "time/step" in curves else None,
        skipped=_number(note.get("skipped")) if finished else counters.skipped if counters else None,
        charts=charts,
        undrawn=undrawn,
        shots=shots,
        previews=previews,
    )


def _standing(counters: Counters | None, logged: float | None) -> str:
    """Where a stage is that is not done; whether it still runs cannot be seen from its folder."""
    parts = [f"saved at step {counters.step:,} of {counters.plan.total:,}" if counters else "nothing saved yet"]
    if logged is not None and (counters is None or logged > counters.step):
        parts.append(f"logged up to step {_short(logged)}")
    return "not finished: " + ", ".join(parts)


def _curves(records: Sequence[Any]) -> dict[str, Curve]:
    """The finite numbers of a log by name, in the order of steps; a step told twice counts as told last."""
    curves: dict[str, dict[float, float]] = {}
    for record in records:
        step = _number(record.get("step")) if isinstance(record, dict) else None
        for key, value in record.items() if step is not None else ():
            number = _number(value)
            if key != "step" and number is not None:
                curves.setdefault(key, {})[step] = number
    return {key: sorted(curve.items()) for key, curve in curves.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def _charts(found: Found, stage: str, curves: Mapping[str, Curve], stages: int) -> tuple[list[Chart], list[str]]:
    """The charts of a stage, the most telling first, and the names of those that are left out."""
    most = max(3, min(CHARTS_EACH, CHARTS // stages))
    quantities = _quantities(curves, _number(found.part(stage, "loop", "learning_rate")))
    charts = []
    for title, lines in quantities[:most]:
        words = [("train" if kind == "train" else "valid", _told(kind, lines[kind])) for kind in lines]
        svg = found.attempt(f"{stage}: the curve of {title} cannot be drawn", lambda: _draw(lines, f"{stage} {title}"), "")  # noqa: B023
        charts.append(Chart(title, words, svg))
    return charts, [title for title, _ in quantities[most:]]


def _quantities(curves: Mapping[str, Curve], learning_rate: float | None) -> list[tuple[str, dict[str, Curve]]]:
    """[(title, {"train" | "valid" | "": curve})]: what is measured in training and in validation shares a chart."""
    grouped: dict[str, dict[str, Curve]] = {}
    several = any(key.startswith("train/") and "." in key for key in curves)  # turns have learning rates of their own
    for key, curve in curves.items():
        kind, _, name = key.partition("/")
        if key == "train/rate":
            scale = learning_rate if learning_rate and not several else 1.0
            title = "learning rate" if scale == learning_rate else "learning rate, as a share of its height"
            grouped[title] = {"": [(step, value * scale) for step, value in curve]}
        elif key == "time/step":
            grouped["seconds per step"] = {"": curve}
        elif kind in ("train", "valid") and name:
            grouped.setdefault(name, {})[kind] = curve
        else:
            grouped[key] = {"": curve}
    grouped.pop("skipped", None)  # counted in the table
    twins = [name for name in grouped if name != "loss" and grouped[name].get("train") == grouped.get("loss", {}).get("train")]
    if twins and "train" in grouped["loss"] and "valid" not in grouped["loss"]:
        del grouped["loss"]  # the loss is that quantity and nothing else

    def rank(title: str) -> int:
        last = {"learning rate": 5, "learning rate, as a share of its height": 5, "seconds per step": 6}
        if title in last or title.rpartition(".")[2] == "norm":
            return last.get(title, 4)
        return 0 if len(grouped[title]) > 1 else 1 if title.rpartition(".")[2] == "loss" else 2 if "valid" in grouped[title] else 3

    return [(title.replace("_", " "), grouped[title]) for title in sorted(grouped, key=rank)]


def _told(kind: str, curve: Curve) -> str:
    """Where a line ends; of a line that is nothing else, its median."""
    word = {"train": "train", "valid": "validation"}.get(kind, "")
    step, value = curve[-1]
    return f"{word} {_short(value)}".strip() if kind else f"{_short(value)} at step {_short(step)}, median {_short(median(v for _, v in curve))}"


def _draw(lines: Mapping[str, Curve], salt: str) -> str:
    """An SVG element, 360 x 200, in the colours and the font of the page around it."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    values = [value for curve in lines.values() for _, value in curve]
    logarithmic = min(values) > 0 and max(values) > 20 * min(values)
    own = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 7.5, "axes.linewidth": 0.6, "axes.edgecolor": LINE}
    own |= {"axes.spines.top": False, "axes.spines.right": False, "xtick.color": FAINT, "ytick.color": FAINT}
    own |= {"axes.labelcolor": FAINT, "xtick.major.size": 3, "ytick.major.size": 0, "lines.solid_joinstyle": "round"}
    # the defaults first: a person's own style must not reach the page; all of it is put back afterwards
    with matplotlib.style.context(["default", own]), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(5, 2.78), dpi=72)
        axes = figure.add_axes((0.115, 0.165, 0.87, 0.8))
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        for kind, curve in lines.items():
            _draw_line(axes, curve, VALID if kind == "valid" else TRAIN, dots=kind == "valid")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axes.grid(axis="y", color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("step")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(buffer.getvalue())


def _draw_line(axes: Any, curve: Curve, color: str, dots: bool) -> None:
    """Measured values; where there are many and they scatter, faint, with their moving average over them."""
    steps, values = (np.array(part, dtype=np.float64) for part in zip(*curve, strict=True))
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int))
    if dots or len(steps) < 40:
        axes.plot(steps[chosen], values[chosen], color=color, linewidth=1.4, marker="o" if len(steps) < 40 else None, markersize=2.6)
        return
    window = np.ones(len(steps) // 40 * 2 + 1)
    mean = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
    axes.plot(steps[chosen], values[chosen], color=color, linewidth=0.7, alpha=0.35)
    axes.plot(steps[chosen], mean[chosen], color=color, linewidth=1.4)


def _for_page(svg: str) -> str:
    """The bare element, without prolog, fixed size, names of groups (which would repeat on a page) or its own font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    svg = re.sub(r"font: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"(\d+\.\d\d)\d+", r"\1", svg)
    for ink, name in INKS.items():
        svg = svg.replace(ink, f"var({name})")
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def _shots(found: Found, folder: Path, stages: int) -> tuple[list[Shot], int]:
    """A stage's previews, evenly chosen, the first and the last among them; and how many there are."""

    def listed() -> list[Path]:
        return sorted((folder / "previews").glob("*.png"), key=lambda p: (int(p.stem) if p.stem.isdecimal() else -1, p.name))

    paths = found.attempt(f"{folder.name}: previews cannot be listed", listed, [])
    most = max(2, min(SHOTS_EACH, SHOTS // stages))
    places = np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int))
    room = PICTURE_BYTES // (stages * (most + 3))  # the last picture may take as much as four
    shots = []
    for place in places:
        path, last = paths[place], place == len(paths) - 1
        pixels = found.attempt(f"{folder.name}: a preview cannot be read", lambda: read_picture(path), None)  # noqa: B023
        if pixels is not None:
            wide = pixels.shape[1]
            label = f"step {int(path.stem):,}" if path.stem.isdecimal() else path.stem
            shots.append(Shot(label, _embed(pixels, room * 4 if last else room), wide * max(1, round(LARGE / wide))))
    return shots, len(paths)


def _embed(pixels: np.ndarray, room: int) -> str:
    """A data address of a picture, uint8 (H, W, 3), of about `room` bytes or less: PNG where it fits, or a smaller JPEG."""
    image = Image.fromarray(pixels)
    if (pixels == pixels[..., :1]).all():
        image = image.convert("L")
    for kind, side in (("PNG", 1024), *(("JPEG", side) for side in (1024, 768, 512, 384, 256))):
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, kind, optimize=True, quality=85)
        if buffer.tell() <= room:
            break
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ---------------------------------------------------------------------------------------------------------------------
# Words


def _conditions(found: Found, stages: Sequence[Stage]) -> list[str]:
    """Sentences without which the curves and scores mean nothing. Only what is on record is said."""
    begun = [stage for stage in stages if stage.begun]
    told = [_data(found), _machine(found)]
    precisions = {stage.precision for stage in begun if stage.precision}
    if len(precisions) == 1:
        told.append(f"Precision {precisions.pop()}.")
    elif precisions:
        told.append("Precision: " + ", ".join(f"{s.name} {s.precision}" for s in begun if s.precision) + ".")
    lengths = []
    for stage in begun:
        of = f" of {_count(stage.batch)} examples" if stage.batch is not None else ""
        time = f" in {_time(stage.seconds)}" if stage.seconds is not None else ""
        lengths.append(f"{stage.name} {_count(stage.steps)} steps{of}{time}")
    if lengths:
        spent = [stage.seconds for stage in begun if stage.seconds is not None]
        whole = f", {_time(sum(spent))} in all" if len(spent) > 1 else ""
        told.append("Trained: " + "; ".join(lengths) + whole + ".")
    budget = _number(found.part("budget"))
    given = [f"{stage.name} {_time(stage.budget)}" for stage in begun if stage.budget is not None]
    if budget is not None:
        told.append(f"The recipe's time budget is {_time(budget)} for all stages together.")
    told.append("Time given to the stages: " + ", ".join(given) + "." if given else "No stage was held to a time budget.")
    licence = found.card.licence if found.card else found.part("licence")
    told.append(f"Licence of the weights: {licence}." if licence else "No licence of the weights is stated.")
    return [sentence for sentence in told if sentence]


def _data(found: Found) -> str:
    """Which pictures, how many, under which licence, and how they were brought to size."""
    facts = dict(found.card.data) if found.card else {}
    source = found.part("data", "source")
    known = CATALOG.get(source) if isinstance(source, str) else None
    name = facts.get("name") or source
    if not name:
        return "What it was trained on is not on record."
    number = _number(facts.get("pictures"))
    count = f"{_count(number)} pictures" if number is not None else f"{known.count} pictures in all" if known else "pictures not counted yet"
    licence = facts.get("licence") or (known.licence if known else "not on record")
    size, held = found.part("data", "size"), _number(found.part("data", "validation"))
    brought = f", brought to {' x '.join(map(str, size))} pixels" if isinstance(size, list) and len(size) == 2 else ""
    held_out = f", {_count(held)} of them held out for validation" if held else ""
    return f"Data: {name}, {count}{brought}{held_out}; licence: {licence}."


def _machine(found: Found) -> str:
    facts = dict(found.card.training) if found.card else {}
    device = f"Trained on {facts['device']}" if facts.get("device") else ""
    threads = f"{facts['threads']} threads" if facts.get("threads") else ""
    ability = str(facts.get("cpu_capability") or "")
    packages = ", ".join(f"{name} {facts[name]}" for name in ("giverny", "torch", "python") if facts.get(name))
    text = ", ".join(part for part in (device, threads, ability) if part)
    said = f"{text}; {packages}." if text and packages else f"{text or packages}." if text or packages else ""
    return said or "Device, threads and versions are not on record."


def _number(value: Any) -> float | None:
    """A finite number as a float; None for everything else, true and false among it."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _short(value: float) -> str:
    """A number to read: whole ones with their thousands apart, others to four digits."""
    return f"{value:,.0f}" if abs(value) < 1e12 and float(value).is_integer() else f"{value:.4g}"


def _count(value: float | None) -> str:
    return "?" if value is None else _short(value)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"


def _plain(value: Any) -> str:
    """A value from a card in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    number = _number(value)
    return str(value) if number is None else _short(number)
