"""The same U-Net, computed with fewer and fused operations on a CPU: for painting, where small networks cost dispatch.

Organs are those of layers/packed.py. What is ours here: the time projections of all residual blocks are one product, whose
rows become the bias of the convolution they are added to; words are folded into an attention's maps; rows that guidance's
branches share are computed once. No gradients and no probes: for those the plain network is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Condition, Probe
from ..layers.attention import Attention
from ..layers.blocks import sinusoid
from ..layers.packed import Conv3, Double, Gated, Linear, Norm, Places, Residual, SelfAttention, places, tokens
from .prepared import Prepared
from .unet import SpatialTransformer, TransformerBlock, UNet

MOMENTS = 1000  # times whose biases are kept: a few kilobytes each


def repeated(x: Places, rows: int) -> Places:
    """x once per branch, branch after branch, as guidance lays them out."""
    return x if len(x) == rows else joined(None, x, rows)


def joined(x: Places | None, skip: Places, rows: int) -> Places:
    """Channels of x, then those of skip, which is repeated once per branch if it has fewer rows."""
    if x is not None and len(skip) == rows:
        return torch.cat([x, skip], dim=1)
    own = 0 if x is None else x.shape[1]
    out = x_like(skip, rows, own + skip.shape[1])
    if x is not None:
        out[:, :own] = x
    out.view(-1, *skip.shape[:1], *out.shape[1:])[:, :, own:] = skip
    return out


def x_like(x: Places, rows: int, channels: int) -> Places:
    """Room for (rows, channels) at x's places, channels last in memory."""
    height, width = x.shape[-2:]
    return x.new_empty((rows, height, width, channels)).permute(0, 3, 1, 2)


def _numbers(norm: nn.LayerNorm) -> tuple[tuple[int, ...], Tensor, Tensor, float]:
    return norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps


@dataclass(frozen=True)
class Folded:
    """Words as one attention sees them, its maps for queries and results multiplied in: what is left per step are two
    products. keys (B, C, L * heads); bias (B, 1, L * heads), -inf where masked; values (B, L * heads, C)."""

    keys: Tensor
    bias: Tensor
    values: Tensor


Words = Iterator[Folded | tuple[Tensor, Tensor]]  # of each attention to the words, in the order they are met


class WordAttention:
    """Attention of a block to the words."""

    def __init__(self, attention: Attention, norm: nn.LayerNorm) -> None:
        self.heads = attention.heads
        self.inward = Linear(attention.to_q.weight, attention.to_q.bias)
        self.outward = Linear(attention.to_out[0].weight, attention.to_out[0].bias)
        self.norm = _numbers(norm)

    def prepare(self, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Folded | tuple[Tensor, Tensor]:
        """`Folded` where the words are few: with heads * L > C it would be more work, not less."""
        k, v = keys_values  # (B, heads, L, d)
        _, scale, shift, _ = self.norm
        width, count = self.inward.weight.shape[1], self.heads * k.shape[2]
        if count > width:
            return keys_values
        to_q = self.inward.across.view(width, self.heads, -1)
        keys = torch.einsum("chd,bhld->bclh", to_q, k) * k.shape[-1] ** -0.5
        own = torch.einsum("hd,bhld->blh", self.inward.bias.view(self.heads, -1), k) * k.shape[-1] ** -0.5
        bias = torch.einsum("c,bclh->blh", shift, keys) + own
        if mask is not None:
            bias = bias.masked_fill(~mask[:, 0].mT, float("-inf"))
        # A head's weights sum to 1: each carries its part of the bias.
        to_out = self.outward.across.view(self.heads, -1, len(self.outward.weight))
        values = torch.einsum("bhld,hdc->blhc", v, to_out) + self.outward.bias / self.heads
        return Folded((keys * scale[:, None, None]).flatten(2), bias.flatten(1)[:, None], values.flatten(1, 2))

    def __call__(self, x: Tensor, words: Folded | tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """x + attention(norm(x)), x (B, N, C)."""
        shape, scale, shift, eps = self.norm
        if isinstance(words, Folded):
            scores = torch.baddbmm(words.bias, F.layer_norm(x, shape, None, None, eps), words.keys)
            rows, places_, count = scores.shape
            # heads last: a sum over words that lie apart in memory is taken for many at once
            weights = scores.view(rows, places_, -1, self.heads).softmax(2).view(rows, places_, count)
            return torch.baddbmm(x, weights, words.values)
        q = self.inward(F.layer_norm(x, shape, scale, shift, eps)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, *words, attn_mask=mask)
        return self.outward.onto(x, out.transpose(1, 2).flatten(2))


class Block:
    def __init__(self, block: TransformerBlock) -> None:
        self.norm1, self.norm3 = (_numbers(n) for n in (block.norm1, block.norm3))
        self.own = SelfAttention(block.attn1)
        self.words = WordAttention(block.attn2, block.norm2) if block.crosses else None
        self.wide = Gated(block.ff.net[0].proj.weight, block.ff.net[0].proj.bias)
        self.narrow = Linear(block.ff.net[2].weight, block.ff.net[2].bias)

    def __call__(self, x: Tensor, words: Words, mask: Tensor | None) -> Tensor:
        x = self.own(x, F.layer_norm(x, *self.norm1))
        if self.words is not None:
            x = self.words(x, next(words), mask)
        return self.narrow.onto(x, self.wide(F.layer_norm(x, *self.norm3)))


class Transformer:
    def __init__(self, transformer: SpatialTransformer) -> None:
        self.norm = Norm(transformer.norm, False)
        self.inward = Linear(transformer.proj_in.weight.flatten(1), transformer.proj_in.bias)
        self.outward = Linear(transformer.proj_out.weight.flatten(1), transformer.proj_out.bias)
        self.blocks = [Block(b) for b in transformer.transformer_blocks]

    def __call__(self, x: Places, words: Words, mask: Tensor | None) -> Places:
        h = self.inward(tokens(self.norm(x)))
        for block in self.blocks:
            h = block(h, words, mask)
        return places(self.outward.onto(tokens(x), h), x)


@dataclass(frozen=True)
class Stage:
    """Residual blocks of one level, each with its transformer or None, then a change of size where there is one."""

    blocks: list[tuple[Residual, Transformer | None]]
    half: Conv3 | None = None
    double: Double | None = None


@dataclass(frozen=True)
class PackedPrepared:
    plain: Prepared
    words: tuple[Folded | tuple[Tensor, Tensor], ...]


class PackedUNet:
    """A `UNet` for painting: same arguments, same numbers to rounding. Its weights must not change once it is made."""

    def __init__(self, unet: UNet) -> None:
        self.plain = unet
        self.conv_in, self.conv_out = Conv3(unet.conv_in), Conv3(unet.conv_out)
        self.norm_out = Norm(unet.conv_norm_out, True)
        self.down = [Stage(self._blocks(b), half=next((Conv3(d.conv) for d in b.downsamplers), None)) for b in unet.down_blocks]
        self.middle = Stage(self._blocks(unet.mid_block))
        self.up = [Stage(self._blocks(b), double=next((Double(u) for u in b.upsamplers), None)) for b in unet.up_blocks]
        blocks = [r for b in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) for r in b.resnets]
        self.time_1 = Linear(unet.time_embedding.linear_1.weight, unet.time_embedding.linear_1.bias)
        self.time_2 = Linear(unet.time_embedding.linear_2.weight, unet.time_embedding.linear_2.bias)
        self.widths = [b.conv1.out_channels for b in blocks]
        self.times = Linear(  # the convolution's own bias is added in, for batches that share one time
            torch.cat([b.time_emb_proj.weight for b in blocks]),
            torch.cat([b.time_emb_proj.bias + b.conv1.bias for b in blocks]),
        )
        stages = [*self.down, self.middle, *self.up]
        transformers = [t for stage in stages for _, t in stage.blocks if t is not None]
        self.attentions = [b.words for t in transformers for b in t.blocks if b.words is not None]
        self.remembered: dict[float, list[Tensor]] = {}
        self.own_bias = torch.cat([b.conv1.bias.detach() for b in blocks])

    @staticmethod
    def _blocks(level: nn.Module) -> list[tuple[Residual, Transformer | None]]:
        attentions: list[nn.Module | None] = list(level.attentions)
        resnets = list(level.resnets)
        attentions += [None] * (len(resnets) - len(attentions))
        return [(Residual(r), Transformer(a) if a is not None else None) for r, a in zip(resnets, attentions, strict=True)]

    def prepare(self, condition: Condition) -> PackedPrepared:
        plain = self.plain.prepare(condition)
        if torch.is_grad_enabled():  # the plain network will be asked
            return PackedPrepared(plain, ())
        told = self.attentions if plain.keys_values else []  # none are given where nothing is told
        pairs = zip(told, plain.keys_values, strict=True)
        return PackedPrepared(plain, tuple(a.prepare(kv, plain.mask) for a, kv in pairs))

    def _times(self, t: Tensor, added: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
        """`_time_biases`, remembered for a single time: a run's times are the same for every batch."""
        if added is not None or len(t) > 1:
            return self._time_biases(t, added, dtype)
        key = float(t)
        found = self.remembered.get(key)
        if found is None:
            found = self._time_biases(t, None, dtype)
            if len(self.remembered) < MOMENTS:
                self.remembered[key] = found  # one assignment: threads at worst work the same value out twice
        return found

    def _time_biases(self, t: Tensor, added: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
        """Per residual block what its first convolution adds. From one time for all rows, (1, C) with the convolution's
        own bias included; from a time for each row, (B, C) without it."""
        h = self.time_1(sinusoid(t, self.plain.recipe.channels[0]).to(dtype))
        h = self.time_2(F.silu(h, inplace=True))
        rows = self.times(F.silu(h if added is None else h + added, inplace=True))
        return list((rows if len(rows) == 1 else rows - self.own_bias).split(self.widths, dim=1))

    def __call__(self, x: Tensor, t: Tensor, prepared: PackedPrepared, probe: Probe | None = None) -> Tensor:
        told = prepared.plain
        if probe is not None or torch.is_grad_enabled():  # what only the plain network can do
            return self.plain(x, t, told, probe)
        rows = told.rows or len(x)
        words, mask = iter(prepared.words), told.mask
        if told.added is None and (t.stride(0) == 0 or bool((t == t[0]).all())):
            t = t[:1]
        if len(t) > 1 or told.added is not None or told.channels is not None:
            x = repeated(x, rows)
        if len(t) > 1:
            t = t.repeat(rows // len(t))
        times = iter(self._times(t, told.added, x.dtype))
        if told.channels is not None:
            x = torch.cat([x, told.channels], dim=1)

        # Branches of guidance differ by their words alone: until the first word is read, their rows are computed once.
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))  # (B, C0, H, W)
        skips = [h]
        for stage in self.down:
            for residual, transformer in stage.blocks:
                h = residual(h, next(times))
                if transformer is not None:
                    h = transformer(repeated(h, rows), words, mask)
                skips.append(h)
            if stage.half is not None:
                h = stage.half(h)  # (B, C, H/2, W/2)
                skips.append(h)
        h = repeated(h, rows)

        (first, transformer), (second, _) = self.middle.blocks
        h = first(h, next(times))
        h = h if transformer is None else transformer(h, words, mask)
        h = second(h, next(times))

        for stage in self.up:
            for residual, transformer in stage.blocks:
                h = residual(joined(h, skips.pop(), rows), next(times))
                h = h if transformer is None else transformer(h, words, mask)
            if stage.double is not None:
                height, width = skips[-1].shape[-2:]
                h = stage.double(h, (height, width))  # (B, C, 2H, 2W)

        return self.conv_out(self.norm_out(h)).contiguous()  # (B, out, H, W)
