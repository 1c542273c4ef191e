"""Organs of networks for painting on a CPU, computed with fewer and fused operations: small networks cost dispatch.

What is ours: weights are brought once into the processor library's own layout (oneDNN, by way of the operators that
torch's compiler uses); 1x1 convolutions are linear maps, queries, keys and values one of them; residual sums ride on the
operation before; doubling the sides and the convolution after it are one operation with 4 / 9 of the products. No
gradients. Weights are read when an organ is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention
from .blocks import ResidualBlock, Upsample

LAYOUTS = 4  # picture sizes whose weight layouts are kept
Places = Tensor  # (B, C, H, W), channels last in memory: its (B, HW, C) view costs nothing

# Nearest doubling, then 3 taps w: each of two neighbouring results has 2 taps on the small picture, out of w's sums. As a
# transposed convolution of stride 2 that is a kernel of 4 taps: (w2, w1 + w2, w0 + w1, w0).
DOUBLING = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))


def available(device: torch.device) -> bool:
    """Whether this build of torch has the operators, found by calling them."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        x = torch.ones(1, 4, 4, 4).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            Double(Upsample(4))(Conv3(nn.Conv2d(4, 4, 3, padding=1))(x))
            Gated(torch.ones(8, 4), torch.ones(8))(x[0])
        return True
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


class Layouts:
    """Weights as the library wants them for a picture's size; those made for another size can be many times slower."""

    def __init__(self, made: Callable[[list[int]], Tensor]) -> None:
        self.made, self.kept = made, dict[tuple[int, ...], Tensor]()

    def __call__(self, x: Tensor) -> Tensor:
        found = self.kept.get(x.shape)
        if found is None:
            found = self.made(list(x.shape))
            # replaced, not changed in place: another thread may be reading the old one
            self.kept = dict([*self.kept.items(), (tuple(x.shape), found)][-LAYOUTS:])
        return found


def _layouts_of(weight: Tensor) -> Layouts:
    """Of a linear map's weight (outputs, inputs), for x (..., inputs)."""
    plain, reorder = weight.detach().contiguous(), torch.ops.mkldnn._reorder_linear_weight
    return Layouts(lambda shape: reorder(plain, math.prod(shape[:-1])))


class Linear:
    """x (..., inputs) -> (..., outputs), optionally onto a residual. In float32 plain products take less time than the
    processor library's own operator, but for wide maps; in bfloat16 the library is ahead."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.detach()  # (outputs, inputs)
        self.across = self.weight.t()
        self.added = None if bias is None else bias.detach()
        self.bias = torch.zeros(weight.shape[0], dtype=weight.dtype) if self.added is None else self.added
        coarse, wide = weight.dtype == torch.bfloat16, len(weight) >= 3 * weight.shape[1]
        self.layouts = _layouts_of(weight) if coarse or wide else None
        self.fused = self.layouts if coarse else None  # a sum rides on the product

    def __call__(self, x: Tensor) -> Tensor:
        if self.layouts is None:
            return F.linear(x, self.weight, self.added)
        return torch.ops.mkldnn._linear_pointwise.default(x, self.layouts(x), self.added, "none", [], "")

    def onto(self, other: Tensor, x: Tensor) -> Tensor:
        if self.fused is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.fused(x), self.added, "add")
        sum_ = torch.add(other, self.bias)
        sum_.view(-1, sum_.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.across)
        return sum_


class Gated:
    """Value times gelu(gate), both linear maps of x: weight (2 * outputs, inputs), values first."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        (value, gate), (self.value_bias, self.gate_bias) = weight.detach().chunk(2), bias.detach().chunk(2)
        self.value, self.gate = _layouts_of(value), _layouts_of(gate)

    def __call__(self, x: Tensor) -> Tensor:
        gate = torch.ops.mkldnn._linear_pointwise.default(x, self.gate(x), self.gate_bias, "gelu", [], "none")
        return torch.ops.mkldnn._linear_pointwise.binary(x, gate, self.value(x), self.value_bias, "mul")


class Conv3:
    """3x3 convolution, optionally with another bias, optionally + other."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.bias = conv.bias.detach() if conv.bias is not None else None
        self.stride, self.padding = list(conv.stride), [int(p) for p in conv.padding]
        plain, reorder = conv.weight.detach().contiguous(), torch.ops.mkldnn._reorder_convolution_weight
        self.weight = Layouts(lambda shape: reorder(plain, self.padding, self.stride, [1, 1], 1, shape))

    def __call__(self, x: Places, bias: Tensor | None = None) -> Places:
        bias = self.bias if bias is None else bias
        return torch.ops.mkldnn._convolution_pointwise.default(
            x, self.weight(x), bias, self.padding, self.stride, [1, 1], 1, "none", [], ""
        )

    def onto(self, other: Places, x: Places) -> Places:
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self.weight(x), self.bias, self.padding, self.stride, [1, 1], 1, "add", 1.0, None, [], None
        )


class Double:
    """`Upsample`: twice the sides (nearest) and a 3x3 convolution, as one transposed convolution (see DOUBLING); to any
    other size as two steps. Half the time at 8 to 64 places a side and 32 to 192 channels, on two cores."""

    def __init__(self, up: Upsample) -> None:
        self.plain = Conv3(up.conv)
        taps = torch.tensor(DOUBLING, dtype=up.conv.weight.dtype)
        kernel = torch.einsum("ai,ocij,bj->coab", taps, up.conv.weight.detach(), taps).contiguous()
        reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
        self.weight = Layouts(lambda shape: reorder(kernel, [1, 1], [0, 0], [2, 2], [1, 1], 1, shape))

    def __call__(self, x: Places, size: tuple[int, int] | None = None) -> Places:  # (B, C, H, W) -> (B, C, 2H, 2W)
        if size is not None and size != (2 * x.shape[-2], 2 * x.shape[-1]):
            return self.plain(F.interpolate(x, size=size, mode="nearest"))
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            x, self.weight(x), self.plain.bias, [1, 1], [0, 0], [2, 2], [1, 1], 1, "none", [], ""
        )


def tokens(x: Places) -> Tensor:  # (B, C, H, W) -> (B, HW, C), a view
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def places(x: Tensor, like: Places) -> Places:  # (B, HW, C) -> (B, C, H, W), a view
    return x.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)


class Norm:
    """GroupNorm, then SiLU in place where asked for."""

    def __init__(self, norm: nn.GroupNorm, silu: bool) -> None:
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu
        self.weight, self.bias = norm.weight.detach(), norm.bias.detach()

    def __call__(self, x: Places) -> Places:
        y = torch.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return F.silu(y, inplace=True) if self.silu else y


class Residual:
    """`ResidualBlock`, with or without a time."""

    def __init__(self, block: ResidualBlock) -> None:
        self.norm1, self.norm2 = Norm(block.norm1, True), Norm(block.norm2, True)
        self.conv1, self.conv2 = Conv3(block.conv1), Conv3(block.conv2)
        short = block.conv_shortcut
        self.shortcut = Linear(short.weight.flatten(1), short.bias) if short is not None else None

    def __call__(self, x: Places, time: Tensor | None = None) -> Places:
        """time: conv1's bias with the time projection added, (1, C) for all rows, or the projection (B, C) for each."""
        h = self.norm1(x)
        h = self.conv1(h, time[0] if time is not None and len(time) == 1 else None)
        if time is not None and len(time) > 1:
            h.add_(time[:, :, None, None])
        skip = x if self.shortcut is None else places(self.shortcut(tokens(x)), x)
        return self.conv2.onto(skip, self.norm2(h))


class SelfAttention:
    """Attention of a block to itself, with one map for queries, keys and values."""

    def __init__(self, attention: Attention) -> None:
        self.heads = attention.heads
        parts = [attention.to_q, attention.to_k, attention.to_v]
        told = attention.to_q.bias is not None
        self.inward = Linear(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]) if told else None)
        (out,) = attention.to_out
        assert isinstance(out, nn.Linear)
        self.outward = Linear(out.weight, out.bias)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """x + attention(y); y (B, N, C) is x, normalised."""
        rows, places_, _ = y.shape
        q, k, v = self.inward(y).view(rows, places_, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        out = F.scaled_dot_product_attention(q, k, v)
        return self.outward.onto(x, out.transpose(1, 2).reshape(rows, places_, -1))
