"""Previews: a linear map from latents to pixels that stands in for a decoder where one only wants to see what is coming.

The idea of such maps for Stable Diffusion's latents is common (ComfyUI's and AUTOMATIC1111's "approximate" previews use tables
of 4 x 3 numbers that somebody fitted). Ours is fitted to the autoencoder at hand, by least squares, on pictures drawn for the
purpose: shapes on grounds, in colours and sizes by chance, which are encoded and decoded; and on the same latents with
noise on them, since a denoiser's latents go where no encoder's do. Each latent with its eight neighbours gives the f x f
pixels at its place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.contracts import Codec

PICTURES, SIDE = 8, 16  # that the map is fitted on: how many, and latents along a side
RIDGE = 1e-3  # of the latents' mean square: what keeps the map small where pictures do not settle it


class LinearPreview:
    """latents (B, z, h, w) -> (B, C, h*f, w*f), about [-1, 1], by one small convolution. weight: (C*f*f, z, 3, 3)."""

    def __init__(self, weight: Tensor, bias: Tensor, factor: int) -> None:
        self.weight, self.bias, self.factor = weight, bias, factor

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        wide = F.pad(latents.to(self.weight), (1, 1, 1, 1), mode="replicate")
        return F.pixel_shuffle(F.conv2d(wide, self.weight, self.bias), self.factor)


@torch.no_grad()
def fitted(codec: Codec, channels: int, device: torch.device, precision: torch.dtype) -> LinearPreview:
    """The map that comes nearest to codec.decode. channels: of its pictures; device, precision: of its weights.

    Where the codec's weights are spoilt, so that it gives no numbers, the map gives grey.
    """
    pictures = drawn_pictures(PICTURES, channels, SIDE * codec.factor).to(device, precision)
    latents = torch.cat([codec.encode(one[None]) for one in pictures]).nan_to_num(0, 0, 0)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
    latents = torch.cat([latents, latents + latents.std() * noise])
    pixels = torch.cat([codec.decode(one[None]) for one in latents]).nan_to_num(0).clamp(-1, 1)
    around = F.pad(latents.double().cpu(), (1, 1, 1, 1), mode="replicate")
    known = F.unfold(around, 3).movedim(1, 2).flatten(0, 1)  # (places, z*9)
    wanted = F.unfold(pixels.double().cpu(), codec.factor, stride=codec.factor).movedim(1, 2).flatten(0, 1)  # (places, C*f*f)
    mean, shown = known.mean(0), wanted.mean(0)
    known, wanted = known - mean, wanted - shown
    square = known.T @ known
    ridge = RIDGE * square.diagonal().mean().clamp(min=1e-12) * torch.eye(len(square), dtype=square.dtype)
    weight = torch.linalg.solve(square + ridge, known.T @ wanted).T  # (C*f*f, z*9)
    bias = shown - weight @ mean
    return LinearPreview(weight.view(-1, codec.channels, 3, 3).float().to(device), bias.float().to(device), codec.factor)


def drawn_pictures(count: int, channels: int, side: int) -> Tensor:
    """Pictures (count, channels, side, side) in [-1, 1], always the same: soft discs and bars on a ground that changes
    slowly, with some grain; from almost uniform ones to ones full of shapes."""
    chance = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=chance)

    place = (torch.arange(side) + 0.5) / side
    y, x = place[:, None], place[None, :]
    made = []
    for i in range(count):
        picture = F.interpolate(draw(1, channels, 3, 3) * 2 - 1, (side, side), mode="bicubic", align_corners=True)[0]
        picture = draw(channels, 1, 1) * 2 - 1 + (i % 4) / 3 * picture
        for _ in range(3 * (i + 1)):
            (cy, cx, turn, wide), size = draw(4), 0.02 + 0.3 * float(draw(1)) ** 2
            along, across = (y - cy) * turn + (x - cx) * (1 - turn), (x - cx) * turn - (y - cy) * (1 - turn)
            inside = torch.sigmoid((size - torch.hypot(along, across * (0.2 + 2 * wide))) * side / (0.5 + 4 * draw(1)))
            picture = torch.lerp(picture, (draw(channels, 1, 1) * 2 - 1).expand_as(picture), inside)
        made.append(picture + 0.1 * draw(1) * (draw(channels, side, side) - 0.5))
    return torch.stack(made).clamp(-1, 1)
