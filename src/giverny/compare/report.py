"""A training run on one page: what was trained on what, how it went, and what came out.

The page is one HTML file that needs nothing else: pictures lie inside it, curves are drawn into it (by matplotlib, as
SVG that takes the page's colours, light or dark), and nothing in it asks for an address or runs a program. It may be
written at any moment of a run: a part that is missing or damaged is named on the page and stops nothing.
"""

from __future__ import annotations

import base64
import io
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

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
from .curves import Curve, draw, elapsed, number, quantities, read_curves, told_of, words

CHECKPOINTS = "checkpoints.json"  # in a run folder: what `giverny choose` found
STAGES = 20  # shown; further ones are counted
CHARTS, SHOTS = 60, 60  # on the whole page
CHARTS_EACH, SHOTS_EACH = 12, 8  # of a stage
PICTURE_BYTES = 1_500_000  # of all pictures together; a third more once written as text
LETTERS = 100_000  # of the recipe
LARGE = 560  # CSS pixels, about how wide the last picture of a stage is shown


@dataclass(frozen=True)
class Chart:
    """A drawn quantity. told: (kind of line, where it ends); svg: markup made here."""

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
    """What is known of a stage; numbers that are not known are None."""

    name: str
    status: str
    begun: bool = False
    finished: bool = False
    steps: Any = None
    seconds: Any = None
    batch: Any = None
    precision: str = ""
    skipped: Any = None
    recorded: bool = False  # whether a state says how it was planned
    budget: float | None = None  # seconds
    pace: float | None = None  # seconds a step takes, the median
    charts: Sequence[Chart] = ()
    undrawn: Sequence[str] = ()
    shots: Sequence[Shot] = ()
    previews: int = 0  # in the folder


@dataclass
class Found:
    """A run folder, what is read of it for the whole page, and what could not be had."""

    run: Path
    text: str = ""  # of the recipe
    recipe: dict[str, Any] = field(default_factory=dict)
    card: Card | None = None
    missing: list[str] = field(default_factory=list)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Go on after any error: the page says what failed, and shows the rest."""
        try:
            yield
        except Exception as error:
            said = (str(error).splitlines() or [""])[0] or type(error).__name__
            self.missing.append(f"{what}: {said.replace(f'{self.run}/', '')[:300]}")

    def setting(self, *path: str) -> Any:
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
        with found.attempt("The model's card cannot be read"):
            found.card = read_card(run / "model")
    else:
        found.missing.append("No model yet (model/card.json): device, threads and versions are written there at the end.")
    page = _page(found, _read_stages(found))
    # names and texts may hold halves of letters, for which UTF-8 has no bytes
    atomic_write(run / "report.html", page.encode("utf-8", "replace"))
    return run / "report.html"


def _page(found: Found, stages: Sequence[Stage]) -> str:
    from jinja2 import ChainableUndefined, Environment

    # a recipe may lack any entry, and an entry may be anything
    environment = Environment(autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"time": elapsed, "number": words, "plain": _plain}
    card, own = found.card, found.recipe
    name = (card and card.name) or own.get("name") or found.run.resolve().name
    return environment.from_string(files(__package__).joinpath("report.html.j2").read_text("utf-8")).render(
        title=(card and card.title) or own.get("title") or name,
        name=name,
        family=(card and card.family) or own.get("family") or "unknown family",
        card=card,
        own=own,
        known=CATALOG.get(str(found.setting("data", "source"))),
        recipe=found.text[:LETTERS],
        cut=max(0, len(found.text) - LETTERS),
        stages=stages,
        finished=bool(card) and all(stage.finished for stage in stages),
        final=next((stage for stage in reversed(stages) if stage.shots), None),
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
    with found.attempt("The recipe cannot be read"):
        found.text = path.read_bytes().decode("utf-8-sig", "replace")
        found.recipe = tomllib.loads(found.text)


def _read_stages(found: Found) -> list[Stage]:
    """Stages in the order of the recipe (its tables that have a `loop`), or else of the time of their last line."""

    def age(folder: Path) -> tuple[float, str]:
        log = folder / "metrics.jsonl"
        return (log if log.exists() else folder).stat().st_mtime, folder.name

    planned = [name for name, part in found.recipe.items() if isinstance(part, dict) and "loop" in part]
    folders: list[Path] = []
    if (found.run / "stages").is_dir():
        with found.attempt("The stages cannot be listed"):
            folders = sorted((path for path in (found.run / "stages").iterdir() if path.is_dir()), key=age)
    folders.sort(key=lambda folder: planned.index(folder.name) if folder.name in planned else len(planned))
    names = [folder.name for folder in folders]
    if not names and not planned:
        found.missing.append("No stages (stages/): nothing has been trained in this folder.")
    if len(names) > STAGES:
        found.missing.append(f"{len(names) - STAGES} of {len(names)} stages are not shown: {names[STAGES]} and those after it.")
    count = min(len(names), STAGES)
    stages = [_read_stage(found, folder, count) for folder in folders[:STAGES]]
    return stages + [Stage(name, "not begun") for name in planned[:STAGES] if name not in names]


def _read_stage(found: Found, folder: Path, count: int) -> Stage:
    """count: stages that share the page."""
    name, finished = folder.name, (folder / "done.json").is_file()
    facts: dict[str, Any] = {"batch": found.setting(name, "loop", "batch")}
    curves: dict[str, Curve] = {}
    counters: Counters | None = None
    with found.attempt(f"{name}: no readable log"):
        curves = read_curves(read_log(folder / "metrics.jsonl"))
    logged = max((curve[-1][0] for curve in curves.values()), default=None)
    with found.attempt(f"{name}: {CHECKPOINTS} cannot be read"):
        curves |= _measured(found.run, name)
    with found.attempt(f"{name}: no readable state"):
        counters = read_counters(folder / "state")
    if counters is not None:
        facts |= {"budget": counters.plan.budget, "recorded": True, "steps": counters.step}
        facts |= {"seconds": counters.seconds, "precision": counters.precision, "skipped": counters.skipped}
    if finished:
        with found.attempt(f"{name}: done.json cannot be read"):
            note = json.loads((folder / "done.json").read_text("utf-8"))
            facts |= {key: note[key] for key in ("steps", "seconds", "batch", "precision", "skipped") if key in note}
    if not curves:
        found.missing.append(f"{name}: no curves (nothing in metrics.jsonl).")
    elif not any(key.startswith("valid/") for key in curves):
        found.missing.append(f"{name}: no validation yet.")
    if "time/step" in curves:
        facts["pace"] = median(value for _, value in curves["time/step"])
    facts["steps"] = facts.get("steps", logged)
    facts["charts"], facts["undrawn"] = _charts(found, name, curves, max(3, min(CHARTS_EACH, CHARTS // count)))
    facts["shots"], facts["previews"] = _shots(found, folder, count)
    return Stage(name, "finished" if finished else _standing(counters, logged), True, finished, **facts)


def _measured(run: Path, stage: str) -> dict[str, Curve]:
    """The scores of a stage's checkpoints, as curves; nothing where none was measured."""
    path = run / CHECKPOINTS
    told = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if told.get("stage") != stage:
        return {}
    return read_curves(
        [
            {"step": one["step"], **{f"checkpoint/{score['name']}": score["value"] for score in one["scores"]}}
            for one in told["checkpoints"]
        ]
    )


def _standing(counters: Counters | None, logged: float | None) -> str:
    """Where an unfinished stage is; whether it still runs cannot be seen from its folder."""
    said = f"saved at step {counters.step:,} of {counters.plan.total:,}" if counters else "no readable state"
    further = logged is not None and (counters is None or logged > counters.step)
    return f"not finished: {said}" + (f", logged up to step {words(logged)}" if further else "")


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def _charts(found: Found, stage: str, curves: Mapping[str, Curve], most: int) -> tuple[list[Chart], list[str]]:
    """The charts of a stage, the most telling first, and the names of those that are left out."""
    found_quantities = quantities(curves, number(found.setting(stage, "loop", "learning_rate")))
    charts = []
    for title, lines in found_quantities[:most]:
        told = [("valid" if kind == "valid" else "train", told_of(kind, curve)) for kind, curve in lines.items()]
        svg = ""
        with found.attempt(f"{stage}: {title} cannot be drawn"):
            svg = draw(lines, f"{stage} {title}", linear=title.startswith("learning rate"))
        charts.append(Chart(title, told, svg))
    return charts, [title for title, _ in found_quantities[most:]]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def _shots(found: Found, folder: Path, count: int) -> tuple[list[Shot], int]:
    """A stage's previews, evenly chosen, the first and the last among them; and how many there are."""
    paths = list((folder / "previews").glob("*.png"))
    paths.sort(key=lambda path: (int(path.stem) if path.stem.isdecimal() else -1, path.name))
    most = max(2, min(SHOTS_EACH, SHOTS // count))
    room = PICTURE_BYTES // (count * (most + 3))  # the last picture may take as much as four
    shots = []
    for place in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)):
        path, last = paths[place], place == len(paths) - 1
        with found.attempt(f"{folder.name}: a preview cannot be read"):
            pixels = read_picture(path)
            label = f"step {int(path.stem):,}" if path.stem.isdecimal() else path.stem
            width = pixels.shape[1] * max(1, round(LARGE / pixels.shape[1]))  # a whole number of times: pixels stay even
            shots.append(Shot(label, _embed(pixels, room * 4 if last else room), width))
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


def _plain(value: Any) -> str:
    """A value from a card or a recipe in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    return str(value) if number(value) is None else words(value)
