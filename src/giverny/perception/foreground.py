"""What is the thing and what is the ground: a small U-Net (Ronneberger et al. 2015, arXiv 1505.04597) of residual blocks."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Frozen
from ..layers.blocks import Downsample, ResidualBlock, Upsample


class ForegroundRecipe(Frozen):
    family: Literal["foreground"] = "foreground"
    size: int = Field(96, ge=16, description="side of the square pictures it is shown, in pixels")
    channels: tuple[int, ...] = Field((16, 24, 48, 64), min_length=1, description="width of each level")
    groups: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> ForegroundRecipe:
        if any(c % self.groups for c in self.channels):
            raise ValueError(f"channels {self.channels} want to be divisible by groups = {self.groups}")
        return self

    def build(self) -> Foreground:
        return Foreground(self)


class Foreground(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> logits (B, 1, H, W): positive on the thing."""

    def __init__(self, recipe: ForegroundRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        widths, groups = recipe.channels, recipe.groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(ResidualBlock(widths[max(i - 1, 0)], w, None, groups) for i, w in enumerate(widths))
        self.downsamplers = nn.ModuleList(Downsample(w) for w in widths[:-1])
        self.upsamplers = nn.ModuleList(Upsample(w) for w in widths[:0:-1])
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(ResidualBlock(below + width, width, None, groups) for below, width in pairs)
        self.norm_out = nn.GroupNorm(groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        skips = []
        for i, block in enumerate(self.down):
            h = block(h)
            if i < len(self.downsamplers):
                skips.append(h)
                h = self.downsamplers[i](h)  # (B, C, H/2, W/2)
        for block, up in zip(self.up, self.upsamplers, strict=True):
            skip = skips.pop()
            h = block(torch.cat([up(h, skip.shape[-2:]), skip], dim=1))
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, 1, H, W)


def certainty(network: Foreground, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(probability of the thing (B, H, W), agreement (B,)): looked at as it is and mirrored. Agreement is the intersection
    of the two cuts over their union, 1 where the mirror changes nothing."""
    plain, mirrored = network(pixels), network(pixels.flip(-1)).flip(-1)
    a, b = plain[:, 0] > 0, mirrored[:, 0] > 0
    union = (a | b).flatten(1).sum(1).clamp(min=1)
    return ((plain + mirrored) / 2)[:, 0].sigmoid(), (a & b).flatten(1).sum(1) / union
