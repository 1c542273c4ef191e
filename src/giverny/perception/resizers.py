"""How pictures come to the size a network looks at. The choice moves scores, so it has a name and is part of the conditions.

FID of the same pictures differs by several points between these (Parmar et al. 2022, arXiv 2104.11222): only scores of
equal resizers stand in one table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import choose

Resizer = Callable[[np.ndarray, int], Tensor]  # uint8 (B, H, W, 3), side -> float32 (B, 3, side, side) in 0..255


def _planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()


def clean(pixels: np.ndarray, side: int) -> Tensor:
    """Bicubic with antialiasing, each channel in float, nothing rounded: clean-fid's."""
    if pixels.shape[1:3] == (side, side):
        return _planes(pixels)
    made = np.empty((len(pixels), 3, side, side), np.float32)
    for picture, out in zip(pixels, made, strict=True):
        for channel in range(3):
            plane = Image.fromarray(picture[..., channel].astype(np.float32))
            out[channel] = np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(made)


def pytorch(pixels: np.ndarray, side: int) -> Tensor:
    """Bilinear between pixel centres, without antialiasing: pytorch-fid's."""
    return F.interpolate(_planes(pixels), (side, side), mode="bilinear", align_corners=False)


def antialiased(pixels: np.ndarray, side: int) -> Tensor:
    """Bilinear between pixel centres, antialiased where it gets smaller: torchmetrics' default."""
    return F.interpolate(_planes(pixels), (side, side), mode="bilinear", align_corners=False, antialias=True)


def tensorflow(pixels: np.ndarray, side: int) -> Tensor:
    """Bilinear from a picture's first corner on, pixel i of the result at i * size / side: TensorFlow 1's, and so the
    original's and torch-fidelity's."""
    x = _planes(pixels)
    for axis in (2, 3):
        size = x.shape[axis]
        where = torch.arange(side, dtype=torch.float32) * (size / side)
        low = where.long()
        share = (where - low).view((-1, 1) if axis == 2 else (1, -1))
        high = (low + 1).clamp(max=size - 1)
        x = torch.lerp(x.index_select(axis, low), x.index_select(axis, high), share)
    return x


RESIZERS: dict[str, Resizer] = {f.__name__: f for f in (clean, pytorch, antialiased, tensorflow)}


def get_resizer(name: str) -> Resizer:
    return RESIZERS[choose(name, RESIZERS, "resizer")]
