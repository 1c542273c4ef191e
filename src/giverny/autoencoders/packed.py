"""The same decoders, computed with fewer and fused operations on a CPU: for painting. Organs are those of layers/packed.py.

Equal to the plain decoder to rounding, in float32 or bfloat16 and without gradients; for all else the plain one is used. A
codebook is asked as it always is: latents go to the same codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.contracts import Codec
from ..layers.packed import Conv3, Double, Linear, Norm, Places, Residual, SelfAttention, places, tokens
from .codec import Belief, LatentCodec
from .kl import KLAutoencoder, PlaceAttention, Trunk
from .vq import VQAutoencoder

PRECISIONS = (torch.float32, torch.bfloat16)


class PackedPlaceAttention:
    def __init__(self, attention: PlaceAttention) -> None:
        self.norm, self.own = Norm(attention.group_norm, False), SelfAttention(attention)

    def __call__(self, x: Places) -> Places:
        return places(self.own(tokens(x), tokens(self.norm(x))), x)


class PackedDecoder:
    """What a `kl.Trunk` does with latents, in the same two parts. Weights are read when it is made."""

    def __init__(self, trunk: Trunk) -> None:
        before, decoder, straight = trunk.post_quant_conv, trunk.decoder, trunk.straight
        self.patch = trunk.patch
        self.before = Linear(before.weight.flatten(1), before.bias)
        self.beside = None
        if straight is not None:
            self.beside, self.factor = Linear(straight.outward.weight.flatten(1), straight.outward.bias), straight.factor
        self.conv_in, self.conv_out = Conv3(decoder.conv_in), Conv3(decoder.conv_out)
        middle: Any = decoder.mid_block  # torch types what is reached through modules as Tensor | Module
        levels: Any = decoder.up_blocks
        self.first: list[Residual | PackedPlaceAttention] = [
            Residual(middle.resnets[0]),
            *(PackedPlaceAttention(a) for a in middle.attentions),
            Residual(middle.resnets[1]),
        ]
        self.steps: list[Residual | Double] = []
        for level in levels:
            self.steps += [*map(Residual, level.resnets), *map(Double, level.upsamplers)]
        self.norm_out = Norm(decoder.conv_norm_out, True)

    def open(self, latents: Tensor) -> tuple[Tensor, ...]:
        x = latents.contiguous(memory_format=torch.channels_last)
        h = self.conv_in(places(self.before(tokens(x)), x))  # (B, C, h, w)
        for step in self.first:
            h = step(h)
        return (h,) if self.beside is None else (h, x)

    def finish(self, *maps: Tensor) -> Tensor:
        h, *rest = (part.contiguous(memory_format=torch.channels_last) for part in maps)
        for step in self.steps:
            h = step(h)
        made = F.pixel_shuffle(self.conv_out(self.norm_out(h)), self.patch).contiguous()
        if self.beside is not None:
            (x,) = rest
            made += F.pixel_shuffle(places(self.beside(tokens(x)), x), self.factor)
        return made


class PackedAutoencoder:
    """codec.Autoencoder whose `decode` is packed."""

    def __init__(self, plain: KLAutoencoder | VQAutoencoder) -> None:
        self.plain = plain
        self.decoder = PackedDecoder(plain)

    def encode(self, pixels: Tensor) -> Belief:
        return self.plain.encode(pixels)

    def open(self, latents: Tensor) -> tuple[Tensor, ...]:
        if not _packs(latents):
            return self.plain.open(latents)
        return self.decoder.open(self.plain.quantize(latents) if isinstance(self.plain, VQAutoencoder) else latents)

    def finish(self, *maps: Tensor) -> Tensor:
        return self.decoder.finish(*maps) if _packs(maps[0]) else self.plain.finish(*maps)

    def decode(self, latents: Tensor) -> Tensor:
        return self.finish(*self.open(latents))


def _packs(x: Tensor) -> bool:
    """Whether it is not for the plain network, which alone knows gradients and other precisions."""
    return not torch.is_grad_enabled() and x.dtype in PRECISIONS


def packed_codec(codec: Codec) -> Codec:
    """The same codec with a packed decoder, where it has a decoder that can be packed. For networks on a CPU."""
    if isinstance(codec, LatentCodec) and isinstance(codec.autoencoder, KLAutoencoder | VQAutoencoder):
        return LatentCodec(PackedAutoencoder(codec.autoencoder), codec.channels, codec.factor, codec.scale)
    return codec
