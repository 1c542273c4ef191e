"""A picture becomes another: the story behind `giverny paint --from`, for any painter that follows `Request.start`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..base.contracts import Done, Event, Painter, Provenance, Request
from ..base.errors import InputError
from ..base.images import Fit
from ..base.masks import Margins
from ..base.start import Box, Enclosed, Fill, Program, Start, enclosed, pasted
from .walk import able

PADDING = 32  # pixels of surroundings that painting around a mask looks at


def start_from(
    picture: Path,
    strength: float = 0.6,
    mask: Path | Literal["alpha"] | None = None,
    fill: Fill = "original",
    fit: Fit = "crop",
    blur: float = 0,
    invert: bool = False,
    program: Program = "diffusers",
) -> Start:
    """A start from files; "alpha": the mask is what is transparent in the picture. The rest as in `Start`.

    Raises InputError for files that cannot be started from, and for a strength beyond 0..1.
    """
    if not 0 <= strength <= 1:
        raise InputError("a strength from 0 (the picture as it is) to 1 (painted anew)", f"{strength:g}")
    white = enclosed(mask) if isinstance(mask, Path) else mask
    if not 0 <= blur <= 256:
        raise InputError("a mask blur from 0 to 256 pixels", f"{blur:g}")
    start = Start(
        picture=enclosed(picture), strength=strength, mask=white, fill=fill, fit=fit, blur=blur, invert=invert, program=program
    )
    start.whole()
    return start


def extended(start: Start, margins: Margins, step: int, overlap: int | None = None) -> tuple[Start, tuple[int, int]]:
    """(a start on a larger canvas, whose new part is painted; its size (width, height), whose sides `step` divides).

    margins: pixels to the left, top, right and bottom; made larger as far as the size wants it, on the last side of each pair
    that grows, else at the right and the bottom. overlap: pixels of the picture that may change, see `Start`; None: an eighth
    of its shorter side, 40 at most. Without a blur of its own the start gets one that softens the whole overlap.
    Raises InputError for margins that do not extend.
    """
    if min(margins) < 0 or not 0 < max(margins) <= 8192:
        raise InputError("a canvas larger by 1 to 8192 pixels on some side", ", ".join(map(str, margins)))
    high, wide = start.whole().pixels.shape[:2]
    left, top, right, bottom = margins
    across, down = -(wide + left + right) % step, -(high + top + bottom) % step
    left, right = (left, right + across) if right or not left else (left + across, right)
    top, bottom = (top, bottom + down) if bottom or not top else (top + down, bottom)
    if overlap is None:
        overlap = min(40, min(wide, high) // 8)
    changed: dict[str, object] = {"extend": (left, top, right, bottom), "overlap": overlap}
    if not start.blur:
        changed["blur"] = overlap / 5  # half of the overlap is painted, the other half blended
    made = Start.model_validate({**start.model_dump(), **changed})
    return made, (wide + left + right, high + top + bottom)


def others_than(start: Start, before: Start) -> list[str]:
    """A sentence for each file of a start that is another than a recorded start says. before: of a picture's provenance."""
    files = {"picture": (start.picture, before.picture), "mask": (start.mask, before.mask)}
    return [
        f"{now.name} is another {what} than {then.name}, with which it began (SHA-256 {then.sha256[:12]}...)"
        for what, (now, then) in files.items()
        if isinstance(now, Enclosed) and isinstance(then, Enclosed) and now.sha256 != then.sha256
    ]


def only_masked(start: Start, size: tuple[int, int], padding: int = PADDING) -> Start:
    """A start from what is around the mask alone, which is painted at `size` (width, height) and pasted back.

    padding: pixels around what is white, as far as the picture goes. Raises InputError where there is no mask.
    """
    soft = start.whole().soft
    if soft is None:
        raise InputError("a mask to paint around", "a picture without one", "Give --mask.")
    return start.model_copy(update={"box": box_around(soft > 0, size, padding)})


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
