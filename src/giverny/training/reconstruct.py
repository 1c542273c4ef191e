"""Objective: an autoencoder that gives back what it was shown (Rombach et al. 2022, without the critic).

Loss: mean |error| + mean error^2 over a picture's N values, plus the divergence of the encoder's belief from a unit
normal, summed over the latent. The first term keeps edges, the second keeps large errors rare. Latent diffusion sums the
errors too: its `kl_weight` of 1e-6 would be 1e-6 / N here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ..base.contracts import Batch, Frozen, Streams, Turn


class ReconstructRecipe(Frozen):
    absolute: float = Field(1.0, ge=0, description="weight of the mean absolute error")
    squared: float = Field(1.0, ge=0, description="weight of the mean squared error")
    edges: float = Field(0.0, ge=0, description="weight of the absolute error between neighbouring pixels' differences")
    kl_weight: float = Field(1e-6, ge=0, description="weight of the divergence, summed over the latent")


class Autoencoder(Protocol):
    """encode: pixels -> a dataclass with mean and logvar (B, z, h, w), `sample(noise)` and `divergence()` (B,)."""

    def encode(self, pixels: Tensor) -> Any: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class Reconstruct:
    """Trains any autoencoder whose `encode` gives a Gaussian (sample, divergence) and whose `decode` takes its samples."""

    averaged: Sequence[str] = ("autoencoder",)

    def __init__(self, autoencoder: nn.Module, recipe: ReconstructRecipe) -> None:
        self.autoencoder, self.recipe = autoencoder, recipe
        self.modules: Mapping[str, nn.Module] = {"autoencoder": autoencoder}
        self.encode: Callable[[Tensor], Any] = cast(Autoencoder, autoencoder).encode
        self.decode: Callable[[Tensor], Tensor] = cast(Autoencoder, autoencoder).decode

    def turns(self) -> Sequence[Turn]:
        return [Turn("autoencoder", list(self.autoencoder.parameters()))]

    def _belief(self, pixels: Tensor) -> Any:
        """The encoder's belief in full precision: a sum over a latent is more than bfloat16 can count."""
        belief = self.encode(pixels)
        return replace(belief, mean=belief.mean.to(pixels.dtype), logvar=belief.logvar.to(pixels.dtype))

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        pixels = batch["pixels"]  # (B, C, H, W)
        belief = self._belief(pixels)
        again = self.decode(belief.sample(streams.normal("belief", belief.mean.shape))).to(pixels.dtype)
        error = again - pixels
        absolute, squared = error.abs().mean(), error.square().mean()
        divergence = belief.divergence().mean()
        loss = self.recipe.absolute * absolute + self.recipe.squared * squared + self.recipe.kl_weight * divergence
        if self.recipe.edges:
            loss = loss + self.recipe.edges * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
        return {"loss": loss, "absolute": absolute.detach(), "divergence": divergence.detach()}

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """psnr in dB over pixel values scaled to [0, 1], from the mean of the encoder's belief."""
        pixels = batch["pixels"]
        again = self.decode(self.encode(pixels).mean).clamp(-1, 1)
        squared = ((again - pixels) / 2).square().mean()
        return {"psnr": -10 * squared.log10(), "absolute": (again - pixels).abs().mean() / 2}

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        """Rows of pictures, each above its reconstruction."""
        pixels = batch["pixels"][:16]
        again = self.decode(self.encode(pixels).mean)
        return torch.cat([part for i in range(0, len(pixels), 8) for part in (pixels[i : i + 8], again[i : i + 8])])
