"""What makes a picture look a little like a painting without making it one: a painting's colours, blur, median, few tones,
noise, a painting's spectrum without its forms.

Whoever translates pictures has to do better than these; whoever judges translations must not be taken in by them. Histogram
matching as in Gonzalez and Woods, "Digital Image Processing", 3.3.2; phases drawn anew as in Galerne, Gousseau and Morel 2011,
"Random Phase Textures", 2.
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


def noisy(pixels: np.ndarray, spread: float, grain: int, chance: np.random.Generator) -> np.ndarray:
    """uint8 (H, W, 3) with normal noise of this standard deviation added to squares of `grain` pixels, cut to 0 to 255."""
    height, width = pixels.shape[:2]
    noise = chance.normal(0, spread, (-(-height // grain), -(-width // grain), pixels.shape[2]))
    found: np.ndarray = np.clip(np.rint(pixels + noise.repeat(grain, 0).repeat(grain, 1)[:height, :width]), 0, 255)
    return found.astype(np.uint8)


def formless(pixels: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """uint8 (H, W, C) whose Fourier phases are drawn at random, alike in all channels: colours and roughness stay, forms go.

    Where opposite edges differ, bands across the picture stay as well; and what is cut to 0 to 255 takes some colour along.
    """
    phases = np.angle(np.fft.fft2(chance.normal(size=pixels.shape[:2])))
    phases[0, 0] = 0
    moved = np.fft.fft2(pixels, axes=(0, 1)) * np.exp(1j * phases)[..., None]
    found: np.ndarray = np.clip(np.rint(np.fft.ifft2(moved, axes=(0, 1)).real), 0, 255).astype(np.uint8)
    return found


# By name: (uint8 (H, W, 3), strength in [0, 1), chance) -> the same shape.
FORMS: Mapping[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "blurred": lambda pixels, strength, chance: blurred(pixels, 0.5 + 2 * strength),
    "median": lambda pixels, strength, chance: median(pixels, 3 + 2 * int(3 * strength)),
    "posterised": lambda pixels, strength, chance: posterised(pixels, 3 + int(10 * strength)),
    "noisy": lambda pixels, strength, chance: noisy(pixels, 8 + 32 * strength, int(chance.integers(1, 3)), chance),
}


def reformed(pixels: np.ndarray, draw: int) -> np.ndarray:
    """uint8 (H, W, 3) changed by one of the forms; which and how far is a function of `draw`, 64 random bits."""
    form = list(FORMS.values())[draw % len(FORMS)]
    return form(pixels, (draw >> 32) / 2**32, np.random.default_rng(draw))
