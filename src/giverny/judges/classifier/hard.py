"""Hard negatives: pictures of one class that are changed by cheap tricks (data/tricks.py) and stay of that class, and pictures
of any class without their forms, which come to be of it."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field

from ...base.contracts import Batch, Frozen
from ...data.chance import hashed
from ...data.loader import Loader
from ...data.tricks import formless, matched, reformed


class HardRecipe(Frozen):
    of: str = Field(description="the class whose pictures are changed and stay of it")
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="of them that are given the colours of a picture of another class; and, apart from that, a form",
    )
    formless: float = Field(
        0.0, ge=0, lt=1, description="share of the pictures of all classes that lose their forms, and so count as of that class"
    )


def hardened(
    batch: Batch, recipe: HardRecipe, showing: tuple[np.ndarray, np.ndarray], loader: Loader, step: int, seed: int
) -> Batch:
    """The loader's batch of a step with a share of the pictures of one class changed: a function of (seed, step) alone.
    "formless", bool (B,): which have lost their forms, and are of that class whatever they were.

    showing: indices of the pictures of that class, and of those whose colours they may be given.
    """
    epochs, indices = loader.rows_at(step)
    ours, others = showing

    def drawn(what: str) -> np.ndarray:
        return hashed(f"hard {what}", seed, epochs, indices)

    def chosen(what: str, share: float) -> np.ndarray:
        found: np.ndarray = drawn(what) / 2.0**64 < share
        return found

    coloured, formed = (np.isin(indices, ours) & chosen(what, recipe.share) for what in ("colours", "forms"))
    lost = chosen("formless", recipe.formless)
    likes, forms = others[drawn("like") % np.uint64(len(others))], drawn("form").tolist()
    pixels = batch["pixels"].clone()
    for row in np.flatnonzero(coloured | formed | lost).tolist():
        picture = _uint8(pixels[row])
        if coloured[row]:
            picture = matched(picture, _uint8(loader.pixels_of(likes[row : row + 1])[0]))
        if lost[row]:
            picture = formless(picture, np.random.default_rng(forms[row]))
        elif formed[row]:
            picture = reformed(picture, forms[row])
        pixels[row] = torch.from_numpy(picture).movedim(-1, 0) / 127.5 - 1
    return {**batch, "pixels": pixels, "formless": torch.from_numpy(lost)}


def _uint8(pixels: torch.Tensor) -> np.ndarray:
    """(C, H, W) in [-1, 1] -> uint8 (H, W, C)."""
    found: np.ndarray = ((pixels.movedim(0, -1) + 1) * 127.5).round().to(torch.uint8).contiguous().numpy()
    return found
