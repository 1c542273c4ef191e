"""What is measured of a single picture, and how measurements of many are summed up: size, sharpness, light, emptiness.

Sharpness is the variance of the Laplacian (Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy").
Pictures are read one after another and only small facts of each are kept. All limits are ours.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydantic import Field

from ..base.contracts import Frozen, Source
from ..base.errors import InputError
from ..base.images import read_picture
from .duplicates import Print, print_of
from .folders import FolderSource

WORST = 10  # of each concern
SIDE = 256  # pixels of the longer side, at most, at which quality is measured
BINS = 30  # of a histogram


class Place(Frozen):
    """A picture. source: which of the opened ones, the first being 0; part: its split, or the name of its source."""

    source: int
    index: int
    part: str
    name: str


class Quantity(Frozen):
    """A measured quantity: five numbers and a histogram of equal steps (of the logarithm if `log`)."""

    name: str
    least: float
    low: float = Field(description="5 % of the pictures have less")
    median: float
    high: float = Field(description="5 % of the pictures have more")
    most: float
    log: bool
    edges: tuple[float, ...] = Field(description="one more than counts")
    counts: tuple[int, ...]


class Concern(Frozen):
    """A way to be a bad picture. count: of those that meet the criterion; worst: at most `WORST`, with their values."""

    name: str
    criterion: str
    count: int
    worst: tuple[Place, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Look:
    """What is kept of a picture. format, bytes: of its file, '' and 0 where it has none of its own.

    sharpness, brightness, contrast: of grey levels from 0 to 1; flat: the share of its commonest colour, from 0 to 1.
    """

    size: tuple[int, int]
    format: str
    bytes: int
    print: Print
    sharpness: float
    brightness: float
    contrast: float
    flat: float
    grey: bool

    @property
    def aspect(self) -> float:
        return self.size[0] / self.size[1]


def look(pixels: np.ndarray, format: str = "", size: int = 0) -> Look:
    """Measure a picture, uint8 (H, W, 3) or (H, W, 1). format, size: of its file, in bytes.

    Quality is measured at `SIDE` pixels or less, so that large and small pictures compare. Colours count as one within
    steps of 16; grey is a picture of which 99 % of the pixels have channels within 8 of each other.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    colours = np.asarray(image.convert("RGB"))
    level = np.asarray(image.convert("L"), dtype=np.float32) / 255
    around = level[:-2, 1:-1] + level[2:, 1:-1] + level[1:-1, :-2] + level[1:-1, 2:]
    steps = (colours >> 4).astype(np.int32) @ np.array([256, 16, 1], dtype=np.int32)
    return Look(
        size=(pixels.shape[1], pixels.shape[0]),
        format=format,
        bytes=size,
        print=print_of(pixels),
        sharpness=float((around - 4 * level[1:-1, 1:-1]).var()) if around.size else 0.0,
        brightness=float(level.mean()),
        contrast=float(level.std()),
        flat=float(np.bincount(steps.ravel()).max() / steps.size),
        grey=bool((np.ptp(colours, axis=2) > 8).mean() <= 0.01),
    )


def looks(source: Source) -> Iterator[tuple[str, int | None, Look | str]]:
    """(name, label, its look or why it cannot be read) of each picture, in order, worked out on all cores."""

    def at(index: int) -> tuple[str, int | None, Look | str]:
        if not isinstance(source, FolderSource):
            sample = source.read(index)
            return sample.name, sample.label, look(sample.pixels)
        entry = source.entries[index]
        try:
            raw = source.tree.read_bytes(entry.name)
            with Image.open(io.BytesIO(raw)) as image:
                form = image.format or ""
            return entry.name, entry.label, look(read_picture(raw), form, len(raw))
        except (OSError, InputError) as error:  # it was whole on opening
            return entry.name, entry.label, str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(source), 64):  # few at a time, so that Ctrl-C need not wait for many
            yield from pool.map(at, range(start, min(start + 64, len(source))))


def quantity(name: str, values: Sequence[float], log: bool = False) -> Quantity:
    """Five numbers and a histogram. log: steps are equal in the logarithm; values of 0 count as the least above it."""
    array = np.asarray(values, dtype=np.float64)
    least, low, median, high, most = (float(value) for value in np.quantile(array, (0, 0.05, 0.5, 0.95, 1)))
    positive = array[array > 0]
    log = log and positive.size > 0
    shown = np.log(np.maximum(array, positive.min())) if log else array
    if most == least:
        counts, edges = np.array([len(array)]), shown[[0, 0]]
    elif not log and most - least < BINS and (array == array.round()).all():  # a step for each whole number
        counts, edges = np.histogram(shown, np.arange(least - 0.5, most + 1))
    else:
        counts, edges = np.histogram(shown, BINS)
    edges = np.exp(edges) if log else edges
    return Quantity(
        name=name, least=least, low=low, median=median, high=high, most=most, log=log,
        edges=tuple(edges.tolist()), counts=tuple(counts.tolist()),
    )  # fmt: skip


def quantities(seen: Sequence[Look]) -> tuple[Quantity, ...]:
    """What can be measured of a set's pictures, each as one quantity."""
    found = [
        quantity("smaller side in pixels", [min(look.size) for look in seen]),
        quantity("width over height", [look.aspect for look in seen], log=True),
        quantity("sharpness", [look.sharpness for look in seen], log=True),
        quantity("brightness", [look.brightness for look in seen]),
        quantity("contrast", [look.contrast for look in seen]),
        quantity("share of the commonest colour", [look.flat for look in seen]),
    ]
    if any(look.bytes for look in seen):
        found.insert(1, quantity("bytes of the file", [look.bytes for look in seen], log=True))
    return tuple(found)


def concerns(seen: Sequence[Look], places: Sequence[Place]) -> tuple[Concern, ...]:
    """The ways in which pictures of a set may be bad, each with the worst of them. places: one for each look."""
    side = np.array([min(look.size) for look in seen], dtype=np.float64)
    aspect = np.array([look.aspect for look in seen])
    sharp = np.array([look.sharpness for look in seen])
    light = np.array([look.brightness for look in seen])
    flat = np.array([look.flat for look in seen])
    grey = np.array([look.grey for look in seen])
    odd = np.exp(np.abs(np.log(aspect / np.median(aspect))))  # times as wide, or as high, as most are
    few = grey if grey.mean() < 0.5 else np.zeros_like(grey)
    # (name, criterion, who meets it, the worst first by this, what is said of them, whether the others are shown too)
    ways = (
        ("small", "a smaller side below half of the median", side < np.median(side) / 2, side, side, False),
        ("blurred", "sharpness below a tenth of the median", sharp < np.median(sharp) / 10, sharp, sharp, True),
        ("dark", "brightness below 0.1", light < 0.1, light, light, True),
        ("glaring", "brightness above 0.97", light > 0.97, -light, light, True),
        ("empty", "one colour on more than 95 % of the picture", flat > 0.95, -flat, flat, True),
        ("oddly shaped", "width over height twice or half the median", odd >= 2, -odd, aspect, False),
        ("grey", "no colour, where most have some", few, ~few, light, False),
    )
    found = []
    for name, criterion, meets, worst_first, said, always in ways:
        order = [i for i in np.argsort(worst_first, kind="stable")[:WORST].tolist() if always or meets[i]]
        worst, values = tuple(places[i] for i in order), tuple(float(said[i]) for i in order)
        found.append(Concern(name=name, criterion=criterion, count=int(meets.sum()), worst=worst, values=values))
    return tuple(found)
