"""Generators that turn a picture into another of the same size: residual (Johnson et al. 2016) and U-Net (Isola et al. 2017).

As CycleGAN has them (Zhu et al. 2017, arXiv 1703.10593), tensor names included, so that weights of the original program
load. Convolutions have biases where the norm is instance norm, which has none of its own; the last one always has.

With `grain` a generator is shown channels of noise beside the picture, as StyleGAN's layers are (Karras et al. 2019, arXiv
1812.04948): where a picture is smooth, there is then something to make brush strokes of. Without, the only texture it can lay
over a clear sky is one that the sky has not, such as the checkerboard of its transposed convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Frozen

Norm = Literal["instance", "batch"]
Doubling = Literal["transposed", "resize"]
DOUBLINGS = "transposed convolution, or bilinear enlarging and a convolution: without checkerboards"
MOST = 8  # a level is at most so many times as wide as the first
GRAIN = "channels of unit noise that the network is shown beside a picture; 0: the picture alone"
SHORT = 1e-4  # vectors shorter than this stay shorter than 1, or their gradients would have no bound


def norm_of(kind: Norm, channels: int) -> nn.Module:
    """Instance norm without parameters or running statistics, or batch norm with both."""
    return nn.InstanceNorm2d(channels) if kind == "instance" else nn.BatchNorm2d(channels)


def enlarged(inner: int, outer: int, biased: bool) -> nn.Module:
    """A doubling that leaves no checkerboards (Odena et al. 2016): bilinear, and a convolution."""
    doubled = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(doubled, nn.ReflectionPad2d(1), nn.Conv2d(inner, outer, 3, bias=biased))


def _shortly(told: dict[str, Any], **usual: Any) -> dict[str, Any]:
    """Without entries that are as usual and were added later: what was made before keeps its name."""
    return {name: value for name, value in told.items() if name not in usual or value != usual[name]}


@torch.no_grad()
def initialise(network: nn.Module, gain: float = 0.02) -> None:
    """Weights of convolutions and linear layers ~ N(0, gain), of batch norms ~ N(1, gain); biases 0, as the original's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.weight.normal_(0.0, gain)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.normal_(1.0, gain)
        else:
            continue
        if module.bias is not None:
            module.bias.zero_()


def from_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network without parallel wrapper, as the original program saves it, ready for `load_state_dict`.

    Files of early 2018 keep running statistics of instance norms, which later versions have not: they are left out. A batch
    norm, whose statistics stay, is known by its weight.
    """
    bare = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    running = ("running_mean", "running_var", "num_batches_tracked")
    return {n: t for n, t in bare.items() if not n.endswith(running) or f"{n.rpartition('.')[0]}.weight" in bare}


# ---------------------------------------------------------------------------------------------------------------------
# Residual


class ResnetRecipe(Frozen):
    """Sizes of a residual generator: two halvings, residual blocks at a quarter of the size, two doublings."""

    family: Literal["resnet"] = "resnet"
    picture_channels: int = Field(3, ge=1)
    channels: int = Field(64, ge=1, description="width at full size; 4 times as much at a quarter of it")
    blocks: int = Field(9, ge=1, description="residual blocks: 6 are usual for 128 pixels, 9 for 256")
    norm: Norm = "instance"
    dropout: bool = Field(False, description="half of the channels inside residual blocks are dropped in training")
    doubling: Doubling = Field("transposed", description=DOUBLINGS)
    gain: float = Field(0.02, gt=0, description="standard deviation of initial weights")
    grain: int = Field(0, ge=0, le=16, description=GRAIN)

    @model_serializer(mode="wrap")
    def _told(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _shortly(plain(self), grain=0)

    @property
    def step(self) -> int:
        """What the sides of a picture are divisible by."""
        return 4

    @property
    def least(self) -> int:
        """Shortest side of a picture: residual blocks mirror one place of a map a quarter as large."""
        return 8

    def build(self) -> ResnetGenerator:
        network = ResnetGenerator(self)
        initialise(network, self.gain)
        return network


class ResnetBlock(nn.Module):
    """x + f(x), with nothing behind the sum."""

    def __init__(self, channels: int, recipe: ResnetRecipe) -> None:
        super().__init__()

        def half() -> list[nn.Module]:
            convolution = nn.Conv2d(channels, channels, 3, bias=recipe.norm == "instance")
            return [nn.ReflectionPad2d(1), convolution, norm_of(recipe.norm, channels)]

        between: list[nn.Module] = [nn.ReLU(), *([nn.Dropout(0.5)] if recipe.dropout else [])]
        self.conv_block = nn.Sequential(*half(), *between, *half())

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.conv_block(x)
        return made


class ResnetGenerator(nn.Module):
    """(B, C, H, W) in [-1, 1], then noise if there is grain -> (B, C, H, W); H and W divisible by 4, at least 8."""

    def __init__(self, recipe: ResnetRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        width, norm, biased = recipe.channels, recipe.norm, recipe.norm == "instance"
        seen = recipe.picture_channels + recipe.grain
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(seen, width, 7, bias=biased)]
        layers += [norm_of(norm, width), nn.ReLU()]
        for a, b in pairwise((width, 2 * width, 4 * width)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=biased), norm_of(norm, b), nn.ReLU()]
        layers += [ResnetBlock(4 * width, recipe) for _ in range(recipe.blocks)]
        for a, b in pairwise((4 * width, 2 * width, width)):
            layers += [self._doubled(a, b, biased), norm_of(norm, b), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, recipe.picture_channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def _doubled(self, a: int, b: int, biased: bool) -> nn.Module:
        if self.recipe.doubling == "transposed":
            return nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1, bias=biased)
        return enlarged(a, b, biased)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.model(x)
        return made

    @property
    def looks(self) -> dict[int, int]:
        """Layers that patches are compared in (Park et al. 2020), and how wide they are: the pixels, both smaller sizes, the
        first residual block and the middle one."""
        width = self.recipe.channels
        return {
            0: self.recipe.picture_channels,
            4: 2 * width,
            7: 4 * width,
            10: 4 * width,
            10 + self.recipe.blocks // 2: 4 * width,
        }

    def features(self, x: Tensor) -> list[Tensor]:
        """Maps (B, c, h, w) behind the layers of `looks`, in order; nothing behind the last of them is computed."""
        seen, looks = [], self.looks
        for index in range(max(looks) + 1):
            x = self.model[index](x)
            if index in looks:
                seen.append(x)
        return seen


class Projections(nn.Module):
    """Maps of a generator as unit vectors of places, two linear layers for each map (Park et al. 2020)."""

    def __init__(self, widths: Sequence[int], width: int = 256) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(w, width), nn.ReLU(), nn.Linear(width, width)) for w in widths)
        initialise(self)

    def forward(self, maps: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        """maps: (B, c, h, w); places: (B, N) indices into h * w, one for each map -> (B, N, width) for each map."""
        made = []
        for head, seen, where in zip(self.heads, maps, places, strict=True):
            # Taken first, turned afterwards: torch 2.13's instance norm gives wrong gradients on CPUs where what comes back
            # to it is laid out the other way round and there is one picture.
            taken = seen.flatten(2).gather(2, where[:, None].expand(-1, seen.shape[1], -1)).transpose(1, 2)  # (B, N, c)
            made.append(F.normalize(head(taken), dim=-1, eps=SHORT))
        return made


# ---------------------------------------------------------------------------------------------------------------------
# U-Net


class UnetRecipe(Frozen):
    """Sizes of a U-Net generator. 8 levels are the original's unet_256, 7 its unet_128."""

    family: Literal["unet"] = "unet"
    picture_channels: int = Field(3, ge=1)
    channels: int = Field(64, ge=1, description="width of the first level; the next are 2, 4, 8, 8, ... times as wide")
    levels: int = Field(8, ge=2, le=10, description="times that the sides are halved")
    doubling: Doubling = Field("transposed", description=DOUBLINGS)
    norm: Norm = "instance"
    dropout: bool = Field(False, description="half of the channels are dropped in training on the way up, at the full width")
    gain: float = Field(0.02, gt=0, description="standard deviation of initial weights")
    grain: int = Field(0, ge=0, le=16, description=GRAIN)

    @property
    def step(self) -> int:
        """What the sides of a picture are divisible by."""
        return int(2**self.levels)

    @property
    def least(self) -> int:
        """Shortest side of a picture, whose smallest map is then one place."""
        return self.step

    def doubled(self, inner: int, outer: int, biased: bool) -> nn.Module:
        """From inner to outer channels, at twice the size."""
        if self.doubling == "transposed":
            return nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1, bias=biased)
        return enlarged(inner, outer, biased)

    @model_serializer(mode="wrap")
    def _told(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _shortly(plain(self), grain=0, doubling="transposed")

    def build(self) -> UnetGenerator:
        network = UnetGenerator(self)
        initialise(network, self.gain)
        return network


class UnetLevel(nn.Module):
    """One halving, what lies below it, one doubling, and beside that what came in.

    The original's activations work in place, so what it hands across has passed the leaky unit: here that is written out.
    """

    def __init__(self, outer: int, inner: int, recipe: UnetRecipe, below: UnetLevel | None, dropout: bool) -> None:
        super().__init__()
        biased, across = recipe.norm == "instance", 1 if below is None else 2
        self.model = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=biased),
            *([] if below is None else [norm_of(recipe.norm, inner), below]),
            nn.ReLU(),
            recipe.doubled(across * inner, outer, biased),
            norm_of(recipe.norm, outer),
            *([nn.Dropout(0.5)] if dropout else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.model
        seen = made = first(x)
        for layer in rest:
            made = layer(made)
        return torch.cat([seen, made], 1)


class UnetOutermost(nn.Module):
    """The first halving and the last doubling, which have no norm."""

    def __init__(self, recipe: UnetRecipe, below: UnetLevel) -> None:
        super().__init__()
        colours, width = recipe.picture_channels, recipe.channels
        self.model = nn.Sequential(
            nn.Conv2d(colours + recipe.grain, width, 4, stride=2, padding=1, bias=recipe.norm == "instance"),
            below,
            nn.ReLU(),
            recipe.doubled(2 * width, colours, True),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.model(x)
        return made


class UnetGenerator(nn.Module):
    """(B, C, H, W) in [-1, 1], then noise if there is grain -> (B, C, H, W); H and W divisible by 2^levels."""

    def __init__(self, recipe: UnetRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        widths = [recipe.channels * min(2**level, MOST) for level in range(recipe.levels)]
        level: UnetLevel | None = None
        for index in range(recipe.levels - 1, 0, -1):
            full = 4 <= index < recipe.levels - 1  # levels of the full width on both sides, above the innermost
            level = UnetLevel(widths[index - 1], widths[index], recipe, level, recipe.dropout and full)
        assert level is not None
        self.model = UnetOutermost(recipe, level)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.model(x)
        return made


Generator = ResnetGenerator | UnetGenerator
GeneratorRecipe = Annotated[ResnetRecipe | UnetRecipe, Field(discriminator="family")]
