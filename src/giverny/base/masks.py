"""Masks with soft edges, what lies under them at first, and canvases that grow. All in uint8, 255 where is painted.

Blur and fill are AUTOMATIC1111's (modules/processing.py and modules/masking.py): a Gaussian cut at 2.5 sigma, and the
picture without its masked part, blurred by ever smaller radii, layer upon layer. Colours are summed in floats here.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

Margins = tuple[int, int, int, int]  # left, top, right, bottom in pixels
LAYERS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))  # radius of a blur, and how often it is laid on


def reach(sigma: float) -> int:
    """Pixels from a mask's edge beyond which a blur changes nothing."""
    return int(2.5 * sigma + 0.5)


def blurred(mask: np.ndarray, sigma: float) -> np.ndarray:
    """uint8 (H, W) under a Gaussian of so many pixels, cut at `reach`; beyond the borders the picture is mirrored."""
    radius = reach(sigma)
    if not radius:
        return mask
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (1, 0):
        length = mask.shape[axis]
        wide = np.pad(mask.astype(np.float64), [(radius, radius) if a == axis else (0, 0) for a in (0, 1)], "reflect")
        parts = (wide.take(range(k, k + length), axis) * weight for k, weight in enumerate(weights))
        mask = np.rint(sum(parts)).astype(np.uint8)
    return mask


def blended(over: np.ndarray, under: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """Pictures uint8 (..., H, W, 3), one laid over the other as far as `shade` (..., H, W) says; 0 and 255 to the bit."""
    weight = shade[..., None].astype(np.uint16)
    return ((over * weight + under * (255 - weight) + 127) // 255).astype(np.uint8)  # at most 255 * 255 + 127


def surroundings(pixels: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3), with the masked part painted over by blurs of what is around it. shade: (H, W), 255 where masked."""
    keep = 255 - shade
    if not keep.any():
        return np.full_like(pixels, 127)
    layers = np.dstack([(pixels * (keep[..., None] / 255)).round().astype(np.uint8), keep])
    kept = Image.fromarray(layers)  # its first three bands are multiplied with the fourth already
    color, cover = np.zeros(pixels.shape), np.zeros((*shade.shape, 1))
    for radius, times in LAYERS:
        soft = np.asarray(kept.filter(ImageFilter.GaussianBlur(radius)), np.float64)
        there = soft[..., 3:] / 255
        more = 1 - (1 - there) ** times
        color = color * (1 - more) + soft[..., :3] / np.maximum(there, 1 / 255) * more
        cover = cover * (1 - more) + more
    mean = (pixels * (keep[..., None] / 255)).sum((0, 1)) / (keep.sum() / 255)  # where no blur comes to
    return np.rint(np.where(cover > 0, color / np.maximum(cover, 1e-9), mean)).clip(0, 255).astype(np.uint8)


def grown(array: np.ndarray, margins: Margins, value: int | None = None) -> np.ndarray:
    """(H, W, ...) on a larger canvas. value: of the new part; None: the edges go on."""
    left, top, right, bottom = margins
    around = [(top, bottom), (left, right)] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, around, "edge") if value is None else np.pad(array, around, constant_values=value)


def rim(size: tuple[int, int], margins: Margins, overlap: int) -> np.ndarray:
    """bool (H, W) of a canvas that has grown from `size` (width, height): its new part, and so many pixels of the old one
    beside it."""
    (width, height), (left, top, right, bottom) = size, margins
    mask = np.ones((top + height + bottom, left + width + right), bool)
    inner = [
        (first + overlap if first else 0, first + length - (overlap if last else 0))
        for first, length, last in ((top, height, bottom), (left, width, right))
    ]
    (above, below), (before, after) = inner
    if above < below and before < after:
        mask[above:below, before:after] = False
    return mask
