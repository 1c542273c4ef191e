"""The page of an audit: one HTML file that needs nothing else, with the pictures that the record only names.

Bars, heat map and histograms are plain HTML and SVG in the page's colours, light or dark, so that every number can be
read and copied; nothing in the page asks for an address or runs a program.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from ..base.contracts import Source
from ..base.errors import InputError
from ..base.files import atomic_write
from ..base.images import png_bytes
from ..base.runtime import versions
from ..data.audit import Audit, Group
from ..data.looks import Place
from .curves import words

THUMB = 80  # pixels of the longer side
PICTURE_BYTES = 2_000_000  # of all thumbnails together; a third more once written as text
VALUES = 16  # shown of an attribute
GROUPS, EACH = 24, 8  # shown groups of duplicates, and pictures of one


def write_audit(path: str | os.PathLike[str], audit: Audit, sources: Sequence[Source]) -> Path:
    """Write the page, whole or not at all. sources: as they were looked at, for the thumbnails.

    A picture that is gone by now leaves an empty place. Raises InputError where the page cannot be written.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": words, "measure": _measure, "share": _share}
    page = environment.from_string(files(__package__).joinpath("audit.html.j2").read_text("utf-8")).render(
        audit=audit,
        thumb=_thumbs(sources),
        shared=sum(place.part in audit.parts for group in audit.groups if _parts(group) > 1 for place in group.places),
        groups=sorted(audit.groups, key=_parts, reverse=True)[:GROUPS],  # those that leak first
        parts_of=_parts,
        each=EACH,
        most=VALUES,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=versions()["giverny"],
    )
    atomic_write(path, page.encode("utf-8", "replace"))
    return Path(path)


def _parts(group: Group) -> int:
    """How many parts of the set a group touches."""
    return len({place.part for place in group.places})


def _thumbs(sources: Sequence[Source]) -> Callable[[Place], str]:
    """Place -> the data address of its thumbnail, made once; '' where it cannot be read or the page has no more room."""
    made: dict[tuple[int, int], str] = {}
    room = [PICTURE_BYTES]

    def thumb(place: Place) -> str:
        key = (place.source, place.index)
        if key not in made:
            made[key] = ""
            if room[0] > 0:
                try:
                    kind, data = _small(sources[place.source].read(place.index).pixels)
                except InputError:
                    return ""
                room[0] -= len(data)
                made[key] = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        return made[key]

    return thumb


def _small(pixels: np.ndarray) -> tuple[str, bytes]:
    """(format, file) of a picture, uint8 (H, W, C): at most `THUMB` wide and high; what is smaller already as it is."""
    if max(pixels.shape[:2]) <= THUMB // 2:
        return "png", png_bytes(pixels)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return "jpeg", buffer.getvalue()


def _share(part: float) -> str:
    """A share from 0 to 1 in percent, whole ones where that says enough."""
    if part and part < 0.001:
        return "below 0.1 %"
    return f"{part:.1%}".replace("%", " %") if part < 0.1 else f"{part:.0%}".replace("%", " %")


def _measure(value: float) -> str:
    """A measured value to three digits, or to whole numbers where it has more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
