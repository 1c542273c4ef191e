"""Pictures of any size through a network that wants sides divisible by something, in as little memory as is there.

Edges are mirrored as far as the network asks. A picture that is too large goes through in tiles that overlap, blended over a
linear ramp. An instance norm would take each tile by itself for a whole picture, a sky alone as well as a meadow alone, and
neighbours would differ in tone: so all tiles are normed by one mean and variance for each channel, which the whole picture,
made small enough, has at that place in the network (group norms of a decoder are treated alike in autoencoders/tiled.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...autoencoders.tiled import LiveBytes, Span, spans
from ...base.errors import InputError
from ...base.images import beside

MARGIN, FEATHER = 32, 64  # pixels at a tile's cut edges that are thrown away, and over which neighbours are blended
PROBE = 64  # pixels along a side of the piece whose memory is measured


@dataclass(frozen=True)
class Canvas:
    """A picture within mirrored edges, so that its sides are divisible by `step`."""

    pixels: Tensor  # (1, C, H, W)
    box: tuple[int, int, int, int]  # top, bottom, left, right of the picture in it

    @property
    def inner(self) -> Tensor:
        return self.cut(self.pixels)

    def cut(self, made: Tensor) -> Tensor:
        """What was made of the picture, without its edges."""
        top, bottom, left, right = self.box
        return made[..., top:bottom, left:right]


def mirrored(pixels: Tensor, step: int) -> Canvas:
    """(1, C, h, w) with its edges mirrored outwards, evenly on both sides and as often as it takes."""
    ends = []
    for dim in (2, 3):
        side = pixels.shape[dim]
        further = -side % step
        before = further // 2
        place = torch.arange(-before, side + further - before, device=pixels.device)
        period = max(1, 2 * (side - 1))
        place = place % period
        pixels = pixels.index_select(dim, torch.where(place < side, place, period - place))
        ends += [before, before + side]
    return Canvas(pixels, (ends[0], ends[1], ends[2], ends[3]))


class SharedNorm(nn.Module):
    """An instance norm with one mean and variance for all it sees: of the first, (1, C, H, W)."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.known: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.known is None:
            exact = x if x.dtype == torch.float64 else x.float()
            variance, mean = torch.var_mean(exact, (2, 3), correction=0, keepdim=True)
            self.known = mean, (variance + self.eps).rsqrt()
        mean, scale = self.known
        return (x - mean.to(x.dtype)) * scale.to(x.dtype)


def sharing(network: nn.Module) -> nn.Module:
    """The same network for one picture: modules of its own around the same weights, with norms that share statistics."""
    kept: dict[int, object] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    network = copy.deepcopy(network, kept)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.InstanceNorm2d):
                setattr(module, name, SharedNorm(child.eps))
    return network


@torch.no_grad()
def bytes_per_pixel(network: nn.Module, step: int, channels: int, like: Tensor) -> float:
    """Memory of one picture's way through the network for each of its pixels, measured on a small piece of so many channels."""
    side = math.ceil(PROBE / step) * step
    with LiveBytes() as counted:
        network(like.new_zeros(1, channels, side, side))
    return counted.most / side**2


def tile_for(pixels: Tensor, step: int, each: float, memory: int) -> int | None:
    """Side of the tiles in which a picture (1, C, H, W) takes at most so many MiB, each of its pixels `each` bytes; None where
    it may go through whole. Raises InputError where the smallest tiles take more."""
    whole = pixels.shape[2] * pixels.shape[3] * each
    if not memory or whole <= memory * 2**20:
        return None
    margin, feather = _edges(step)
    least = (2 * margin + 2 * feather) * step
    side = int(math.sqrt(memory * 2**20 / each)) // step * step
    if side < least:
        wanted = f"memory of {math.ceil(least**2 * each / 2**20)} MiB or more, for tiles of {least} pixels"
        raise InputError(wanted, f"{memory} MiB", "Raise memory; 0 is no limit.")
    return side


def _edges(step: int) -> tuple[int, int]:
    """(margin, feather) in steps. Where one step is wide, a ramp of one step is margin enough."""
    return (0 if step > FEATHER else math.ceil(MARGIN / step)), math.ceil(FEATHER / step)


def count(pixels: Tensor, step: int, tile: int | None) -> int:
    """How many tiles a picture (1, C, H, W) goes through in."""
    return 1 if tile is None else math.prod(len(_spans(side, step, tile)) for side in pixels.shape[2:])


def _spans(side: int, step: int, tile: int) -> list[Span]:
    return spans(side // step, min(tile, side) // step, *_edges(step), step)


@torch.no_grad()
def through(network: nn.Module, pixels: Tensor, step: int, tile: int | None, noise: Tensor | None = None) -> Iterator[Tensor]:
    """What the network makes of a picture (1, C, H, W), whose sides `step` divides; once for each tile, the last is whole.

    float32 or better, until then with zeros where nothing has been made yet. noise: (1, grain, H, W), if the network wants it.
    """
    if tile is None:
        made = network(beside(pixels, noise))
        yield made.to(torch.promote_types(made.dtype, torch.float32))
        return
    shared = sharing(network)
    scale = min(1.0, tile / math.sqrt(pixels.shape[2] * pixels.shape[3]))  # as many pixels as a tile
    small = [max(2, math.floor(side * scale / step)) * step for side in pixels.shape[2:]]
    little = F.interpolate(pixels.float(), small, mode="bilinear", antialias=True).to(pixels.dtype)
    down, across = (torch.arange(far, device=pixels.device) % side for far, side in zip(small, pixels.shape[2:], strict=True))
    shared(beside(little, None if noise is None else noise[..., down[:, None], across]))  # not made smaller: it would be weaker
    whole = torch.zeros_like(pixels, dtype=torch.promote_types(pixels.dtype, torch.float32))
    for top in _spans(pixels.shape[2], step, tile):
        for left in _spans(pixels.shape[3], step, tile):
            y, x = top.start * step, left.start * step
            cut = (..., slice(y, y + len(top.weights)), slice(x, x + len(left.weights)))
            weights = (top.weights[:, None] * left.weights).to(whole)
            whole[cut] += weights * shared(beside(pixels[cut], None if noise is None else noise[cut]))
            yield whole
