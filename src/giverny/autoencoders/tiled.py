"""Decoding large pictures in little memory: in tiles that overlap, one after the other.

Most of a decoder's memory lies where maps are as large as the picture. What attends does so at the latent's own size and
costs little there, so it sees the whole picture (`LatentCodec.open`); the rest (`finish`) is done tile by tile. A tile is
decoded with a margin that is thrown away, since a convolution sees zeros beyond a tile's cut edges, and neighbours are
blended over a linear ramp. `reach` is the margin from which on nothing is seen of the cuts.

What remains is group normalisation (Wu & He 2018), which takes mean and variance over a whole picture, here over a tile:
tiles then differ in tone. They share statistics if these are taken once from the picture's own maps, thinned out to a
tile's size ("thinned", nearly those of the whole); or if all tiles are run through up to each normalisation in turn
("exact", as slow as that sounds). Blended tiles are a common means (diffusers' `enable_tiling` is one), statistics of a
smaller picture too; splitting off what attends, and the exact way, are ours.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..base.contracts import Codec
from ..base.errors import InputError, choose
from .codec import LatentCodec
from .kl import Sizes
from .packed import PackedAutoencoder

Statistics = Literal["thinned", "exact", "tile"]
MARGIN, FEATHER = 4, 8  # benchmarks/high_resolution.py measures what they cost and what they bring
PROBE = 8  # latents along a side of the piece whose decoding is measured


def reach(sizes: Sizes) -> int:
    """Latents from a cut edge beyond which `finish` gives what it would without the cut."""
    levels = len(sizes.channels)
    blocks = sum(2 * (sizes.blocks + 1) * 2**level for level in range(levels))  # two 3x3 convolutions each
    doubling = sum(2**level for level in range(levels - 1))
    return math.ceil((blocks + doubling + 1) / 2 ** (levels - 1))  # in the largest maps' places, brought to latents


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in latents: it is decoded from `start`, and takes part in statistics from `first` to `last`."""

    start: int
    first: int
    last: int
    weights: Tensor  # (tile * factor,) of its pixels in the picture; those of all tiles sum to 1 at each pixel


def spans(length: int, tile: int, margin: int, feather: int, factor: int) -> list[Span]:
    """Tiles of equal size, evenly spread over `length` latents; neighbours share 2 * margin + feather or more."""
    if length <= tile:
        return [Span(0, 0, length, torch.ones(length * factor))]
    count = math.ceil((length - tile) / (tile - 2 * margin - feather)) + 1
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    middles = [0, *((a + b + tile) // 2 for a, b in zip(starts, starts[1:], strict=False)), length]
    place = (torch.arange(tile * factor, dtype=torch.float64) + 0.5) / factor  # latents from the tile's start
    rise = ((place - margin) / feather).clamp(0, 1)
    ramps = torch.zeros(count, length * factor, dtype=torch.float64)
    for i, start in enumerate(starts):
        left = rise if i > 0 else torch.ones_like(rise)
        right = rise.flip(0) if i < count - 1 else torch.ones_like(rise)
        ramps[i, start * factor : (start + tile) * factor] = torch.minimum(left, right)
    ramps /= ramps.sum(0)
    return [
        Span(start, middles[i], middles[i + 1], ramps[i, start * factor : (start + tile) * factor].float())
        for i, start in enumerate(starts)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Statistics of the whole picture


@dataclass
class View:
    """Which part of what is now decoded statistics are taken of; None: all of it."""

    own: tuple[int, int, int, int] | None = None  # top, bottom, left, right, in latents from the tile's corner
    width: int = 0  # latents across the tile


class Reached(Exception):
    """A tile has come to a normalisation whose statistics are still being taken."""

    def __init__(self, norm: SharedNorm) -> None:
        self.norm = norm


class SharedNorm(nn.Module):
    """A GroupNorm whose mean and variance are those of a whole picture (1, C, H, W), known before most of it is seen."""

    def __init__(self, norm: nn.GroupNorm, view: View) -> None:
        super().__init__()
        self.norm, self.view = norm, view
        self.known: tuple[Tensor, Tensor] | None = None  # mean and variance, (groups,) each
        self.count, self.mean, self.squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if self.known is None:
            self._look(x)
            if self.view.own is not None:
                raise Reached(self)
            self.settle()
        assert self.known is not None
        mean, variance = (v.repeat_interleave(x.shape[1] // self.norm.num_groups) for v in self.known)
        slope = self.norm.weight * (variance + self.norm.eps).rsqrt()
        shift = self.norm.bias - mean * slope
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, slope.to(x.dtype)[:, None, None])

    def _look(self, x: Tensor) -> None:
        """Join this part to what is known of the others (Chan et al. 1979)."""
        if self.view.own is not None:
            top, bottom, left, right = (x.shape[-1] // self.view.width * side for side in self.view.own)
            x = x[..., top:bottom, left:right]
        part = x[0].unflatten(0, (self.norm.num_groups, -1))
        exact = part if part.dtype == torch.float64 else part.float()
        variance, mean = (v.cpu().double() for v in torch.var_mean(exact, (1, 2, 3), correction=0))  # (groups,)
        count = part[0].numel()
        whole, apart = self.count + count, mean - self.mean
        self.squares = self.squares + variance * count + apart**2 * (self.count * count / whole)
        self.mean = self.mean + apart * (count / whole)
        self.count = whole

    def settle(self) -> None:
        """All has been seen."""
        self.known = (self.mean.to(self.norm.weight), (self.squares / self.count).to(self.norm.weight))


def _sharing(codec: LatentCodec, view: View) -> LatentCodec:
    """The same codec for one picture: modules of its own around the same weights, with norms that share statistics."""
    network = codec.autoencoder
    if isinstance(network, PackedAutoencoder):
        network = network.plain
    if not isinstance(network, nn.Module):
        given = f"one of type {type(network).__name__}"
        raise InputError("an autoencoder of torch modules, to share statistics", given, "Take those of each tile ('tile').")
    kept: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    network = copy.deepcopy(network, kept)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, SharedNorm(child, view))
    return LatentCodec(network, codec.channels, codec.factor, codec.scale)


# ---------------------------------------------------------------------------------------------------------------------
# Tiles


class TiledCodec:
    """A LatentCodec that decodes one picture and one tile at a time, so that memory does not grow with either, but for
    the picture itself and what attends. Encodes as before. Without gradients. Safe to use from several threads."""

    def __init__(
        self,
        codec: LatentCodec,
        tile: int = 64,  # latents along a side of what is decoded at once
        margin: int = MARGIN,  # latents at a tile's cut edges that are decoded and thrown away
        feather: int = FEATHER,  # latents over which neighbours are blended
        statistics: Statistics = "thinned",  # what group normalisations go by
    ) -> None:
        choose(statistics, get_args(Statistics), "way to take statistics")
        if margin < 0 or feather < 1:
            raise InputError("a margin of 0 or more and a feather of 1 or more", f"{margin} and {feather}")
        if tile <= 2 * margin + feather:
            wanted = f"tiles wider than 2 x margin + feather = {2 * margin + feather} latents"
            raise InputError(wanted, str(tile), "Take larger tiles, or less of the others.")
        self.codec, self.factor, self.channels = codec, codec.factor, codec.channels
        self.tile, self.margin, self.feather, self.statistics = tile, margin, feather, statistics

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """As the codec within: (B, C, H, W) in [-1, 1] -> (B, z, H/f, W/f)."""
        return self.codec.encode(pixels, noise)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, z, h, w) -> (B, C, h*f, w*f), about [-1, 1] but not clamped; float32 or better. A picture that fits into
        one tile is decoded as the codec within decodes it."""
        height, width = latents.shape[-2:]
        down, across = (spans(n, self.tile, self.margin, self.feather, self.factor) for n in (height, width))
        tiles = [(top, left) for top in down for left in across]
        pixels: Tensor | None = None
        for row in range(len(latents)):
            one = latents[row : row + 1]
            parts = self._tiles(one, tiles) if len(tiles) > 1 else [(*tiles[0], self.codec.decode(one))]
            for top, left, part in parts:
                if pixels is None:
                    shape = (len(latents), part.shape[1], height * self.factor, width * self.factor)
                    pixels = part.new_zeros(shape, dtype=torch.promote_types(part.dtype, torch.float32))
                y, x = top.start * self.factor, left.start * self.factor
                weights = (top.weights[:, None] * left.weights).to(pixels)
                pixels[row, :, y : y + part.shape[-2], x : x + part.shape[-1]] += weights * part[0]
        if pixels is None:
            return self.codec.decode(latents)
        return pixels

    def _tiles(self, latents: Tensor, tiles: Sequence[tuple[Span, Span]]) -> Iterator[tuple[Span, Span, Tensor]]:
        """Each tile of one picture with its pixels (1, C, tile*f, tile*f)."""
        maps = self.codec.open(latents)
        view = View(width=min(self.tile, latents.shape[-1]))
        codec = self.codec if self.statistics == "tile" else _sharing(self.codec, view)

        def decoded(top: Span, left: Span) -> Tensor:
            cut = (..., slice(top.start, top.start + self.tile), slice(left.start, left.start + self.tile))
            return codec.finish(*(part[cut] for part in maps))

        def reached(top: Span, left: Span) -> SharedNorm | None:
            """The first norm that knows no statistics yet, having looked at this tile; None where all do."""
            view.own = (top.first - top.start, top.last - top.start, left.first - left.start, left.last - left.start)
            try:
                decoded(top, left)
            except Reached as found:
                return found.norm
            return None

        if self.statistics == "thinned":
            step = math.ceil(math.sqrt(latents.shape[-2] * latents.shape[-1]) / self.tile)
            codec.finish(*(part[..., step // 2 :: step, step // 2 :: step] for part in maps))
        while self.statistics == "exact" and (norm := reached(*tiles[0])):
            for top, left in tiles[1:]:
                reached(top, left)
            norm.settle()
        for top, left in tiles:
            yield top, left, decoded(top, left)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing by memory


@dataclass
class _Held:
    now: int = 0
    most: int = 0
    known: set[int] = field(default_factory=set)  # storages that are there


class LiveBytes(TorchDispatchMode):
    """Counts bytes of the tensors that operations make within the block: `now` held, and the `most` there were at once.
    What a library takes for itself within one operation is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self._held = _Held()

    @property
    def now(self) -> int:
        return self._held.now

    @property
    def most(self) -> int:
        return self._held.most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_iter((args, kwargs)):
            self._meet(given, made=False)
        out = func(*args, **(kwargs or {}))
        for result in tree_iter(out):
            self._meet(result, made=True)
        return out

    def _meet(self, value: Any, made: bool) -> None:
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return
        storage = value.untyped_storage()
        held, name, size = self._held, storage._cdata, storage.nbytes() if made else 0
        if name in held.known:
            return
        held.known.add(name)
        held.now += size
        held.most = max(held.most, held.now)

        def gone() -> None:
            held.known.discard(name)
            held.now -= size

        weakref.finalize(storage, gone)


def _most(work: Callable[[], Any]) -> tuple[int, Any]:
    """(bytes held at once while this is done, what came of it)"""
    with LiveBytes() as counted:
        made = work()
    return counted.most, made


def manner(codec: Codec, height: int, width: int) -> str:
    """How a codec decodes latents of h x w, for `Provenance.decoded`: "" where all are decoded together and whole."""
    if not isinstance(codec, TiledCodec):
        return ""
    return "one by one" if max(height, width) <= codec.tile else f"tiles of {codec.tile}"


@torch.no_grad()
def fitting(
    codec: Codec,
    latents: Tensor,
    most: int,
    margin: int = MARGIN,
    feather: int = FEATHER,
    statistics: Statistics = "thinned",
    strict: bool = True,  # whether too little memory is an error; else tiles stay large enough to be quick, and may take more
) -> Codec:
    """What decodes latents of this form (B, z, h, w) with tensors of at most `most` bytes at once, pixels included: all
    together where that fits, else one by one, else in the largest tiles that fit. It is measured on a small piece.

    Raises InputError where even the smallest tiles take more, if `strict`.
    """
    if not isinstance(codec, LatentCodec):
        return codec
    rows, places = len(latents), latents.shape[-2] * latents.shape[-1]
    piece = latents.new_zeros(1, latents.shape[1], PROBE, PROBE)
    opening, maps = _most(lambda: codec.open(piece))
    finishing, made = _most(lambda: codec.finish(*maps))
    kept, shown = sum(part.nbytes for part in maps), made.numel() * 4
    if rows * places * max(opening, kept + finishing) <= most * PROBE**2:
        return codec
    inner = codec if statistics == "tile" else _sharing(codec, View())
    finishing = _most(lambda: inner.finish(*maps))[0] + 2 * shown  # weighted, and added
    around, shared = places * (rows * shown + max(opening, kept)) / PROBE**2, 2 * margin + feather
    least = shared + 1 if strict else 2 * shared
    room = int(max(0, most - around) / finishing * PROBE**2)  # latents that can be finished at once
    side = max(latents.shape[-2:]) if room >= places else math.isqrt(room)
    if strict and side < least and room < places:
        wide, high = (n * codec.factor for n in (latents.shape[-1], latents.shape[-2]))
        wanted = (around + finishing * (least / PROBE) ** 2) / 2**20
        remedy = "Allow more memory, or paint fewer or smaller pictures at once."
        given = f"{most / 2**20:.0f} MiB"
        raise InputError(f"{wanted:.0f} MiB or more to decode {rows} of {wide} x {high}", given, remedy)
    return TiledCodec(codec, max(side, least), margin, feather, statistics)
