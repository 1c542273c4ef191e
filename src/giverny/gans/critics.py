"""Critics of pictures: of overlapping patches (Isola et al. 2017), and of the whole and every pixel at once (a U-Net,
Schönfeld et al. 2020, arXiv 2002.12655).

The patch critic bears the original CycleGAN's tensor names. Every critic gives logits, and shows what it looked at.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ..base.contracts import Frozen
from .generators import MOST, Norm, initialise, norm_of

# ---------------------------------------------------------------------------------------------------------------------
# Patches


class PatchRecipe(Frozen):
    """Sizes of a patch critic. With 3 layers and stride 1 a score sees 70 x 70 pixels and 256 pixels have 30 x 30 scores;
    with stride 2 it sees 94 x 94 and they have 15 x 15."""

    family: Literal["patch"] = "patch"
    picture_channels: int = Field(3, ge=1)
    channels: int = Field(64, ge=1, description="width of the first level; the next are 2, 4, 8, 8, ... times as wide")
    layers: int = Field(3, ge=1, description="levels that halve the sides; one more and the scores come behind them")
    stride: Literal[1, 2] = Field(1, description="of the level behind the halving ones: 2 gives 15 x 15 scores of 256 pixels")
    norm: Norm | Literal["spectral"] = Field(
        "instance", description="of maps; or of weights, 'spectral' (Miyato et al. 2018): the critic then sees the colour of "
        "the whole, of which an instance norm takes most away"
    )  # fmt: skip
    gain: float = Field(0.02, gt=0, description="standard deviation of initial weights")

    @property
    def per_pixel(self) -> bool:
        return False

    @property
    def least(self) -> int:
        """Shortest side of a picture, so that a norm has more than one place to see."""
        return int(2 ** (self.layers + (self.stride == 2)) * 2 + 2)

    def build(self) -> PatchCritic:
        network = PatchCritic(self)
        initialise(network, self.gain)
        if self.norm == "spectral":
            for layer in network.model:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)
        return network


class PatchCritic(nn.Module):
    """(B, C, H, W) in [-1, 1] -> logits (B, 1, h, w), one for each patch."""

    def __init__(self, recipe: PatchRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        widths = [recipe.channels * min(2**level, MOST) for level in range(recipe.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(recipe.picture_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level, (a, b) in enumerate(pairwise(widths), 1):
            stride = 2 if level < recipe.layers else recipe.stride
            of_maps = [] if recipe.norm == "spectral" else [norm_of(recipe.norm, b)]
            layers += [nn.Conv2d(a, b, 4, stride, 1, bias=recipe.norm != "batch"), *of_maps, nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.model(x)
        return made

    def features(self, x: Tensor) -> Tensor:
        """The maps that scores are made of: (B, c, h + 1, w + 1)."""
        made: Tensor = self.model[:-1](x)
        return made


# ---------------------------------------------------------------------------------------------------------------------
# The whole and every pixel


class PixelCriticRecipe(Frozen):
    """Sizes of a U-Net critic. The paper's widths are 1, 2, 4, 8, 16 times 64 for 128 pixels, 1, 2, 4, 8, 8, 16 for 256."""

    family: Literal["pixel"] = "pixel"
    picture_channels: int = Field(3, ge=1)
    channels: int = Field(64, ge=1)
    widths: tuple[int, ...] = Field((1, 2, 4, 8, 16), min_length=2, description="times `channels`, of each level, which halves")
    image: bool = Field(False, description="also give the picture back, for objective.judged.mixing_form = 'image'")
    gain: float = Field(0.02, gt=0, description="standard deviation of initial weights")

    @property
    def per_pixel(self) -> bool:
        return True

    @property
    def least(self) -> int:
        return int(2 ** len(self.widths))

    def build(self) -> PixelCritic:
        return PixelCritic(self)


class _Block(nn.Module):
    """A residual block of two 3 x 3 convolutions that halves or doubles the sides; the way round is a 1 x 1 convolution."""

    def __init__(self, a: int, b: int, up: bool, first: bool = False) -> None:
        super().__init__()
        self.up, self.first = up, first
        self.one, self.two, self.round = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1), nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x if self.first else F.relu(x)
        if self.up:
            seen, x = (F.interpolate(y, scale_factor=2.0, mode="nearest") for y in (seen, x))
        made: Tensor = self.two(F.relu(self.one(seen))) + self.round(x)
        return made if self.up else F.avg_pool2d(made, 2)


class PixelCritic(nn.Module):
    """(B, C, H, W) in [-1, 1] -> logits of the whole (B, 1) and of every pixel (B, 1, H, W); sides divisible by 2^levels.

    Every layer but the last is divided by its largest singular value (Miyato et al. 2018); there is no other norm. With
    recipe.image there is a second last layer, see `given_back`.
    """

    def __init__(self, recipe: PixelCriticRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        down = [recipe.channels * width for width in recipe.widths]
        up = [*down[-2::-1], down[0]]  # the way up ends as wide as the first level
        inward = pairwise([recipe.picture_channels, *down])
        self.down = nn.ModuleList(_Block(a, b, up=False, first=i == 0) for i, (a, b) in enumerate(inward))
        # behind the first, what the way down has seen at that size lies beside
        outward = zip([down[-1], *(2 * width for width in up[:-1])], up, strict=True)
        self.back = nn.ModuleList(_Block(a, b, up=True) for a, b in outward)
        self.whole, self.pixel = nn.Linear(down[-1], 1), nn.Conv2d(up[-1], 1, 1)
        self.image = nn.Conv2d(up[-1], recipe.picture_channels, 1) if recipe.image else None
        initialise(self, recipe.gain)
        last = (self.pixel, self.image)
        for module in [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in last]:
            spectral_norm(module)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        whole, maps = self._maps(x)
        return whole, self.pixel(maps)

    def given_back(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the whole (B, 1), and the picture as the way back makes it out, (B, C, H, W). Wants recipe.image."""
        whole, maps = self._maps(x)
        assert self.image is not None
        return whole, self.image(maps)

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the whole, and what every pixel is judged by, (B, c, H, W)."""
        seen = []
        for block in self.down:
            x = block(x)
            seen.append(x)
        whole = self.whole(F.relu(x).sum((2, 3)))  # (B, 1)
        for index, block in enumerate(self.back):
            x = block(x if index == 0 else torch.cat([x, seen[-1 - index]], 1))
        return whole, F.relu(x)

    def features(self, x: Tensor) -> Tensor:
        """The smallest maps, which the verdict on the whole is made of."""
        for block in self.down:
            x = block(x)
        return x


Critic = PatchCritic | PixelCritic
CriticRecipe = Annotated[PatchRecipe | PixelCriticRecipe, Field(discriminator="family")]
