"""The KL autoencoder of latent diffusion (Kingma & Welling 2014; Rombach et al. 2022), any size.

At Stable Diffusion 1.x's sizes (`KLRecipe()`) it has 83,653,863 parameters and its tensors carry the names of a diffusers
folder. Each level but the last halves the sides: `factor` = patch * 2 ** (levels - 1). Encoder and decoder (`Trunk`) also
serve the autoencoder with a codebook, in vq.py.

For small machines there are two departures, both off at the usual sizes: pixels enter and leave as small patches, as a
vision transformer's do (Dosovitskiy et al. 2021), and a straight path of linear maps runs beside the networks, which from
the start does what principal components can. The networks then only learn the rest (compare the residual autoencoding of
Chen et al. 2024, whose shortcut is without parameters).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Frozen
from ..layers.attention import Attention
from ..layers.blocks import Downsample, ResidualBlock, Upsample

EPS = 1e-6  # of every GroupNorm here; the U-Net's residual blocks have 1e-5
FIRST = 0.1  # size of the networks' last weights where a straight path is primed
SURE = -4.0  # logvar that a primed encoder begins with
PART = 32  # pictures whose patches are looked at together for that


class Sizes(Frozen):
    """What autoencoders of every family have in common: the sizes of encoder and decoder."""

    family: str
    picture_channels: int = Field(3, ge=1, description="1 for grey pictures, 3 for colour")
    latent_channels: int = Field(4, ge=1)
    channels: tuple[int, ...] = Field((128, 256, 512, 512), min_length=1, description="width of each level")
    blocks: int = Field(2, ge=1, description="residual blocks per level of the encoder (one more in the decoder)")
    middle_attention: bool = True
    groups: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    patch: int = Field(1, ge=1, description="pixels along a side of a patch; patches enter and leave the networks whole")
    straight: bool = Field(False, description="a linear path beside the networks, begun as principal components of the data")
    whiteness: float = Field(
        0.5, ge=0, le=1, description="1: components begin equally large, 0: as large as they are in pixels"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(c % self.groups for c in self.channels):
            raise ValueError(f"channels {self.channels} want to be divisible by groups = {self.groups}")
        if self.straight and self.latent_channels > self.picture_channels * self.factor**2:
            most = self.picture_channels * self.factor**2
            raise ValueError(f"a straight path has at most {most} components, latent_channels = {self.latent_channels}")
        return self

    @property
    def factor(self) -> int:
        return self.patch * 2 ** (len(self.channels) - 1)


class KLRecipe(Sizes):
    """Sizes of a KL autoencoder; the defaults are Stable Diffusion 1.x."""

    family: Literal["kl"] = "kl"

    def build(self) -> "KLAutoencoder":
        return KLAutoencoder(self)


@dataclass(frozen=True)
class Gaussian:
    """The encoder's belief about a latent: a diagonal normal distribution, tensors of shape (B, z, h, w)."""

    mean: Tensor
    logvar: Tensor  # clamped to [-30, 20]

    @property
    def spread(self) -> Tensor:
        """The standard deviation, (B, z, h, w)."""
        return torch.exp(0.5 * self.logvar)

    def to(self, dtype: torch.dtype) -> "Gaussian":
        return Gaussian(self.mean.to(dtype), self.logvar.to(dtype))

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + self.spread * noise

    def divergence(self) -> Tensor:
        """KL from the unit normal, summed over each picture's latent: (B,), in nats."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)

    def loss_terms(self) -> dict[str, Tensor]:
        """What training asks of a belief besides good pictures."""
        return {"divergence": self.divergence().mean()}

    def figures(self) -> dict[str, Tensor]:
        """What validation says of a belief: of this one, nothing."""
        return {}


class PlaceAttention(Attention):
    """Single-head attention between the places of a feature map, with its own norm and residual."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(width, None, 1, width, bias=True)
        self.group_norm = nn.GroupNorm(groups, width, EPS)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # (B, C, H, W)
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        return x + super().forward(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])


class Middle(nn.Module):
    def __init__(self, width: int, recipe: Sizes) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([PlaceAttention(width, recipe.groups)] if recipe.middle_attention else [])
        self.resnets = nn.ModuleList(ResidualBlock(width, width, None, recipe.groups, EPS, recipe.dropout) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Level(nn.Module):
    """Residual blocks, then a change of size where there is one."""

    def __init__(self, inputs: int, width: int, blocks: int, recipe: Sizes) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(inputs if i == 0 else width, width, None, recipe.groups, EPS, recipe.dropout) for i in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        return x


class Encoder(nn.Module):
    def __init__(self, recipe: Sizes, outputs: int) -> None:
        super().__init__()
        widths = recipe.channels
        self.conv_in = nn.Conv2d(recipe.picture_channels * recipe.patch**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[max(i - 1, 0)], width, recipe.blocks, recipe)
            level.downsamplers = nn.ModuleList([Downsample(width, True)] if i < len(widths) - 1 else [])
            self.down_blocks.append(level)
        self.mid_block = Middle(widths[-1], recipe)
        self.conv_norm_out = nn.GroupNorm(recipe.groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C p p, H/p, W/p) -> (B, outputs, H/f, W/f)
        h = self.conv_in(x)
        for level in self.down_blocks:
            h = level(h)
            for down in level.downsamplers:
                h = down(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    def __init__(self, recipe: Sizes, inputs: int) -> None:
        super().__init__()
        widths = recipe.channels[::-1]
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], recipe)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[max(i - 1, 0)], width, recipe.blocks + 1, recipe)
            level.upsamplers = nn.ModuleList([Upsample(width)] if i < len(widths) - 1 else [])
            self.up_blocks.append(level)
        self.conv_norm_out = nn.GroupNorm(recipe.groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], recipe.picture_channels * recipe.patch**2, 3, padding=1)

    def open(self, z: Tensor) -> Tensor:  # (B, inputs, h, w) -> (B, width, h, w)
        return self.mid_block(self.conv_in(z))

    def finish(self, h: Tensor) -> Tensor:  # (B, width, h, w) -> (B, C p p, h*f/p, w*f/p)
        for level in self.up_blocks:
            h = level(h)
            for up in level.upsamplers:
                h = up(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def forward(self, z: Tensor) -> Tensor:  # (B, inputs, h, w) -> (B, C p p, h*f/p, w*f/p)
        return self.finish(self.open(z))


class Straight(nn.Module):
    """Linear maps between patches of `factor` pixels a side and latents, at first the principal components of data."""

    def __init__(self, recipe: Sizes) -> None:
        super().__init__()
        self.factor, self.whiteness = recipe.factor, recipe.whiteness
        pixels = recipe.picture_channels * recipe.factor**2
        self.inward = nn.Conv2d(pixels, recipe.latent_channels, 1)
        self.outward = nn.Conv2d(recipe.latent_channels, pixels, 1)

    @torch.no_grad()
    def prime(self, pixels: Tensor) -> None:
        """Latents along the axes on which these pictures (B, C, H, W) vary most, most telling first, of unit variance on
        average. Were all equally large, noise would drown colour and outline no later than the finest detail, and a
        denoiser's errors in them would weigh no more."""

        def rows() -> Iterator[Tensor]:  # in parts, since all at once in float64 would be many times the pictures
            for part in pixels.split(PART):
                yield F.pixel_unshuffle(part, self.factor).movedim(1, -1).flatten(0, -2).double()  # (N, C f f)

        count = pixels[:, :1].numel() // self.factor**2
        middle = torch.stack([part.sum(0) for part in rows()]).sum(0) / count
        spread = torch.zeros(len(middle), len(middle), dtype=middle.dtype, device=middle.device)
        for part in rows():
            spread.addmm_((part - middle).T, part - middle)
        power, axes = torch.linalg.eigh(spread / count)  # ascending
        axes, power = axes.flip(1).T[: self.inward.out_channels], power.flip(0)[: self.inward.out_channels]
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # whichever way the library turned them
        size = power.clamp(min=1e-12).sqrt()[:, None] ** self.whiteness
        size *= (power[:, None] / size**2).mean().sqrt()
        self.inward.weight.copy_((axes / size)[:, :, None, None])
        self.inward.bias.copy_(-(axes / size) @ middle)
        self.outward.weight.copy_((axes * size).T[:, :, None, None])
        self.outward.bias.copy_(middle)


class Trunk(nn.Module):
    """Encoder and decoder with the 1x1 convolutions between them and the latent, and what runs beside them."""

    def __init__(self, recipe: Sizes, encoded: int, believed: int, decoded: int) -> None:
        """encoded: channels that leave the encoder; believed: that say what a latent is; decoded: that enter the decoder."""
        super().__init__()
        self.patch = recipe.patch
        self.encoder = Encoder(recipe, encoded)
        self.decoder = Decoder(recipe, decoded)
        self.quant_conv = nn.Conv2d(encoded, believed, 1)
        self.post_quant_conv = nn.Conv2d(recipe.latent_channels, decoded, 1)
        self.straight = Straight(recipe) if recipe.straight else None

    def prime(self, pixels: Tensor) -> None:
        """Begin from what linear maps can do with pictures (B, C, H, W) in [-1, 1]; nothing without a straight path."""
        if self.straight is None:
            return
        self.straight.prime(pixels)
        with torch.no_grad():  # the networks begin small
            for last in (self.quant_conv, self.decoder.conv_out):
                last.weight.mul_(FIRST)

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """What turns latents into pixels: may be taught further without changing what latents mean."""
        yield from self.post_quant_conv.parameters()
        yield from self.decoder.parameters()
        if self.straight is not None:
            yield from self.straight.outward.parameters()

    def _beliefs(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, believed, H/f, W/f); the straight path speaks of the first `latent_channels`."""
        found = self.quant_conv(self.encoder(F.pixel_unshuffle(pixels, self.patch)))
        if self.straight is None:
            return found
        linear = self.straight.inward(F.pixel_unshuffle(pixels, self.straight.factor))
        return found + F.pad(linear, (0, 0, 0, 0, 0, found.shape[1] - linear.shape[1]))

    def open(self, latents: Tensor) -> tuple[Tensor, ...]:
        """What has to see latents (B, z, h, w) as a whole, because it attends: maps of their size."""
        opened = self.decoder.open(self.post_quant_conv(latents))
        return (opened,) if self.straight is None else (opened, latents)

    def finish(self, *maps: Tensor) -> Tensor:
        """Maps from `open`, or the same part of each, -> (B, C, h*f, w*f)."""
        made = F.pixel_shuffle(self.decoder.finish(maps[0]), self.patch)
        if self.straight is None:
            return made
        return made + F.pixel_shuffle(self.straight.outward(maps[1]), self.straight.factor)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, z, h, w) anywhere in the latent space -> (B, C, h*f, w*f)"""
        return self.finish(*self.open(latents))


class KLAutoencoder(Trunk):
    """Pixels in [-1, 1] -> a `Gaussian` over raw latents -> pixels. Scaling to unit size is the codec's business."""

    def __init__(self, recipe: KLRecipe) -> None:
        z = recipe.latent_channels
        super().__init__(recipe, 2 * z, 2 * z, z)
        self.recipe = recipe

    def prime(self, pixels: Tensor) -> None:
        super().prime(pixels)
        if self.straight is not None:
            assert self.quant_conv.bias is not None
            with torch.no_grad():  # noise as large as the latents would drown all but the loudest of them
                self.quant_conv.bias[self.recipe.latent_channels :] = SURE

    def keeper(self) -> None:
        """Nothing here learns but by its gradient."""

    def encode(self, pixels: Tensor) -> Gaussian:
        mean, logvar = self._beliefs(pixels).chunk(2, dim=1)
        return Gaussian(mean, logvar.clamp(-30, 20))
