"""What makes a photograph look a little like a painting without making it one: a painting's colours, blur, median, few tones.

Whoever translates pictures has to do better than these; whoever judges translations must not be taken in by them. Histogram
matching as in Gonzalez and Woods, "Digital Image Processing", 3.3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter

from ..base.errors import InputError


def matched(pixels: np.ndarray, like: np.ndarray) -> np.ndarray:
    """uint8 (H, W, C) with the histogram of `like` (h, w, C) in each channel: (H, W, C), uint8.

    A value goes where the other picture has as large a share of its pixels at or below it, linearly between values that are
    there, rounded. Raises InputError for arrays that are not such pictures.
    """
    for given in (pixels, like):
        if given.dtype != np.uint8 or given.ndim != 3 or not given.size:
            raise InputError("pictures uint8 (H, W, C)", f"{given.dtype} {given.shape}")
    if pixels.shape[2] != like.shape[2]:
        raise InputError("two pictures of as many channels", f"{pixels.shape[2]} and {like.shape[2]}")
    found = np.empty_like(pixels)
    for channel in range(pixels.shape[2]):
        ours, theirs = (np.bincount(p[..., channel].ravel(), minlength=256) for p in (pixels, like))
        there = np.flatnonzero(theirs)
        below = [np.cumsum(counts) / counts.sum() for counts in (ours, theirs[there])]
        table = np.rint(np.interp(below[0], below[1], there)).astype(np.uint8)
        found[..., channel] = table[pixels[..., channel]]
    return found


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    """uint8 (H, W, 3) under a Gaussian of this standard deviation in pixels."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def median(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3): the middle one of the values in a square of `side` (odd) pixels, in each channel."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.MedianFilter(side)))


def posterised(pixels: np.ndarray, tones: int) -> np.ndarray:
    """uint8 of any shape in so many (2 to 256) evenly spaced tones a channel."""
    steps = np.rint(np.arange(256) / 255 * (tones - 1))
    return np.rint(steps * 255 / (tones - 1)).astype(np.uint8)[pixels]


# By name: (uint8 (H, W, 3), strength in [0, 1)) -> the same shape.
FORMS: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "blurred": lambda pixels, strength: blurred(pixels, 0.5 + 2 * strength),
    "median": lambda pixels, strength: median(pixels, 3 + 2 * int(3 * strength)),
    "posterised": lambda pixels, strength: posterised(pixels, 3 + int(10 * strength)),
}


def reformed(pixels: np.ndarray, draw: int) -> np.ndarray:
    """uint8 (H, W, 3) changed by one of the forms; which and how far is a function of `draw`, 64 random bits."""
    form = list(FORMS.values())[draw % len(FORMS)]
    return form(pixels, (draw >> 32) / 2**32)
