"""Pictures that a set holds twice: pixel for pixel, or nearly so.

The difference hash is Neal Krawetz's ("Kind of Like That", hackerfactor.com, 2013): of 9 x 8 grey fields, is each brighter
than its right neighbour? 64 answers, which scaling, light and compression hardly change. Ours: a margin in that question,
since on an even ground compression alone would answer it; and a second look at 16 x 16 coloured fields, since all that
stands in one pose on a white ground has much the same hash. Scaled, compressed, lighter and darker copies are found,
copies that are cut or mirrored are not; `benchmarks/duplicates.py` measures it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Two pictures are near copies if at most NEAR_BITS of 64 answers differ, and their fields by at most NEAR_COLOUR of 255
# (root mean square) once one is made lighter or darker by no more than NEAR_LIGHT.
NEAR_BITS = 8
NEAR_COLOUR = 7.0
NEAR_LIGHT = 0.1
_MARGIN = 4  # grey levels of 255
_FIELDS = 16  # along a side
_CELLS = 2**22  # of the table of all pairs, at a time
_PAIRS = 2**14  # that are looked at a second time, at a time


@dataclass(frozen=True)
class Print:
    """What is kept of a picture to find its like. digest: of shape and pixels; bits: the hash; colours: 16 x 16 x 3 bytes."""

    digest: bytes
    bits: bytes
    colours: bytes


def print_of(pixels: np.ndarray) -> Print:
    """The print of a picture, uint8 (H, W, 3) or (H, W, 1)."""
    high, wide = pixels.shape[:2]
    digest = hashlib.blake2b(f"{high} {wide} ".encode() + np.broadcast_to(pixels, (high, wide, 3)).tobytes(), digest_size=16)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grey[:, :-1] > grey[:, 1:] + _MARGIN)
    colours = np.asarray(image.convert("RGB").resize((_FIELDS, _FIELDS), Image.Resampling.BOX))
    return Print(digest.digest(), bits.tobytes(), colours.tobytes())


def alike(
    prints: Sequence[Print], near_bits: int = NEAR_BITS, near_colour: float = NEAR_COLOUR
) -> tuple[np.ndarray, np.ndarray]:
    """Who is whose like: (same, near), int64 (n,) each; pictures that share a number belong together.

    same: equal to the pixel. near: joined by a chain of near copies; whoever shares the first shares the second.
    A number is the index of the first picture of its group. All pairs are compared, by matrix products over blocks.
    """
    _, first, which = np.unique(np.array([p.digest for p in prints], dtype="S16"), return_index=True, return_inverse=True)
    same = first[which]
    chosen = np.sort(first)  # one of each
    bits = np.frombuffer(b"".join(prints[i].bits for i in chosen), np.uint8).reshape(-1, 8)
    signs = np.unpackbits(bits, axis=1).astype(np.float32) * 2 - 1  # of two rows the product is 64 - 2 x (bits that differ)
    fields = np.frombuffer(b"".join(prints[i].colours for i in chosen), np.uint8).reshape(-1, _FIELDS, _FIELDS, 3)
    # means of fields differ by no more than the fields do, so that coarse ones spare most of the work with the fine
    looks = [_coarse(fields, 1), _coarse(fields, 4), fields.reshape(len(chosen), -1)]
    group = np.arange(len(chosen))
    rows = max(1, _CELLS // max(1, len(chosen)))
    for start in range(0, len(chosen), rows):
        left, right = np.nonzero(signs[start : start + rows] @ signs[start:].T >= 64 - 2 * near_bits)
        later = left < right
        left, right = left[later] + start, right[later] + start
        for some in range(0, len(left), _PAIRS):
            a, b = left[some : some + _PAIRS], right[some : some + _PAIRS]
            maybe = group[a] != group[b]
            a, b = a[maybe], b[maybe]
            for look in looks:
                close = _apart(look[a], look[b]) <= near_colour
                a, b = a[close], b[close]
            group = _joined(group, a, b)
    near = np.empty(len(prints), np.int64)
    near[chosen] = chosen[group]
    return same, near[same]


def _coarse(fields: np.ndarray, side: int) -> np.ndarray:
    """(n, 16, 16, 3) -> the means of side x side fields, float32 (n, side * side * 3)."""
    step = _FIELDS // side
    return fields.reshape(-1, side, step, side, step, 3).mean(axis=(2, 4), dtype=np.float32).reshape(len(fields), -1)


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, values) twice -> (n,): how far apart rows are, root mean square, in the light that suits best."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    light = np.clip((a * b).sum(axis=1) / np.maximum((b * b).sum(axis=1), 1), 1 - NEAR_LIGHT, 1 + NEAR_LIGHT)
    return np.sqrt(np.square(a - light[:, None] * b).mean(axis=1))


def _joined(group: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The groups after each a has been joined to its b: union-find on whole arrays, where the least index is the root."""
    while True:
        low, high = np.minimum(group[a], group[b]), np.maximum(group[a], group[b])
        if (low == high).all():
            return group
        group = group.copy()
        np.minimum.at(group, high, low)
        while ((above := group[group]) != group).any():
            group = above
