"""Things on plain grounds, cut out without a network: the teachers of the network that cuts out everything else.

A ground is plain where the rim of a picture is explained by one colour that changes evenly across it (a wall, a floor, a
sheet of paper, with the light falling off to one side). What differs from it, in one piece, is the thing. Pictures of
which that cannot be said with some certainty are passed over: `cut` gives None. All thresholds are ours, set by eye on
the clothing photographs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...base.lab import to_lab

RIM = 0.06  # width of the rim, as a share of the smaller side
PLAIN = 6.0  # Lab distance that 85 % of a plain ground's rim stay below
LEAST = 10.0  # Lab distance from the ground that is a thing at the least
WHITE = 246  # least channel value of a white studio ground


def cut(pixels: np.ndarray) -> np.ndarray | None:
    """uint8 (H, W, 3) -> bool (H, W), True on the thing; None where its ground is not plain or the cut not credible."""
    height, width = pixels.shape[:2]
    if min(height, width) < 16:
        return None
    lab = _smooth(torch.from_numpy(to_lab(pixels)).permute(2, 0, 1))  # (3, H, W)
    rim = _rim(height, width)
    distance = _from_ground(lab, rim)
    usual = float(torch.quantile(distance[rim], 0.85))
    if usual > PLAIN:
        return None
    thing = _opened(distance > max(LEAST, 2 * usual))
    if not thing.any():
        return None
    thing = filled(_closed(filled(largest(thing)), 2))
    thing = _shrunk(thing, 1)  # the outermost pixels are half ground
    share, touching = float(thing.float().mean()), float(thing[rim].float().mean())
    box = float(thing.any(0).sum() * thing.any(1).sum())
    credible = 0.12 < share < 0.8 and touching < 0.12 and float(thing.sum()) > 0.35 * box
    return thing.numpy() if credible else None


def on_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of a studio photograph on white -> bool (H, W), True on all that is not the ground around it."""
    light = torch.from_numpy(pixels.min(axis=2) >= WHITE)
    return (~flooded(light, _edge(light) & light)).numpy()


def largest(mask: Tensor, share: float = 0.35) -> Tensor:
    """The largest piece of a bool (H, W) mask, and what is at least `share` as large (the other shoe of a pair); places
    that touch at a side or a corner belong together."""
    names = torch.arange(1, mask.numel() + 1, dtype=torch.float32).view_as(mask) * mask
    while True:  # every piece takes the highest of its places' numbers
        spread = F.max_pool2d(names[None, None], 3, 1, 1)[0, 0] * mask
        if torch.equal(spread, names):
            break
        names = spread
    pieces, counts = names[mask].unique(return_counts=True)
    return torch.isin(names, pieces[counts >= share * counts.max()]) if len(pieces) else mask


def filled(mask: Tensor) -> Tensor:
    """A bool (H, W) mask without small holes. Wide ones, as between arm and side, are ground seen through."""
    holes = ~mask & ~flooded(~mask, _edge(mask) & ~mask)
    return mask | (holes & ~_grown(_shrunk(holes, 1), 2))


def flooded(open_: Tensor, start: Tensor) -> Tensor:
    """Places of `open_` that a flood from `start` comes to, over sides only (a diagonal line holds it back); bool (H, W)."""
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    while True:
        spread = (F.conv2d(start.float()[None, None], cross, padding=1)[0, 0] > 0) & open_
        if torch.equal(spread, start):
            return start
        start = spread


def _edge(like: Tensor) -> Tensor:
    """The outermost pixels, bool (H, W)."""
    edge = torch.ones_like(like)
    edge[1:-1, 1:-1] = False
    return edge


def _rim(height: int, width: int) -> Tensor:
    thick = max(3, int(RIM * min(height, width)))
    rim = torch.ones(height, width, dtype=torch.bool)
    rim[thick : height - thick, thick : width - thick] = False
    return rim


def _from_ground(lab: Tensor, rim: Tensor) -> Tensor:
    """Distance (H, W) of each pixel from the ground: a plane in (x, y) per channel, fitted to the rim, outliers out."""
    height, width = rim.shape
    y, x = torch.meshgrid(torch.linspace(-0.5, 0.5, height), torch.linspace(-0.5, 0.5, width), indexing="ij")
    plane = torch.stack([torch.ones_like(x), x, y], dim=-1)  # (H, W, 3)
    at, colours = plane[rim], lab[:, rim].T  # (N, 3) each
    weight = torch.ones(len(at), 1)
    for _ in range(4):  # least squares, each time with less weight on what does not fit
        fitted = torch.linalg.lstsq(at * weight, colours * weight).solution
        weight = 1 / (1 + ((colours - at @ fitted).square().sum(1, keepdim=True) / 16))
    difference = lab.permute(1, 2, 0) - plane @ fitted
    return (difference.square() * torch.tensor([0.5, 1.0, 1.0])).sum(-1).sqrt()  # shadows change lightness first


def _smooth(x: Tensor) -> Tensor:
    """(C, H, W) under a binomial 5 x 5 window."""
    row = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    window = (row[:, None] * row).expand(len(x), 1, 5, 5)
    return F.conv2d(F.pad(x[None], (2, 2, 2, 2), mode="replicate"), window, groups=len(x))[0]


def _grown(mask: Tensor, by: int) -> Tensor:
    return F.max_pool2d(mask.float()[None, None], 2 * by + 1, 1, by)[0, 0] > 0


def _shrunk(mask: Tensor, by: int) -> Tensor:
    return ~_grown(~mask, by)


def _opened(mask: Tensor) -> Tensor:
    return _grown(_shrunk(mask, 1), 1)


def _closed(mask: Tensor, by: int) -> Tensor:
    wide = F.pad(mask, (by,) * 4)
    return _shrunk(_grown(wide, by), by)[by:-by, by:-by]
