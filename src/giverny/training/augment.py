"""Training pictures changed so that they show the same: moved, mirrored, in other colours. Each change draws one of the step's
named streams, so a resumed run changes them alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.contracts import Streams


def shifted(pixels: Tensor, most: int, streams: Streams, ground: float | None = None) -> Tensor:
    """Each picture (B, C, H, W) moved by up to `most` pixels either way over a ground of that value; None: its edge goes on."""
    if not most:
        return pixels
    around = (most,) * 4
    wide = F.pad(pixels, around, mode="replicate") if ground is None else F.pad(pixels, around, value=ground)
    count, channels, height, width = pixels.shape
    down, right = (streams.uniform("shift", (count, 2)) * (2 * most + 1)).long()[:, :, None].unbind(1)  # (B, 1) both
    own, layer, high, across = (torch.arange(n, device=pixels.device) for n in (count, channels, height, width))
    rows, columns = (down + high)[:, None, :, None], (right + across)[:, None, None, :]
    return wide[own[:, None, None, None], layer[:, None, None], rows, columns]


def mirrored(pixels: Tensor, streams: Streams) -> Tensor:
    """Half of the pictures (B, C, H, W) turned left to right."""
    turned = streams.uniform("mirror", (len(pixels),)) < 0.5
    return torch.where(turned[:, None, None, None], pixels.flip(3), pixels)


def recoloured(pixels: Tensor, share: float, streams: Streams) -> tuple[Tensor, Tensor]:
    """A share of the pictures (B, 3, H, W) with their colour channels in a random order, which leaves greys as they are; and
    which of all pictures kept their colours, bool (B,)."""
    moved = streams.uniform("recoloured", (len(pixels),)) < share
    straight = torch.arange(3, device=pixels.device)
    order = torch.where(moved[:, None], streams.uniform("channels", (len(pixels), 3)).argsort(1), straight)
    return pixels.gather(1, order[:, :, None, None].expand_as(pixels)), (order == straight).all(1)
