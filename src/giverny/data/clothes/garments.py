"""Where the garment is on a shop photograph: its ground is white, but a person may be wearing it, and other things too.

Ours: the garment's colour is looked for where a garment of its kind hangs on a standing person (a band of the picture),
and the garment is what is of that colour and hangs together with the band.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from ...base.lab import to_lab
from .cutouts import WHITE, filled, flooded, on_white
from .recolour import FAR, cloth_colour, distance

# Rows from, rows to, columns from, columns to, as shares: where the garment is if somebody wears it.
_TOP, _LOWER, _LONG = (0.30, 0.60, 0.30, 0.70), (0.45, 0.88, 0.32, 0.68), (0.28, 0.72, 0.32, 0.68)
_BANDS = {
    **dict.fromkeys(("t-shirt", "polo shirt", "shirt", "blouse", "top", "long-sleeved top", "undershirt"), _TOP),
    **dict.fromkeys(("sweater", "sweatshirt", "hoodie", "jacket", "blazer"), _TOP),
    **dict.fromkeys(("kurta", "dress"), _LONG),
    **dict.fromkeys(("trousers", "jeans", "shorts", "skirt"), _LOWER),
}


def band(garment: str, shape: tuple[int, int]) -> np.ndarray:
    """bool (H, W): where the colour of such a garment is looked for; everywhere for what nobody wears on the picture."""
    height, width = shape
    top, bottom, left, right = _BANDS.get(garment, (0.0, 1.0, 0.0, 1.0))
    where = np.zeros(shape, dtype=bool)
    where[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return where


def worn(garment: str) -> bool:
    """Whether shop photographs show it on a person."""
    return garment in _BANDS


def garment_cut(pixels: np.ndarray, garment: str) -> np.ndarray | None:
    """The garment on a shop photograph, bool (H, W), as far as it has one colour; None where it cannot be told from what
    else is there: no one colour, the colour of skin, or hardly any of it."""
    thing = on_white(pixels)
    core = thing & band(garment, thing.shape)
    if core.sum() < 40:
        return None
    own, share = cloth_colour(pixels, core)
    if not worn(garment):  # what shows white inside it, as between a bag and its handle, is ground
        return thing if own[0] > 85 else thing & (pixels.min(axis=2) < WHITE)
    if share < 0.6 or _is_skin(own):
        return None
    alike = torch.from_numpy((distance(to_lab(pixels), own) < FAR * 0.8) & thing)
    piece = flooded(alike, alike & torch.from_numpy(core))
    piece = filled(F.max_pool2d(piece.float()[None, None], 3, 1, 1)[0, 0] > 0) & torch.from_numpy(thing)
    rows = piece.any(1).nonzero()
    size = float(piece.float().mean())
    tall = float(rows.max() - rows.min() + 1) / len(piece) if len(rows) else 1.0
    head = piece[: round(0.18 * len(piece))].float().sum() / max(1.0, float(piece.sum()))
    lower = _BANDS[garment] is _LOWER
    return piece.numpy() if 0.06 < size < 0.7 and tall < 0.92 and (lower or head < 0.04) else None


def coloured_part(pixels: np.ndarray, garment: str) -> np.ndarray:
    """Where the colour of a garment on a shop photograph is looked for, bool (H, W): its cut, or what can be said without."""
    found = garment_cut(pixels, garment)
    return on_white(pixels) & band(garment, (len(pixels), len(pixels[0]))) if found is None else found


def _is_skin(lab: np.ndarray) -> bool:
    """Whether cloth of this colour could be mistaken for the skin or hair of who wears it."""
    chroma, hue = float(np.hypot(lab[1], lab[2])), float(np.degrees(np.arctan2(lab[2], lab[1])))
    return 30 < lab[0] < 88 and 9 < chroma < 45 and 25 < hue < 82
