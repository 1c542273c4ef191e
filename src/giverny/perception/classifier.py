"""What a picture shows, in words: small classifiers of two architectures that err on different pictures. One sees through
residual blocks (He et al. 2016, arXiv 1512.03385) and averages over places at the end; the other takes large steps and weighs
every place by itself. Both have a row of words for each attribute."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Frozen
from ..base.errors import InputError
from .inception import Unit

LEAST = 28  # pixels a side
Body = tuple[nn.Sequential, int]  # (B, C, S, S) -> (B, d), and d


class ResidualRecipe(Frozen):
    family: Literal["residual"] = "residual"
    channels: tuple[int, ...] = Field((32, 64, 128), min_length=1, description="width of each level")
    blocks: tuple[int, ...] = Field((1, 1, 1), description="residual blocks of each level")
    down: Literal["stride", "pool"] = Field(
        "stride", description="stride: each level begins with a convolution that halves the sides; pool: maxima between levels"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ResidualRecipe:
        if len(self.blocks) != len(self.channels) or min(self.channels) < 1 or min(self.blocks) < 0:
            raise ValueError(f"blocks wants one number of 0 or more for each of channels = {self.channels}")
        return self

    def body(self, inputs: int, size: int) -> Body:
        layers: list[nn.Module] = []
        for level, (width, blocks) in enumerate(zip(self.channels, self.blocks, strict=True)):
            if self.down == "pool" and level:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            layers.append(Unit(inputs, width, 3, 2 if self.down == "stride" else 1))
            layers += [Residual(width) for _ in range(blocks)]
            inputs = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), inputs


class StridedRecipe(Frozen):
    family: Literal["strided"] = "strided"
    channels: tuple[int, ...] = Field((48, 96), min_length=1, description="width of each level")
    kernels: tuple[int, ...] = Field((7, 5), description="side of each level's convolution, odd")
    strides: tuple[int, ...] = Field((4, 2), description="pixels from one place to the next, of each level")
    dense: int = Field(192, ge=1, description="width of the layer above, which sees all places")

    @model_validator(mode="after")
    def _consistent(self) -> StridedRecipe:
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ValueError(f"kernels and strides want one number for each of channels = {self.channels}")
        if min(*self.channels, *self.strides) < 1 or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError("channels and strides want 1 or more, kernels odd sides")
        return self

    def body(self, inputs: int, size: int) -> Body:
        layers: list[nn.Module] = []
        for width, kernel, stride in zip(self.channels, self.kernels, self.strides, strict=True):
            layers.append(Unit(inputs, width, kernel, stride))
            inputs, size = width, -(-size // stride)
        above = (nn.Linear(prod((inputs, size, size)), self.dense, bias=False), nn.BatchNorm1d(self.dense), nn.ReLU())
        return nn.Sequential(*layers, nn.Flatten(), *above), self.dense


NetworkRecipe = Annotated[ResidualRecipe | StridedRecipe, Field(discriminator="family")]


class Residual(nn.Module):
    """Two convolutions beside a straight path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Unit(channels, channels, 3)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn(self.conv(self.first(x))))


class Classifier(nn.Module):
    """Pictures (B, C, S, S) in [-1, 1] -> attribute -> logits (B, values).

    values: how many each attribute has, in the order of the answer. width: of what `features` gives, (B, width).
    """

    def __init__(self, recipe: ResidualRecipe | StridedRecipe, channels: int, size: int, values: Mapping[str, int]) -> None:
        super().__init__()
        if channels not in (1, 3) or size < LEAST or not values or min(values.values()) < 1:
            wanted = f"1 or 3 channels, sides of {LEAST} pixels or more, and one attribute or more, each with a value or more"
            raise InputError(wanted, f"{channels} channels, {size} pixels, {dict(values)}")
        self.shape, self.values = (channels, size, size), dict(values)
        self.body, self.width = recipe.body(channels, size)
        self.head = nn.Linear(self.width, sum(values.values()))

    def features(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            raise InputError(f"pictures (B, {self.shape[0]}, {self.shape[1]}, {self.shape[2]})", str(tuple(x.shape)))
        found: Tensor = self.body(x.contiguous(memory_format=torch.channels_last))
        return found

    def apart(self, logits: Tensor) -> dict[str, Tensor]:
        """What `head` gives, (B, all values) -> attribute -> (B, values)."""
        return dict(zip(self.values, logits.split(list(self.values.values()), dim=1), strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.apart(self.head(self.features(x)))
