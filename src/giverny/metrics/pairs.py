"""How far one picture is from another that it ought to be like (PSNR, SSIM, edges, change), and how far a set's are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import InputError
from ..base.ssim import ssim

UNTOUCHED = 0.03  # change of a pair up to which a picture looks as if nothing had been done to it
STEPS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 1.0)  # of a histogram of changes
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))  # across; down is its transpose
ROWS = 1024  # of a distance matrix that is held at once


def psnr(ours: Tensor, theirs: Tensor, span: float = 2.0) -> Tensor:
    """(B, C, H, W) twice -> (B,), decibels, of each pair by itself; infinite where they are the same. span: from the least
    to the largest possible value. The mean of these is not the PSNR of the mean error: the larger differences weigh less."""
    _alike(ours, theirs)
    error = (ours.double() - theirs.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(span * span / error)


def structural(ours: Tensor, theirs: Tensor, span: float = 2.0) -> Tensor:
    """SSIM (B,) of pairs (B, C, H, W); see base/ssim.py."""
    _alike(ours, theirs)
    return ssim(ours, theirs, span)


def change(ours: Tensor, theirs: Tensor, span: float = 2.0) -> Tensor:
    """(B, C, H, W) twice -> (B,): mean absolute difference of each pair, as a share of the span from the least to the largest
    possible value: 0 is the same picture, 1 white against black."""
    _alike(ours, theirs)
    return (ours.double() - theirs.double()).abs().flatten(1).mean(1) / span


def edges(pictures: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, H - 2, W - 2), float64: the length of the gradient of luminance by Sobel's operator (as in
    Gonzalez and Woods, "Digital Image Processing", 3.6.4), of places whose neighbours are all there."""
    if pictures.shape[1] not in (1, 3) or min(pictures.shape[-2:]) < 3:
        raise InputError("pictures of 1 or 3 channels and 3 x 3 pixels or more", str(tuple(pictures.shape)))
    x = pictures.double()
    grey = (x * x.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True) if x.shape[1] == 3 else x
    across = x.new_tensor(SOBEL)
    return F.conv2d(grey, torch.stack([across, across.T])[:, None]).square().sum(1).sqrt()


def edge_correlation(ours: Tensor, theirs: Tensor) -> Tensor:
    """(B, C, H, W) twice -> (B,): Pearson's correlation of the `edges` of each pair over its places. 1: edges lie where they
    lay and are as strong beside each other, whatever the colours and the contrast; 0 also where either has none."""
    _alike(ours, theirs)
    a, b = (found - found.mean((1, 2), keepdim=True) for found in (edges(ours), edges(theirs)))
    lengths = (a.square().sum((1, 2)) * b.square().sum((1, 2))).sqrt()
    return torch.where(lengths > 0, (a * b).sum((1, 2)) / lengths, 0.0)


def histogram(changes: np.ndarray) -> list[list[float]]:
    """[from, to, how many pairs] of each of `STEPS`; a step's lower end belongs to it, and the last holds its upper end too."""
    counts, _ = np.histogram(changes, STEPS)
    return [[low, high, int(count)] for low, high, count in zip(STEPS[:-1], STEPS[1:], counts, strict=True)]


def _alike(ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise InputError("pairs of pictures of one size", f"{tuple(ours.shape)} and {tuple(theirs.shape)}")


def mean_apart(features: Tensor) -> float:
    """Mean Euclidean distance between two different rows of (n, d)."""
    if len(features) < 2:
        raise InputError("two pictures or more", str(len(features)), "The spread of fewer does not exist.")
    rows = features.double()
    total = sum(float(torch.cdist(part, rows).sum()) for part in rows.split(ROWS))
    return total / (len(rows) * (len(rows) - 1))


def apart_within(features: Tensor, groups: Sequence[str] | np.ndarray) -> tuple[float, int]:
    """(mean over groups of `mean_apart`, how many groups have two pictures or more): how varied the answers to one prompt
    are, which the distances between prompts would hide."""
    _, number = np.unique(np.asarray(groups), return_inverse=True)
    found = [mean_apart(features[torch.from_numpy(number == g)]) for g in range(number.max() + 1) if (number == g).sum() > 1]
    if not found:
        raise InputError("two pictures or more of one prompt", "one of each", "Ask each prompt several times.")
    return float(np.mean(found)), len(found)


def nearest(features: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d), (m, d) -> Euclidean distance to the closest row of `among` (n,), and which one it is (n,)."""
    rows, others = features.double(), among.double()
    found = [torch.cdist(part, others).min(1) for part in rows.split(ROWS)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
