"""The same U-Net, computed with fewer and fused operations on a CPU: for painting, where small networks cost dispatch.

What is ours: weights are brought once into the processor library's own layout (oneDNN, by way of the operators that
torch's compiler uses); the time projections of all residual blocks are one product, whose rows become the bias of the
convolution they are added to; 1x1 convolutions are linear maps, queries, keys and values one of them; residual sums ride
on the operation before. No gradients and no probes: for those the plain network is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Condition, Probe
from ..layers.attention import Attention
from ..layers.blocks import ResidualBlock, sinusoid
from .unet import SpatialTransformer, TransformerBlock, UNet, UNetPrepared

LAYOUTS = 4  # picture sizes whose weight layouts are kept
MOMENTS = 1000  # times whose biases are kept: a few kilobytes each
Places = Tensor  # (B, C, H, W), channels last in memory: its (B, HW, C) view costs nothing


def available(device: torch.device) -> bool:
    """Whether this build of torch has the operators, found by calling one."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        Conv3(nn.Conv2d(4, 4, 3, padding=1))(torch.ones(1, 4, 4, 4).contiguous(memory_format=torch.channels_last))
        return True
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


class Linear:
    """x (..., inputs) -> (..., outputs), optionally onto a residual. Plain products: the processor library's own linear
    operator takes twice as long at these sizes."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.detach()  # (outputs, inputs)
        self.across = self.weight.t().contiguous()
        self.bias = torch.zeros(weight.shape[0], dtype=weight.dtype) if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def onto(self, other: Tensor, x: Tensor) -> Tensor:
        sum_ = torch.add(other, self.bias)
        sum_.view(-1, sum_.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.across)
        return sum_


class Conv3:
    """3x3 convolution, optionally with another bias, optionally + other. Its layout depends on the picture's size."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.bias = conv.bias.detach() if conv.bias is not None else None
        self.stride, self.padding = list(conv.stride), [int(p) for p in conv.padding]
        self.plain = conv.weight.detach().contiguous()
        self.layouts: dict[tuple[int, ...], Tensor] = {}

    def weight(self, x: Places) -> Tensor:
        """The weights as the library wants them for this size; a layout made for another size can be many times slower."""
        found = self.layouts.get(x.shape)
        if found is None:
            found = torch.ops.mkldnn._reorder_convolution_weight(
                self.plain, self.padding, self.stride, [1, 1], 1, list(x.shape)
            )
            # replaced, not changed in place: another thread may be reading the old one
            self.layouts = dict([*self.layouts.items(), (tuple(x.shape), found)][-LAYOUTS:])
        return found

    def __call__(self, x: Places, bias: Tensor | None = None) -> Places:
        bias = self.bias if bias is None else bias
        return torch.ops.mkldnn._convolution_pointwise.default(
            x, self.weight(x), bias, self.padding, self.stride, [1, 1], 1, "none", [], ""
        )

    def onto(self, other: Places, x: Places) -> Places:
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self.weight(x), self.bias, self.padding, self.stride, [1, 1], 1, "add", 1.0, None, [], None
        )


def tokens(x: Places) -> Tensor:  # (B, C, H, W) -> (B, HW, C), a view
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def places(x: Tensor, like: Places) -> Places:  # (B, HW, C) -> (B, C, H, W), a view
    return x.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)


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


class Norm:
    """GroupNorm, then SiLU in place where asked for."""

    def __init__(self, norm: nn.GroupNorm, silu: bool) -> None:
        self.groups, self.weight, self.bias, self.eps = (
            norm.num_groups,
            norm.weight.detach(),
            norm.bias.detach(),
            norm.eps,
        )
        self.silu = silu

    def __call__(self, x: Places) -> Places:
        y = torch.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return F.silu(y, inplace=True) if self.silu else y


class Residual:
    def __init__(self, block: ResidualBlock) -> None:
        self.norm1, self.norm2 = Norm(block.norm1, True), Norm(block.norm2, True)
        self.conv1, self.conv2 = Conv3(block.conv1), Conv3(block.conv2)
        short = block.conv_shortcut
        self.shortcut = Linear(short.weight.flatten(1), short.bias) if short is not None else None

    def __call__(self, x: Places, time: Tensor) -> Places:
        """time: conv1's bias with the time projection added, (1, C) for all rows or (B, C) for each."""
        h = self.norm1(x)
        h = self.conv1(h, time[0]) if len(time) == 1 else self.conv1(h, self.conv1.bias).add_(time[:, :, None, None])
        skip = x if self.shortcut is None else places(self.shortcut(tokens(x)), x)
        return self.conv2.onto(skip, self.norm2(h))


def _numbers(norm: nn.LayerNorm) -> tuple[tuple[int, ...], Tensor, Tensor, float]:
    return norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps


class SelfAttention:
    """Attention of a block to itself, with one map for queries, keys and values."""

    def __init__(self, attention: Attention) -> None:
        self.heads = attention.heads
        parts = [attention.to_q, attention.to_k, attention.to_v]
        biases = [p.bias for p in parts]
        self.inward = Linear(torch.cat([p.weight for p in parts]), None if biases[0] is None else torch.cat(biases))
        self.outward = Linear(attention.to_out[0].weight, attention.to_out[0].bias)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """x + attention(y); y (B, N, C) is x, normalised."""
        rows, places_, _ = y.shape
        q, k, v = self.inward(y).view(rows, places_, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        out = F.scaled_dot_product_attention(q, k, v)
        return self.outward.onto(x, out.transpose(1, 2).reshape(rows, places_, -1))


@dataclass(frozen=True)
class Folded:
    """Words as one attention sees them, its maps for queries and results multiplied in: what is left per step are two
    products. keys (B, C, heads * L); bias (B, 1, heads * L), -inf where masked; values (B, heads * L, C)."""

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
        keys = torch.einsum("chd,bhld->bchl", to_q, k) * k.shape[-1] ** -0.5
        own = torch.einsum("hd,bhld->bhl", self.inward.bias.view(self.heads, -1), k) * k.shape[-1] ** -0.5
        bias = torch.einsum("c,bchl->bhl", shift, keys) + own
        if mask is not None:
            bias = bias.masked_fill(~mask[:, 0], float("-inf"))
        # A head's weights sum to 1: each carries its part of the bias.
        to_out = self.outward.across.view(self.heads, -1, len(self.outward.weight))
        values = torch.einsum("bhld,hdc->bhlc", v, to_out) + self.outward.bias / self.heads
        return Folded((keys * scale[:, None, None]).flatten(2), bias.flatten(1)[:, None], values.flatten(1, 2))

    def __call__(self, x: Tensor, words: Folded | tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """x + attention(norm(x)), x (B, N, C)."""
        shape, scale, shift, eps = self.norm
        if isinstance(words, Folded):
            scores = torch.baddbmm(words.bias, F.layer_norm(x, shape, None, None, eps), words.keys)
            rows, places_, count = scores.shape
            weights = scores.view(rows, places_, self.heads, -1).softmax(-1).view(rows, places_, count)
            return torch.baddbmm(x, weights, words.values)
        q = self.inward(F.layer_norm(x, shape, scale, shift, eps)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, *words, attn_mask=mask)
        return self.outward.onto(x, out.transpose(1, 2).flatten(2))


class Block:
    def __init__(self, block: TransformerBlock) -> None:
        self.norm1, self.norm3 = (_numbers(n) for n in (block.norm1, block.norm3))
        self.own = SelfAttention(block.attn1)
        self.words = WordAttention(block.attn2, block.norm2) if block.crosses else None
        self.wide = Linear(block.ff.net[0].proj.weight, block.ff.net[0].proj.bias)
        self.narrow = Linear(block.ff.net[2].weight, block.ff.net[2].bias)

    def __call__(self, x: Tensor, words: Words, mask: Tensor | None) -> Tensor:
        x = self.own(x, F.layer_norm(x, *self.norm1))
        if self.words is not None:
            x = self.words(x, next(words), mask)
        value, gate = self.wide(F.layer_norm(x, *self.norm3)).chunk(2, dim=-1)
        return self.narrow.onto(x, F.gelu(gate).mul_(value))


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
    """Residual blocks of one level, each with its transformer or None, then a change of size or None."""

    blocks: list[tuple[Residual, Transformer | None]]
    resize: Conv3 | None


@dataclass(frozen=True)
class PackedPrepared:
    plain: UNetPrepared
    words: tuple[Folded | tuple[Tensor, Tensor], ...]


class PackedUNet:
    """A `UNet` for painting: same arguments, same numbers to rounding. Weights are copied when it is made."""

    def __init__(self, unet: UNet) -> None:
        self.plain = unet
        self.conv_in, self.conv_out = Conv3(unet.conv_in), Conv3(unet.conv_out)
        self.norm_out = Norm(unet.conv_norm_out, True)
        self.down = [self._stage(b, b.downsamplers) for b in unet.down_blocks]
        self.middle = self._stage(unet.mid_block, [])
        self.up = [self._stage(b, b.upsamplers) for b in unet.up_blocks]
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
    def _stage(block: nn.Module, resizers: nn.ModuleList | list[nn.Module]) -> Stage:
        attentions: list[nn.Module | None] = list(block.attentions)
        resnets = list(block.resnets)
        attentions += [None] * (len(resnets) - len(attentions))
        pairs = [(Residual(r), Transformer(a) if a is not None else None) for r, a in zip(resnets, attentions, strict=True)]
        return Stage(pairs, Conv3(resizers[0].conv) if len(resizers) else None)

    def prepare(self, condition: Condition) -> PackedPrepared:
        plain = self.plain.prepare(condition)
        if torch.is_grad_enabled():  # the plain network will be asked
            return PackedPrepared(plain, ())
        pairs = zip(self.attentions, plain.keys_values, strict=False)  # none are given where nothing is told
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
            if stage.resize is not None:
                h = stage.resize(h)  # (B, C, H/2, W/2)
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
            if stage.resize is not None:
                h = stage.resize(F.interpolate(h, size=skips[-1].shape[-2:], mode="nearest"))  # (B, C, 2H, 2W)

        return self.conv_out(self.norm_out(h)).contiguous()  # (B, out, H, W)
