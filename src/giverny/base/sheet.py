"""Contact sheets: many pictures as one, with words beside them.

The font is DejaVu Sans as matplotlib carries it (Latin, Greek, Cyrillic and more), read without importing matplotlib;
where it is missing, the one inside Pillow, which knows plain English letters only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK = (32, 32, 32)
_MARGIN = 4  # pixels between words and what they stand beside
_MOST_LINES = 3  # of one label; the rest becomes an ellipsis
_READABLE = 112  # pixels along a cell's longer side, aimed at where the scale is left open
_NARROWEST = 64  # pixels of a cell that carries a label
_ROW_WORDS = 160  # pixels, the widest that row labels may be


def grid(
    pictures: Sequence[np.ndarray],
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
    gap: int = 2,
    scale: int | None = 1,
) -> np.ndarray:
    """One picture of many, uint8 (H, W, 3), row by row on white; cells are as large as the largest picture.

    pictures: uint8 (H, W, 3), (H, W, 1) or (H, W), of any sizes. columns: a nearly square sheet by default, or as
    `row_labels` ask for. labels: one per picture, written below it. scale: a whole number of times that pictures are
    enlarged, pixels staying sharp; None chooses it so that cells measure about 112 pixels or more.
    Raises ValueError where there is nothing to show, or where labels do not match.
    """
    if not pictures or (labels is not None and len(labels) != len(pictures)):
        raise ValueError(f"a sheet wants pictures and as many labels, given {len(pictures)} and {labels}")
    columns = columns or math.ceil(len(pictures) / len(row_labels) if row_labels else math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"a sheet of {rows} rows wants as many row labels, given {len(row_labels)}")
    high, wide = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    scale = scale or math.ceil(_READABLE / max(high, wide))
    high, wide = high * scale, wide * scale
    cell = max(wide, _NARROWEST) if labels else wide

    font = _font(max(11, min(16, cell // 9)))
    below = [_wrapped(label, font, cell - _MARGIN) for label in labels or ()]
    beside = [_wrapped(label, font, _ROW_WORDS) for label in row_labels or ()]
    left = max((round(_width(line, font)) for lines in beside for line in lines), default=-2 * _MARGIN) + 2 * _MARGIN
    row_high = high + _words_high(below, font)
    sheet_wide = left + columns * (cell + gap) + gap
    heading = _wrapped(title, _font(16), sheet_wide - 2 * _MARGIN) if title else []
    top = _words_high([heading], _font(16)) + _MARGIN if heading else 0

    sheet = Image.new("RGB", (sheet_wide, top + rows * (row_high + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    _write(draw, heading, (_MARGIN, _MARGIN), "la", _font(16))
    for index, picture in enumerate(pictures):
        x = left + gap + index % columns * (cell + gap)
        y = top + gap + index // columns * (row_high + gap)
        shown = _enlarged(picture, scale)
        sheet.paste(shown, (x + (cell - shown.width) // 2, y + (high - shown.height) // 2))
        if below:
            _write(draw, below[index], (x + cell / 2, y + high + _MARGIN // 2), "ma", font)
    for row, lines in enumerate(beside):
        middle = top + gap + row * (row_high + gap) + high / 2
        _write(draw, lines, (_MARGIN, middle - len(lines) * _line_high(font) / 2), "la", font)
    return np.array(sheet)


def _enlarged(picture: np.ndarray, scale: int) -> Image.Image:
    flat = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    return Image.fromarray(np.ascontiguousarray(flat.repeat(scale, axis=0).repeat(scale, axis=1))).convert("RGB")


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    spec = find_spec("matplotlib")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        file = Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(file, size)
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def _width(text: str, font: ImageFont.FreeTypeFont) -> float:
    return font.getlength(text)


def _line_high(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _words_high(blocks: Sequence[Sequence[str]], font: ImageFont.FreeTypeFont) -> int:
    """Pixels that the tallest block of lines takes, its margin included; 0 where there are none."""
    lines = max((len(block) for block in blocks), default=0)
    return lines * _line_high(font) + _MARGIN if lines else 0


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines no wider than `width`, broken between words; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and (len(lines) == _MOST_LINES or _width(f"{lines[-1]} {word}", font) <= width):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_shortened(line, font, width) for line in lines]


def _shortened(line: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if _width(line, font) <= width:
        return line
    line = line[: int(width)]  # no letter is narrower than a pixel
    while line and _width(line + "…", font) > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _write(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    place: tuple[float, float],
    anchor: str,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Lines one below the other; the anchor is Pillow's: "la" left and top, "ma" middle and top."""
    for index, line in enumerate(lines):
        draw.text((place[0], place[1] + index * _line_high(font)), line, _INK, font, anchor)
