"""Structural similarity of pictures (Wang et al. 2004): how alike two are in local mean, contrast and pattern.

The usual settings: a Gaussian window of sigma 1.5 and 11 pixels, K1 = 0.01, K2 = 0.03, edges mirrored, each channel by
itself. The range of values is stated and never read off the pictures, so that numbers can be compared.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError

SIGMA, REACH = 1.5, 5  # of the window, in pixels: its spread, and how far it goes to each side


def ssim(ours: Tensor, theirs: Tensor, span: float = 2.0) -> Tensor:
    """(B, C, H, W) twice -> (B,), 1 where they are the same. span: from the least to the largest possible value.

    Raises InputError for pictures of less than 6 pixels a side.
    """
    if min(ours.shape[-2:]) <= REACH:
        raise InputError(f"pictures of {REACH + 1} x {REACH + 1} pixels or more", "{} x {}".format(*ours.shape[:-3:-1]))
    places = torch.arange(-REACH, REACH + 1, dtype=ours.dtype, device=ours.device)
    window = torch.exp(-0.5 * (places / SIGMA) ** 2)
    window = window / window.sum()
    planes = torch.cat([ours, theirs, ours * ours, theirs * theirs, ours * theirs]).flatten(0, 1)[:, None]
    padded = F.pad(planes, (REACH,) * 4, mode="reflect")
    blurred = F.conv2d(F.conv2d(padded, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    a, b, aa, bb, ab = blurred.view(5, *ours.shape)  # local means (B, C, H, W)
    spread_a, spread_b, both = (aa - a * a).clamp(min=0), (bb - b * b).clamp(min=0), ab - a * b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    likeness = (2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (spread_a + spread_b + c2))
    return likeness.flatten(1).mean(1)
