"""A patch critic (Isola et al. 2017): scores overlapping patches of a picture, and shows what it looked at on the way."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Frozen


class CriticRecipe(Frozen):
    """Sizes of a patch critic; each level but the last halves the sides."""

    family: Literal["patch-critic"] = "patch-critic"
    picture_channels: int = Field(3, ge=1)
    channels: tuple[int, ...] = Field((32, 64, 128), min_length=1, description="width of each level")

    def build(self) -> PatchCritic:
        return PatchCritic(self)


class PatchCritic(nn.Module):
    """(B, C, H, W) in [-1, 1] -> [features of each level ..., scores (B, 1, h, w)]. Without normalisation, so that a
    picture's scores do not depend on its batch."""

    def __init__(self, recipe: CriticRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        widths = (recipe.picture_channels, *recipe.channels)
        last = len(recipe.channels) - 1
        self.levels = nn.ModuleList(
            nn.Conv2d(a, b, 4 if i < last else 3, stride=2 if i < last else 1, padding=1)
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.score = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        seen = []
        for level in self.levels:
            pixels = F.leaky_relu(level(pixels), 0.2)
            seen.append(pixels)
        return [*seen, self.score(pixels)]
