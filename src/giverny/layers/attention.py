"""The one attention of the house (Vaswani et al. 2017), with an explicit probe.

A probe is handed down as an argument and sees the weights of the place it is called with; nothing is found by class name
or patched from outside. Without a probe the fused kernel of torch runs, except where plain products are faster.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Probe


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) -> (B, heads, N, d)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(
    q: Tensor,  # (B, heads, Q, d)
    k: Tensor,  # (B, heads, K, d)
    v: Tensor,  # (B, heads, K, d)
    mask: Tensor | None = None,  # bool, broadcastable to (B, heads, Q, K), True = may be seen
    causal: bool = False,
    probe: Probe | None = None,
    place: str = "",
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v -> (B, Q, heads * d). `probe(place, weights)` may replace the (B, heads, Q, K) weights."""
    if probe is None and not _short(q, k):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    else:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(-1).to(v.dtype)
        replaced = None if probe is None else probe(place, weights)
        out = (weights if replaced is None else replaced) @ v
    return out.transpose(1, 2).flatten(2)


def _short(q: Tensor, k: Tensor) -> bool:
    """Where plain products beat the fused kernel: its backward pass on a CPU, over few places (measured: 1.4 x a step)."""
    return q.device.type == "cpu" and torch.is_grad_enabled() and q.shape[-2] * k.shape[-2] <= 128**2


class Attention(nn.Module):
    """Multi-head attention from `width` channels onto a context of `context_width` channels (or onto itself).

    Tensor names are those of Stable Diffusion's diffusers folders (to_q, to_k, to_v, to_out.0).
    """

    def __init__(self, width: int, context_width: int | None, heads: int, head_width: int, bias: bool = False) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=bias)
        self.to_k = nn.Linear(context_width or width, inner, bias=bias)
        self.to_v = nn.Linear(context_width or width, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def queries(self, x: Tensor) -> Tensor:
        """The half that the picture asks with. (B, N, width) -> (B, heads, N, d)"""
        return split_heads(self.to_q(x), self.heads)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The half that does not depend on the picture: made once per picture for text. (B, L, C) -> 2 x (B, heads, L, d)"""
        return split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)

    def forward(
        self,
        x: Tensor,  # (B, N, width)
        keys_values: tuple[Tensor, Tensor] | None = None,  # None: attend to x itself
        mask: Tensor | None = None,
        probe: Probe | None = None,
        place: str = "",
    ) -> Tensor:
        k, v = keys_values if keys_values is not None else self.keys_values(x)
        return self.to_out[0](attend(self.queries(x), k, v, mask, probe=probe, place=place))  # (B, N, width)
