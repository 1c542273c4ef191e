"""A garment in another colour: folds, prints and light stay, the cloth's own colour moves to the one asked for.

Ours. The cloth's colour is the commonest one inside the cut; every pixel moves in Lab with it, the more the nearer it is
to that colour, so that a print or a button keeps its own. Lightness is stretched where a dark cloth becomes light, since
black cloth hides its folds. The colour asked for is a real one: that of some photograph with this label.
"""

from __future__ import annotations

import numpy as np

from ...base.errors import InputError
from ...base.lab import from_lab, to_lab

NEAR, FAR = 18.0, 42.0  # Lab distances (lightness counts half) up to which a pixel is cloth, and from which it is not
BINS = 12  # Lab units of a bin in the search for the commonest colour


def cloth_colour(pixels: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, float]:
    """The commonest colour inside a cut, Lab (3,), and the share of the cut that is near it.

    pixels: uint8 (H, W, 3). cut: bool (H, W). Raises InputError where the cut is empty.
    """
    if not cut.any():
        raise InputError("a cut with pixels in it", "an empty one")
    lab = to_lab(pixels)[cut]  # (N, 3)
    bins = np.floor(lab / BINS).astype(np.int64)
    keys, counts = np.unique(bins @ np.array([10_000, 100, 1]), return_counts=True)
    centre = np.median(lab[(bins @ np.array([10_000, 100, 1])) == keys[counts.argmax()]], axis=0)
    for _ in range(5):  # the mean of what is near, until it stays
        near = distance(lab, centre) < NEAR
        centre = lab[near].mean(axis=0) if near.any() else centre
    return centre.astype(np.float32), float((distance(lab, centre) < FAR).mean())


def recolour(pixels: np.ndarray, cut: np.ndarray, target: np.ndarray, source: np.ndarray | None = None) -> np.ndarray:
    """uint8 (H, W, 3) with the cloth inside `cut` in the colour `target`, Lab (3,). source: the cloth's own colour, found
    where not given. Outside the cut nothing changes."""
    own = cloth_colour(pixels, cut)[0] if source is None else source
    lab = to_lab(pixels)
    weight = np.clip((FAR - distance(lab, own)) / (FAR - NEAR), 0, 1)
    # Light and shade belong to the cloth however far they are from its colour: greys darker or lighter than it move too.
    chroma = np.hypot(lab[..., 1] - own[1], lab[..., 2] - own[2])
    weight = np.maximum(weight, np.clip((NEAR - chroma) / 8, 0, 1) * (lab[..., 0] < own[0]))
    moved = lab - own
    stretch = np.clip((target[0] + 12) / (own[0] + 12), 0.6, 2.2)  # relief in proportion to lightness, within limits
    moved[..., 0] *= stretch
    fade = np.clip(np.hypot(*target[1:]) / max(np.hypot(*own[1:]), 8.0), 0.3, 1.0)  # a grey cloth has no coloured folds
    moved[..., 1:] *= fade
    new = np.clip(target + moved, (2, -100, -100), (98, 100, 100))
    alpha = (weight * cut)[..., None]
    changed = from_lab(lab + alpha * (new - lab))
    return np.where(cut[..., None], changed, pixels)


def distance(lab: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Lab (..., 3) from a colour (3,): (...), with lightness at half weight, since light and shade fall on any cloth."""
    difference = (lab - centre) * np.array([0.5, 1.0, 1.0], np.float32)
    return np.sqrt((difference**2).sum(-1))
