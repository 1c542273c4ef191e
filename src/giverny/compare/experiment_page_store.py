"""What an experiment's page takes from the store: learning curves, pictures side by side, and the conditions of each cell."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..base.images import read_picture
from ..base.picture import read_provenance
from ..base.sheet import grid
from ..checkpoints.native import CARD, read_card
from ..training.log import read_log
from .cells import Row, Table, cells
from .curves import Curve, draw_cells, number, quantities, read_curves
from .report import Found
from .units import Units, picture_path

LEARNERS, CHARTS = 12, 24  # drawn
PICTURE_BYTES = 4_000_000  # of all pictures together; a third more once written as text
SHOTS = 500  # shown
SIDE, SHEET_SIDE = 256, 400  # pixels of a picture and of a contact sheet, at most
PROMPTS, EACH = 8, 9  # rows of pictures, and pictures of a contact sheet
READABLE = 128  # CSS pixels that small pictures are enlarged to, about
LETTERS = 300  # of an entry


def _work(found: Found, kind: str, key: str) -> Path:
    return found.run / kind / key / "work"


# ---------------------------------------------------------------------------------------------------------------------
# Learning curves


@dataclass(frozen=True)
class Learning:
    """stages: [(name, [(title, SVG)])]; legend: [(place among the styles, which cells)]."""

    legend: Sequence[tuple[int, str]]
    stages: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    undrawn: Sequence[str]  # quantities and cells that there was no room for


def learning_of(found: Found, table: Table) -> Learning:
    """One chart for each stage and quantity, with a line for each training; cells that share a training share its line."""
    learners: dict[tuple[str, ...], list[str]] = {}
    for cell in cells(table.experiment):
        keys = tuple(row.training for row in table.rows if row.label == cell.label and row.training)
        if keys:
            learners.setdefault(keys, []).append(cell.label)
    drawn: dict[str, dict[str, list[tuple[int, Curve]]]] = {}
    for place, keys in enumerate(list(learners)[:LEARNERS]):
        for key in keys:
            for stage, curves in _logs(found, key):
                for title, kinds in quantities(curves, None):
                    for kind, curve in kinds.items():
                        named = title + {"train": ", training", "valid": ", validation"}.get(kind, "")
                        drawn.setdefault(stage, {}).setdefault(named, []).append((place, curve))
    undrawn = [f"the curves of {', '.join(labels)}" for labels in list(learners.values())[LEARNERS:]]
    stages: list[tuple[str, list[tuple[str, str]]]] = []
    most = max(3, CHARTS // max(1, len(drawn)))
    for stage, titles in drawn.items():
        charts = []
        for title in list(titles)[:most]:
            with found.attempt(f"{stage}: {title} cannot be drawn"):
                charts.append((title, draw_cells(titles[title], f"{stage} {title}", title.startswith("learning rate"))))
        undrawn += [f"{stage}: {title}" for title in list(titles)[most:]]
        stages.append((stage, charts))
    told = [
        f"{labels[0]}{f' and {len(labels) - 1} more, of the same training' if labels[1:] else ''}"
        for labels in learners.values()
    ]
    return Learning(list(enumerate(told[:LEARNERS])) if stages else [], stages, undrawn if stages else [])


def _logs(found: Found, key: str) -> list[tuple[str, dict[str, Curve]]]:
    """(stage, its curves) of a training, in the order in which they were trained."""
    logs: list[tuple[str, dict[str, Curve]]] = []
    with found.attempt(f"training {key}: no readable log"):
        paths = sorted(_work(found, "training", key).glob("stages/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
        for path in paths:
            curves = read_curves(read_log(path))
            if curves:
                logs.append((path.parent.name, curves))
    return logs


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@dataclass(frozen=True)
class Shot:
    """A picture. width: CSS pixels; even: pixels are to stay sharp."""

    uri: str
    alt: str
    width: int
    even: bool


@dataclass(frozen=True)
class Matrix:
    """Pictures in rows and columns; where there is none, why. title: the values of further axes."""

    title: str
    down: str  # what rows are
    across: str  # what columns are
    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Shot | str]]]  # (heading, a word more, pictures)


@dataclass(frozen=True)
class Gallery:
    matrices: Sequence[Matrix]
    seed: int | None  # whose pictures they are; None where there are none
    sheet: Sequence[str]  # prompts of a contact sheet, in its order
    shown: int
    painted: int
    sections: int  # that were left out


def gallery_of(found: Found, table: Table) -> Gallery:
    """Pictures of one seed. With two axes or more a matrix of contact sheets for each value of the others, and controls
    beside the base cell; else a row for each of the first prompts and a column for each cell."""
    recipe = table.experiment
    painted = recipe.pictures * len({row.painting for row in table.rows if "painting" in row.seconds})
    have = {
        seed: sum(
            picture_path(_work(found, "painting", row.painting), 0).is_file()
            for row in table.rows
            if row.seed == seed and row.painting
        )
        for seed in recipe.seeds
    }
    seed = max(recipe.seeds, key=lambda seed: have[seed])
    if not have[seed]:
        return Gallery([], None, [], 0, painted, 0)
    rows = [row for row in table.rows if row.seed == seed]
    plain, sheets = rows, []
    if len(recipe.axis) > 1:
        sheets = _sections(table, [row for row in rows if row.control is None])
        plain = [row for row in rows if row is rows[0] or row.control is not None]
        plain = plain if plain[1:] else []
    prompts, seeds = recipe.asked(seed)
    shown_prompts = min(PROMPTS, len(prompts), max(1, SHOTS // max(1, len(plain)))) if plain else 0
    in_section = math.prod(len(axis.values) for axis in recipe.axis[:2])
    most = max(1, (SHOTS - shown_prompts * len(plain)) // max(1, in_section))
    count = shown_prompts * len(plain) + in_section * len(sheets[:most])
    shots = Shots(found, PICTURE_BYTES // max(1, count))
    numbers = range(min(EACH, len(prompts)))
    matrices = []
    for title, down, across, columns, lines in sheets[:most]:
        made = [(heading, "", [shots.sheet(row, numbers) for row in line]) for heading, line in lines]
        matrices.append(Matrix(title, down, across, columns, made))
    if plain:
        made = [
            (prompts[i] or "(no words)", f"seed {seeds[i]}", [shots.single(row, i, prompts[i]) for row in plain])
            for i in range(shown_prompts)
        ]
        matrices.append(Matrix("controls" if sheets else "", "prompt", "cell", [row.label for row in plain], made))
    told = [prompts[i] or "(no words)" for i in numbers] if sheets else []
    return Gallery(matrices, seed, told, len(shots.seen), painted, len(sheets[most:]))


Section = tuple[str, str, str, list[str], list[tuple[str, list[Row]]]]


def _sections(table: Table, rows: Sequence[Row]) -> list[Section]:
    """(title, what rows are, what columns are, columns, rows): the first axis runs across, the second down."""
    across, down, *others = table.experiment.axis
    by_values = {tuple(row.values.items()): row for row in rows}
    sections: list[Section] = []
    for rest in product(*([(axis.name, value) for value in axis.values] for axis in others)):
        lines = [(y, [by_values[(across.name, x), (down.name, y), *rest] for x in across.values]) for y in down.values]
        title = ", ".join(f"{axis} = {value}" for axis, value in rest)
        sections.append((title, down.name, across.name, list(across.values), lines))
    return sections


@dataclass
class Shots:
    """Takes pictures from the store, each of `room` bytes or less, and counts them."""

    found: Found
    room: int

    def __post_init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()

    def single(self, row: Row, number: int, prompt: str) -> Shot | str:
        """One picture of a row; where there is none, why."""
        pixels = self._read(row, number)
        return _missing(row) if pixels is None else self._shot(pixels, f"{prompt}: {row.label}", SIDE)

    def sheet(self, row: Row, numbers: Sequence[int]) -> Shot | str:
        """A row's pictures of these numbers as one."""
        found = [pixels for number in numbers if (pixels := self._read(row, number)) is not None]
        if not found:
            return _missing(row)
        return self._shot(grid(found), f"{len(found)} pictures of {row.label}", SHEET_SIDE)

    def _read(self, row: Row, number: int) -> np.ndarray | None:
        path = picture_path(_work(self.found, "painting", row.painting), number)
        if row.painting and path.is_file():
            with self.found.attempt(f"{row.label}, seed {row.seed}: a picture cannot be read"):
                pixels = read_picture(path)
                self.seen.add((row.painting, number))
                return pixels
        return None

    def _shot(self, pixels: np.ndarray, alt: str, side: int) -> Shot:
        times = max(1, round(READABLE / max(pixels.shape)))  # a whole number: pixels stay even
        return Shot(_embed(pixels, self.room, side), alt, min(side, pixels.shape[1] * times), times > 1)


def _missing(row: Row) -> str:
    return _cut((row.reason or "no picture").partition("\n")[0], 120)


def _embed(pixels: np.ndarray, room: int, side: int) -> str:
    """A data address of a picture, uint8 (H, W, 3), of about `room` bytes or less: PNG where it fits, or WebP."""
    image = Image.fromarray(pixels)
    for kind, share in (("PNG", 1.0), ("WEBP", 1.0), ("WEBP", 0.7), ("WEBP", 0.5), ("WEBP", 0.35)):
        image.thumbnail((round(side * share), round(side * share)), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, kind, optimize=True, quality=85)
        if buffer.tell() <= room:
            break
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ---------------------------------------------------------------------------------------------------------------------
# Conditions


@dataclass(frozen=True)
class Conditions:
    """Entries in which cells differ, with a value for each cell, and those that all share."""

    labels: Sequence[str]
    differ: Sequence[tuple[str, Sequence[str]]]
    shared: Sequence[tuple[str, str]]


def conditions_of(found: Found, table: Table) -> Conditions:
    """What each cell was made under, as its units, its model and its pictures say. Of a cell that has none of them only
    what the experiment itself says of it."""
    units, told = Units(found.run), {}
    for cell in cells(table.experiment):
        rows = [row for row in table.rows if row.label == cell.label]
        facts: dict[str, Any] = {"model": cell.model} if cell.model is not None else {"share of the budget": cell.share}
        replaced = (f"{part!r} is {other!r}" for part, other in cell.words.items())
        facts["changed"] = "; ".join((*cell.overrides, *cell.knobs, *replaced)) or "nothing"
        for row in reversed(rows):  # the first seed last, so that it is the one that is told
            facts |= _facts(found, units, row)
        told[cell.label] = {head: {name: _told(part) for name, part in _flat(value, head)} for head, value in facts.items()}
    differ, shared = [], []
    for head in dict.fromkeys(head for facts in told.values() for head in facts):
        known = [facts[head] for facts in told.values() if head in facts]  # a cell that never came so far differs in nothing
        for name in dict.fromkeys(name for entries in known for name in entries):
            if len({entries.get(name) for entries in known}) > 1:
                differ.append((name, [_cut(facts.get(head, {}).get(name, "")) for facts in told.values()]))
            else:
                shared.append((name, _cut(known[0][name])))
    return Conditions(list(told), differ, shared)


def _facts(found: Found, units: Units, row: Row) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    training, painting = units.identity("training", row.training), units.identity("painting", row.painting)
    facts |= {key: training[key] for key in ("training", "budget") if key in training}
    facts |= {key: painting[key] for key in ("knobs",) if key in painting}
    folder = _work(found, "training", row.training) / "model"
    if row.training and (folder / CARD).is_file():
        with found.attempt(f"{row.label}, seed {row.seed}: the model's card cannot be read"):
            card = read_card(folder)
            facts["trained by"] = {
                key: value for key, value in card.training.items() if key != "hours" and not isinstance(value, Mapping)
            }
            facts["data"] = card.data
    picture = picture_path(_work(found, "painting", row.painting), 0)
    if row.painting and picture.is_file():
        with found.attempt(f"{row.label}, seed {row.seed}: its pictures do not say how they were painted"):
            told = read_provenance(picture)
            named = ("versions", "device", "precision", "backend", "threads", "batch", "noise")
            facts["painted by"] = {name: getattr(told, name) for name in named}
    for score in row.scores:
        facts[score.name] = {
            key: value for key, value in score.conditions.items() if not key.startswith("floor") or number(value) is None
        }
    return facts


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Entries of nested tables by dotted name."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}")
    else:
        yield name, value


def _told(value: Any) -> str:
    """A value to the last digit, since what differs must be seen to differ."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str, letters: int = LETTERS) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
