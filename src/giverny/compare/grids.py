"""X/Y/Z grids: an experiment about the settings of one finished model, from a few words instead of a file; and its sheet.

An axis is a knob, or one of these: `prompt` (whole prompts), `words` (the first value is what stands in the prompts, the
others what stands there instead: AUTOMATIC1111's "Prompt S/R", scripts/xyz_grid.py), `model`, `negative`, `size`, `seed`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.images import read_picture
from ..base.recipe import check
from ..base.sheet import grid
from .cells import ExperimentRecipe, Row, Table
from .units import picture_path

CALLED = {"seed": "first seed"}  # "seed" is a column of every table
BLANK = 224  # grey of a picture that is not there


def grid_of(
    model: str, prompts: Sequence[str], axes: Sequence[str], seeds: Sequence[int], each: int = 1, knobs: Sequence[str] = ()
) -> ExperimentRecipe:
    """axes: "guidance=1,3,5" and so on; the first value of each is the base, and one with a comma stands in quotation marks.
    each: pictures of a prompt. knobs: of all cells, "steps=20"."""
    found = []
    for axis in axes:
        name, parts = _axis(axis)
        if name == "prompt":
            prompts = parts[:1]
        found.append({"name": CALLED.get(name, name), "values": _named(name, parts)})
    if not found:
        raise InputError("one axis or more, such as --axis guidance=1,3,5", "none")
    told = {
        "title": f"{model}: {' x '.join(str(a['name']) for a in found)}",
        "question": f"What do {' and '.join(str(a['name']) for a in found)} change?",
        "model": model, "prompts": list(prompts), "pictures": each * len(prompts), "seeds": list(seeds), "axis": found,
        "knobs": list(knobs),
    }  # fmt: skip
    return check(ExperimentRecipe, told, "grid")


def _axis(text: str) -> tuple[str, list[str]]:
    """The name and the values of an axis."""
    name, _, values = text.partition("=")
    try:
        parts = [value.strip() for value in next(csv.reader([values], skipinitialspace=True, strict=True), []) if value.strip()]
    except csv.Error as error:
        raise InputError("quotation marks in pairs around values", f"{text!r} ({error})") from error
    if not name.strip() or not parts:
        raise InputError("an axis such as guidance=1,3,5", repr(text))
    if len(set(parts)) < len(parts):
        raise InputError("values that differ on an axis", repr(text))
    return name.strip(), parts


def _named(name: str, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{what a value is called: what it changes}."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        if name in ("prompt", "words"):
            change: dict[str, Any] = {"words": {parts[0]: part}}
        else:
            change = {"model": part} if name == "model" else {"knobs": [f"{name}={part}"]}
        label = " ".join(re.sub("[=,]", " ", part).split()) or "..."
        found[label if label not in found else f"{label} ({len(found) + 1})"] = change
    return found


def grid_sheet(table: Table, store: Path) -> np.ndarray:
    """All pictures of a grid's first seed as one, uint8 (H, W, 3): the first axis runs across, the second down, for each value
    of further ones.

    Where a cell has no picture it is grey, with the reason below it. Raises InputError where there is none at all.
    """
    across, *down = table.experiment.axis
    rows = {frozenset(row.values.items()): row for row in table.rows if row.seed == table.experiment.seeds[0]}
    lines = list(product(*([(axis.name, value) for value in axis.values] for axis in reversed(down))))
    ordered = [rows[frozenset({(across.name, value), *line})] for line in lines for value in across.values]
    found = [_shown(row, table.experiment.pictures, store) for row in ordered]
    shape = next((pixels.shape for pixels in found if pixels is not None), None)
    if shape is None:
        raise InputError("a grid with a picture in it", f"none: {ordered[0].reason}")
    blank = np.full(shape, BLANK, np.uint8)
    labels = [
        f"{across.name} = {row.values[across.name]}" + ("" if pixels is not None else f": {row.reason or 'no picture'}")
        for row, pixels in zip(ordered, found, strict=True)
    ]
    return grid(
        [blank if pixels is None else pixels for pixels in found],
        len(across.values),
        labels,
        [", ".join(f"{name} = {value}" for name, value in line) for line in lines] if down else None,
        f"{' / '.join(table.experiment.prompts)}  ({table.experiment.model})",
        scale=None,
    )


def _shown(row: Row, count: int, store: Path) -> np.ndarray | None:
    """A cell's pictures as one; None where they are not there."""
    work = store / "painting" / row.painting / "work"
    paths = [picture_path(work, number) for number in range(count)]
    if not row.painting or not all(path.is_file() for path in paths):
        return None
    pictures = [read_picture(path) for path in paths]
    return pictures[0] if count == 1 else grid(pictures)
