"""Two U-Nets in a row, twice: a network of paintings and one of photographs, each with a middle piece it is held to.

The second solution of source 001, a report on painting like Monet; what it leaves open is made precise here. The first U-Net
of the network of paintings turns a noisy painting into a piece that training wants to be a noisy photograph of the same time
and the same noise; the second predicts the noise from it, from that piece alone (the strict chain) or with the painting beside
it (the leaky one). The network of photographs is the same the other way round; the two share no weights. What paints is the
network of paintings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..base.contracts import Condition, Probe
from ..base.errors import choose
from .precondition import KINDS, Kind
from .prepared import Prepared
from .simple_unet import Body, Plain, within


class DoubleUNetRecipe(Plain):
    """Sizes of each of the four U-Nets. Layers of attention are counted over both U-Nets of a network: the source's trial, "the
    seventh down and the second up layer", is attend_down = [7], attend_up = [2] (our reading; one U-Net has four of each)."""

    family: Literal["double"] = "double"
    chain: Literal["strict", "leaky"] = Field(
        "strict", description="what the second U-Net sees: the middle piece alone, or the sample beside it"
    )

    @model_validator(mode="after")
    def _there(self) -> DoubleUNetRecipe:
        within(self, 2 * self.levels)
        if self.in_channels != self.out_channels:
            raise ValueError(f"in_channels wants to be out_channels = {self.out_channels}: the middle piece is a sample")
        return self

    def build(self) -> DoubleUNet:
        return DoubleUNet(self)


class Chain(nn.Module):
    """x (B, C, H, W), t (B,) -> prediction and middle piece, of x's shape both."""

    def __init__(self, recipe: DoubleUNetRecipe) -> None:
        super().__init__()
        levels, size = recipe.levels, recipe.in_channels

        def parts(layers: tuple[int, ...]) -> list[tuple[int, ...]]:
            """Layers of the first U-Net, and of the second, each counted from 1."""
            first = tuple(layer for layer in layers if layer <= levels)
            return [first, tuple(layer - levels for layer in layers if layer > levels)]

        (down1, down2), (up1, up2) = parts(recipe.attend_down), parts(recipe.attend_up)
        self.leaky = recipe.chain == "leaky"
        self.first = Body(recipe, size, size, down1, up1)
        self.second = Body(recipe, size * (2 if self.leaky else 1), size, down2, up2)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.first(x, t)
        return self.second(torch.cat([middle, x], dim=1) if self.leaky else middle, t), middle


class DoubleUNet(nn.Module):
    """x (B, C, H, W), t (B,) -> (B, C, H, W), whatever its condition says: the prediction of the network of paintings."""

    def __init__(self, recipe: DoubleUNetRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.painting, self.photograph = Chain(recipe), Chain(recipe)

    def prepare(self, condition: Condition) -> Prepared:
        return Prepared.of(condition, (), None, None)

    def chain(self, kind: Kind) -> Chain:
        choose(kind, KINDS, "kind of picture")
        return self.painting if kind == "painting" else self.photograph

    def say(self, kind: Kind, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Prediction and middle piece of the network of that kind."""
        said: tuple[Tensor, Tensor] = self.chain(kind)(x, t)
        return said

    def both(self, noisy: Mapping[Kind, Tensor], t: Tensor) -> dict[Kind, tuple[Tensor, Tensor | None]]:
        return {kind: self.say(kind, noisy[kind], t) for kind in KINDS}

    def first(self, kind: Kind, x: Tensor, t: Tensor) -> Tensor:
        """The middle piece of the network of that kind."""
        middle: Tensor = self.chain(kind).first(x, t)
        return middle

    def forward(self, x: Tensor, t: Tensor, prepared: Prepared, probe: Probe | None = None) -> Tensor:
        return self.say("painting", *prepared.join(x, t))[0]


class As:
    """A network of two kinds as a network of one of them (precondition.Network): for samplers, and for translating from one
    kind to the other."""

    def __init__(self, network: Any, kind: Kind) -> None:
        self.network, self.kind = network, kind

    def prepare(self, condition: Condition) -> Prepared:
        made: Prepared = self.network.prepare(condition)
        return made

    def __call__(self, x: Tensor, t: Tensor, prepared: Prepared, probe: Probe | None = None) -> Tensor:
        out: Tensor = self.network.say(self.kind, *prepared.join(x, t))[0]
        return out
