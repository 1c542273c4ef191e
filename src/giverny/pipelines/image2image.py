"""A picture becomes another: the story behind `giverny paint --from`, for any painter that follows `Request.start`."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..base.contracts import Done, Event, Painter, Provenance, Request
from ..base.errors import InputError
from ..base.images import Fit
from ..base.start import Box, Enclosed, Start, enclosed, pasted
from .walk import able

PADDING = 32  # pixels of surroundings that painting around a mask looks at


def start_from(
    picture: Path,
    strength: float = 0.6,
    mask: Path | Literal["alpha"] | None = None,
    fill: Literal["original", "noise"] = "original",
    fit: Fit = "crop",
) -> Start:
    """A start from files; "alpha": the mask is what is transparent in the picture.

    Raises InputError for files that cannot be started from, and for a strength beyond 0..1.
    """
    if not 0 <= strength <= 1:
        raise InputError("a strength from 0 (the picture as it is) to 1 (painted anew)", f"{strength:g}")
    white = enclosed(mask) if isinstance(mask, Path) else mask
    start = Start(picture=enclosed(picture), strength=strength, mask=white, fill=fill, fit=fit)
    start.whole()
    return start


def as_before(start: Start, before: Start, said: Collection[str]) -> tuple[Start, list[str]]:
    """A start with all that a recorded one says and nobody said otherwise, and a sentence for each file that is another.

    before: of a picture's provenance, its files left behind. said: names of the fields of `start` that hold as they are.
    """
    files = {"picture": (start.picture, before.picture), "mask": (start.mask, before.mask)}
    others = [
        f"{now.name} is another {what} than {then.name}, with which it began (SHA-256 {then.sha256[:12]}...)"
        for what, (now, then) in files.items()
        if isinstance(now, Enclosed) and isinstance(then, Enclosed) and now.sha256 != then.sha256
    ]
    apart = {"picture", "mask", "box", *said}
    told = {name: getattr(before, name) for name in Start.model_fields if name not in apart}
    if before.mask == "alpha" and "mask" not in said:
        told["mask"] = before.mask
    if not others and isinstance(start.mask, Enclosed) == isinstance(before.mask, Enclosed):
        told["box"] = before.box
    return start.model_copy(update=told), others


def only_masked(start: Start, size: tuple[int, int], padding: int = PADDING) -> Start:
    """A start from what is around the mask alone, which is painted at `size` (width, height) and pasted back.

    padding: pixels around what is white, as far as the picture goes. Raises InputError where there is no mask.
    """
    _, mask = start.whole()
    if mask is None:
        raise InputError("a mask to paint around", "a picture without one", "Give --mask.")
    return start.model_copy(update={"box": box_around(mask, size, padding)})


def box_around(mask: np.ndarray, size: tuple[int, int], padding: int) -> Box:
    """The part of a mask (H, W) with all that is white in it, widened to the proportions of `size` where there is room."""
    ends = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(1 - axis))
        length = mask.shape[axis]
        ends.append((max(0, int(places[0]) - padding), min(length, int(places[-1]) + 1 + padding)))
    wide, high = (end - first for first, end in ends)
    wanted = (max(wide, round(high * size[0] / size[1])), max(high, round(wide * size[1] / size[0])))
    (left, right), (top, bottom) = (
        _widened(span, side, length) for span, side, length in zip(ends, wanted, (mask.shape[1], mask.shape[0]), strict=True)
    )
    return left, top, right, bottom


def _widened(span: tuple[int, int], side: int, length: int) -> tuple[int, int]:
    """A span of `side` places around the middle of another, moved to lie within 0..length; all of it where that is less."""
    side = min(side, length)
    first = min(max(0, (span[0] + span[1] - side) // 2), length - side)
    return first, first + side


def paint_over(
    painter: Painter, requests: Sequence[Request], previews: bool = False, trace: bool = False
) -> Generator[Event, None, None]:
    """Paint; what was painted around a mask alone comes back in its whole picture. Requests without a start pass as well."""
    starts = {request.id: request.start for request in requests}
    for event in able(painter, requests, previews, trace):
        start = starts[event.id]
        if isinstance(event, Done) and start is not None and start.box is not None:
            whole = replace(event.artifact, pixels=pasted(start, event.artifact.pixels))
            event = Done(event.id, whole)
        yield event


def found_again(told: Provenance, beside: Path) -> Provenance:
    """Provenance with the files that its picture started from, looked for beside the picture's file and where they were.

    Raises InputError for what is not there or has changed.
    """
    start = told.request.start
    if start is None:
        return told
    files = {"picture": start.picture, **({"mask": start.mask} if isinstance(start.mask, Enclosed) else {})}
    read = {part: _again(file, beside.parent) for part, file in files.items()}
    request = told.request.model_copy(update={"start": start.model_copy(update=read)})
    return told.model_copy(update={"request": request})


def _again(file: Enclosed, folder: Path) -> Enclosed:
    places = [place for place in (folder / Path(file.name).name, Path(file.name)) if place.is_file()]
    for place in places:
        found = enclosed(place)
        if found.sha256 == file.sha256:
            return found
    given = f"{places[0]}, which is another" if places else "none there or where it was"
    name = Path(file.name).name
    raise InputError(f"the file {name} (SHA-256 {file.sha256[:12]}...) beside the picture that began with it", given)
