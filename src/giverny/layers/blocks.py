"""Organs shared by the autoencoder and the U-Net: residual block, down, up, embeddings of time.

Block designs are those of latent diffusion (Rombach et al. 2022) as its released Stable Diffusion 1.x weights expect them;
tensor names are those of diffusers folders.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Embedding of (fractional) times: cos first, then sin, frequencies exp(-ln(10000) i / half). (B,) -> (B, width)"""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000.0) / half))
    angles = t.to(rates.dtype)[:, None] * rates
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, width % 2))


class EmbeddingMLP(nn.Module):
    """Two linear layers with SiLU between: from a sinusoid or a pooled vector to the width that residual blocks take."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs) -> (B, width)
        return self.linear_2(F.silu(self.linear_1(x)))


class ResidualBlock(nn.Module):
    """norm-SiLU-conv, + time, norm-SiLU-dropout-conv, + shortcut (1x1 only where channels change)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        time_width: int | None = None,  # None: no time embedding (autoencoder)
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, outputs) if time_width else None
        self.norm2 = nn.GroupNorm(groups, outputs, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:  # (B, C, H, W), (B, T) after SiLU
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve the sides: 3x3 convolution of stride 2, padded all around (U-Net) or right and bottom only (autoencoder)."""

    def __init__(self, channels: int, right_bottom: bool = False) -> None:
        super().__init__()
        self.right_bottom = right_bottom
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if right_bottom else 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H/2, W/2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.right_bottom else x)


class Upsample(nn.Module):
    """Double the sides (nearest), or reach `size` exactly where an odd side was halved, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        height, width = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=(height, width), mode="nearest"))
