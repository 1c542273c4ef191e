"""Checkerboards: the pattern that strided transposed convolutions leave (Odena et al. 2016, "Deconvolution and checkerboard
artifacts"), found where it lies in the spectrum: at the corners, where a picture changes at every pixel. The measure is ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.contracts import Score
from ..base.errors import InputError
from .intervals import by_groups
from .scores import BY_GROUPS, Sides

REACH = 1 / 32  # of a corner, in cycles per pixel along either axis
LEAST = 16  # pixels a side


def corner_energy(pictures: Tensor) -> Tensor:
    """(B, C, H, W) -> (B,), float64: share of a picture's spectral energy within `REACH` of the frequencies (1/2, 0), (0, 1/2)
    and (1/2, 1/2), the mean left out, all channels together; 0 for a picture of one colour.

    A Hann window keeps a picture's edges, which do not meet, from counting. Raises InputError for less than 16 pixels a side.
    """
    height, width = pictures.shape[-2:]
    if min(height, width) < LEAST:
        raise InputError(f"pictures of {LEAST} x {LEAST} pixels or more", f"{width} x {height}")
    x = pictures.double()
    down, right = (torch.hann_window(n, periodic=False, dtype=torch.float64, device=x.device) for n in (height, width))
    window = down[:, None] * right
    x = (x - (x * window).sum((-2, -1), keepdim=True) / window.sum()) * window
    power = torch.fft.fft2(x).abs().square().sum(1)  # (B, H, W)
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64, device=x.device).abs() for n in (height, width))
    fast = [along >= 0.5 - REACH for along in (rows, columns)]
    slow = [along <= REACH for along in (rows, columns)]
    corner = (fast[0][:, None] & (fast[1] | slow[1])) | (slow[0][:, None] & fast[1])
    whole = power.sum((-2, -1))
    return torch.where(whole > 0, (power * corner).sum((-2, -1)) / whole, 0.0)


class CornerEye:
    """contracts.Instrument: the corner energy of a picture as it is, nothing being resized."""

    name, width = "corner energy", 1

    def conditions(self) -> dict[str, Any]:
        return {"features": self.name, "width": self.width, "weights": "none", "resizer": "none", "reach": REACH}

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 1 or 3) -> float32 (B, 1)."""
        return corner_energy(torch.from_numpy(pixels).movedim(-1, 1) / 255)[:, None].float()


def checkerboard(sides: Sides) -> list[Score]:
    """Mean corner energy of the painted pictures over that of real ones, both seen by a `CornerEye`: 1 is as in real pictures,
    more is a pattern. Both sets ought to be of one size and one kind of file: JPEG takes from the corners."""
    ours, theirs = sides.some()
    real = float(theirs.double().mean())
    if real == 0:
        raise InputError("reference pictures that show something", "pictures of one colour each")
    ratio = float(ours.double().mean()) / real
    interval = by_groups(ours, lambda part: float(part.double().mean()) / real, ratio)
    halves = theirs[::2], theirs[1::2]
    floor = float(halves[0].double().mean() / halves[1].double().mean()) if float(halves[1].sum()) > 0 else None
    more = {"share": ratio * real, "share_reference": real, **({"floor": floor} if floor is not None else {})}
    return [sides.score("checkerboard / real", ratio, interval, BY_GROUPS, **more)]
