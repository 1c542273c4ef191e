"""The plain U-Net of a well-known notebook (DeepFindr 2022, "Diffusion models from scratch"), any size, told nothing.

A block is convolution, ReLU, batch norm, twice, with the time added in between, then a convolution of stride 2; no residuals,
and skips are what comes out after halving, so that the lowest is joined with itself. At the notebook's sizes
(`SimpleUNetRecipe()`) it has 62,438,883 parameters. Ours: self-attention at chosen layers, and kinds of pictures: one network
may learn two (paintings and photographs), told apart by a vector that joins the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Condition, Probe
from ..base.errors import InputError, choose
from ..layers.attention import Attention
from .precondition import KINDS, Kind
from .prepared import Conditioned, Prepared

HEAD = 32  # channels of an attention head


class Plain(Conditioned):
    """Sizes that U-Nets of this form share; the defaults are the notebook's."""

    conditioning: Literal["none"] = "none"
    in_channels: int = Field(3, ge=1, description="channels of the sample")
    out_channels: int = Field(3, ge=1, description="channels of the sample")
    channels: tuple[int, ...] = Field((64, 128, 256, 512, 1024), min_length=2, description="width at full size, then below it")
    time_width: int = Field(32, ge=4, multiple_of=2, description="width of the time embedding")
    margin: bool = Field(
        False, description="mirror half of `step` around the sample, for the network alone, which is blind at edges otherwise"
    )
    attend_down: tuple[int, ...] = Field((), description="layers on the way down, from 1, that end in self-attention")
    attend_up: tuple[int, ...] = Field((), description="layers on the way up, from 1, that end in self-attention")

    @property
    def levels(self) -> int:
        """How often the sides are halved."""
        return len(self.channels) - 1

    @property
    def step(self) -> int:
        """What the sides of a sample are divisible by."""
        return int(2**self.levels)


class SimpleUNetRecipe(Plain):
    """One such U-Net. With kinds = 2 it learns paintings and photographs, and paints the former."""

    family: Literal["simple"] = "simple"
    kinds: Literal[1, 2] = Field(1, description="kinds of pictures that one network is told apart")

    @model_validator(mode="after")
    def _there(self) -> SimpleUNetRecipe:
        within(self, self.levels)
        return self

    def build(self) -> SimpleUNet:
        return SimpleUNet(self)


def within(recipe: Plain, layers: int) -> None:
    """ValueError where attention is asked for at a layer that is not there."""
    for name in ("attend_down", "attend_up"):
        if any(not 1 <= layer <= layers for layer in getattr(recipe, name)):
            raise ValueError(f"{name} wants layers from 1 to {layers}, given {getattr(recipe, name)}")


def plain_sinusoid(t: Tensor, width: int) -> Tensor:
    """Embedding of times: sin first, then cos, frequencies exp(-ln(10000) i / (half - 1)). (B,) -> (B, width)"""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    angles = t.to(torch.promote_types(t.dtype, torch.float32))[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Layer(nn.Module):
    """One block of either way: two convolutions with the time between them, then half or double the sides."""

    def __init__(self, inputs: int, outputs: int, time_width: int, up: bool, attend: bool) -> None:
        super().__init__()
        self.time = nn.Linear(time_width, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        resize = nn.ConvTranspose2d if up else nn.Conv2d
        self.resize = resize(outputs, outputs, 4, stride=2, padding=1)
        self.attention = PlaceAttention(outputs) if attend else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # (B, C, H, W), (B, T)
        h = self.norm1(F.relu(self.conv1(x)))
        h = h + F.relu(self.time(time))[:, :, None, None]
        h = self.resize(self.norm2(F.relu(self.conv2(h))))  # (B, C', H/2, W/2) or (B, C', 2H, 2W)
        return h if self.attention is None else self.attention(h)


class PlaceAttention(nn.Module):
    """Every place looks at all others, on a normalised residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        head = math.gcd(width, HEAD)
        self.norm = nn.GroupNorm(1, width)
        self.attention = Attention(width, None, width // head, head)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        places = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        return x + self.attention(places).transpose(1, 2).unflatten(2, x.shape[-2:])


class Body(nn.Module):
    """The U-Net itself: x (B, inputs, H, W), t (B,) -> (B, outputs, H, W). Sides are divisible by 2^levels."""

    def __init__(self, recipe: Plain, inputs: int, outputs: int, down: tuple[int, ...], up: tuple[int, ...]) -> None:
        super().__init__()
        width, ways = recipe.time_width, list(enumerate(pairwise(recipe.channels), 1))
        back = list(enumerate(pairwise(reversed(recipe.channels)), 1))
        self.time_width, self.margin = width, recipe.step // 2 if recipe.margin else 0
        self.time = nn.Linear(width, width)
        self.conv_in = nn.Conv2d(inputs, recipe.channels[0], 3, padding=1)
        self.down = nn.ModuleList(Layer(a, b, width, False, i in down) for i, (a, b) in ways)
        self.up = nn.ModuleList(Layer(2 * a, b, width, True, i in up) for i, (a, b) in back)
        self.conv_out = nn.Conv2d(recipe.channels[0], outputs, 1)

    def forward(self, x: Tensor, t: Tensor, kind: Tensor | None = None) -> Tensor:  # kind: (T,) or (B, T), joins the time
        time = F.relu(self.time(plain_sinusoid(t, self.time_width).to(x.dtype)))  # (B, T)
        if kind is not None:
            time = time + kind
        around = self.margin
        h = self.conv_in(F.pad(x, (around,) * 4, mode="reflect") if around else x)
        skips = []
        for layer in self.down:
            h = layer(h, time)
            skips.append(h)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), time)
        made: Tensor = self.conv_out(h)
        return made[..., around:-around, around:-around] if around else made


class SimpleUNet(nn.Module):
    """x (B, 3, H, W), t (B,) -> (B, 3, H, W), whatever its condition says."""

    def __init__(self, recipe: SimpleUNetRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.body = Body(recipe, recipe.in_channels, recipe.out_channels, recipe.attend_down, recipe.attend_up)
        self.kind = nn.Embedding(recipe.kinds, recipe.time_width) if recipe.kinds > 1 else None

    def prepare(self, condition: Condition) -> Prepared:
        return Prepared.of(condition, (), None, None)

    def say(self, kind: Kind, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
        """What it predicts of pictures of that kind; it has no middle piece."""
        choose(kind, KINDS[: self.recipe.kinds], "kind of picture")
        return self.body(x, t, None if self.kind is None else self.kind.weight[KINDS.index(kind)]), None

    def both(self, noisy: Mapping[Kind, Tensor], t: Tensor) -> dict[Kind, tuple[Tensor, Tensor | None]]:
        """Of both kinds, as one batch: what batch norm keeps for painting is then of both, as in training."""
        assert self.kind is not None
        kinds = self.kind.weight.repeat_interleave(len(t), dim=0)  # (2B, T)
        said = self.body(torch.cat([noisy[kind] for kind in KINDS]), t.repeat(len(KINDS)), kinds).chunk(len(KINDS))
        return {kind: (own, None) for kind, own in zip(KINDS, said, strict=True)}

    def first(self, kind: Kind, x: Tensor, t: Tensor) -> Tensor:
        raise InputError("a network with a middle piece (family 'double')", "a single U-Net")

    def forward(self, x: Tensor, t: Tensor, prepared: Prepared, probe: Probe | None = None) -> Tensor:
        return self.say("painting", *prepared.join(x, t))[0]
