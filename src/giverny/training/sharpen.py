"""Objective: a decoder that paints sharply, taught by a critic (Esser et al. 2021), while the encoder stays as it is.

Latents keep their meaning, so a denoiser trained on them before or after is none the worse. The decoder's loss is the
pixel error, the critic's verdict (hinge), and the difference of what the critic looks at in both pictures (feature
matching, Salimans et al. 2016), which is what tells it where an edge belongs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Batch, Frozen, Streams, Turn


class SharpenRecipe(Frozen):
    absolute: float = Field(1.0, ge=0, description="weight of the mean absolute error of pixels")
    verdict: float = Field(0.05, ge=0, description="weight of the critic's verdict")
    matching: float = Field(1.0, ge=0, description="weight of the difference of the critic's features")
    critic_rate: float = Field(5e-4, gt=0, description="learning rate of the critic")


class Sharpen:
    """autoencoder: `encode` gives a Gaussian, `decode` takes its samples, `decoder_parameters` are what is trained.
    critic: pixels -> [features ..., scores]."""

    averaged: Sequence[str] = ("autoencoder",)

    def __init__(self, autoencoder: Any, critic: nn.Module, recipe: SharpenRecipe) -> None:
        self.autoencoder, self.critic, self.recipe = autoencoder, critic, recipe
        self.modules: Mapping[str, nn.Module] = {"autoencoder": autoencoder, "critic": critic}

    def turns(self) -> Sequence[Turn]:
        betas = (0.5, 0.99)
        return [
            Turn("critic", list(self.critic.parameters()), learning_rate=self.recipe.critic_rate, betas=betas),
            Turn("decoder", list(self.autoencoder.decoder_parameters()), betas=betas),
        ]

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        pixels = batch["pixels"]
        if "again" not in scratch:
            with torch.no_grad():
                belief = self.autoencoder.encode(pixels)
                latents = belief.sample(streams.normal("belief", belief.mean.shape))
            scratch["again"] = self.autoencoder.decode(latents).to(pixels.dtype)
        again = scratch["again"]
        if turn == "critic":
            real, fake = self.critic(pixels)[-1].float(), self.critic(again.detach())[-1].float()
            return {"loss": F.relu(1 - real).mean() + F.relu(1 + fake).mean()}
        *seen, scores = self.critic(again)
        with torch.no_grad():
            wanted = self.critic(pixels)[:-1]
        absolute = (again - pixels).abs().mean()
        matching = torch.stack([(a - b).abs().mean() / b.abs().mean() for a, b in zip(seen, wanted, strict=True)]).mean()
        verdict = -scores.float().mean()
        loss = self.recipe.absolute * absolute + self.recipe.matching * matching + self.recipe.verdict * verdict
        return {"loss": loss, "absolute": absolute.detach(), "matching": matching.detach(), "verdict": verdict.detach()}

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """psnr in dB over [0, 1]; sharpness: mean step between neighbouring pixels, as a share of the real pictures' own."""
        pixels = batch["pixels"]
        again = self.autoencoder.decode(self.autoencoder.encode(pixels).mean).clamp(-1, 1)
        squared = ((again - pixels) / 2).square().mean()
        return {"psnr": -10 * squared.log10(), "sharpness": again.diff(dim=-1).abs().mean() / pixels.diff(dim=-1).abs().mean()}

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        """Rows of eight pictures, each row above its reconstruction."""
        pixels = batch["pixels"][:16]
        again = self.autoencoder.decode(self.autoencoder.encode(pixels).mean)
        return torch.cat([part for i in range(0, len(pixels), 8) for part in (pixels[i : i + 8], again[i : i + 8])])
