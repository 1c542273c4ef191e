"""Objective: a generator and a critic in turns (Goodfellow et al. 2014), hinge or non-saturating loss, optional R1.

The fakes of an iteration are made once and shared by both turns through the scratch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Batch, Frozen, Streams, Turn


class AdversarialRecipe(Frozen):
    kind: Literal["hinge", "softplus"] = Field("hinge", description="hinge, or the non-saturating logistic loss")
    latent: int = Field(32, ge=1, description="numbers the generator starts from")
    critic_rate: float | None = Field(None, gt=0, description="learning rate of the critic; None: the recipe's")
    generator_every: int = Field(1, ge=1, description="the generator moves on every n-th iteration")
    r1: float = Field(0.0, ge=0, description="weight of the squared gradient of the critic at real pictures")


class Adversarial:
    """generator: (B, latent) -> pixels (B, C, H, W) in [-1, 1]; critic: pixels -> (B,) or (B, 1, h, w) scores."""

    averaged: Sequence[str] = ("generator",)

    def __init__(self, generator: nn.Module, critic: nn.Module, recipe: AdversarialRecipe) -> None:
        self.generator, self.critic, self.recipe = generator, critic, recipe
        self.modules: Mapping[str, nn.Module] = {"generator": generator, "critic": critic}

    def turns(self) -> Sequence[Turn]:
        betas = (0.0, 0.99)
        return [
            Turn(
                "critic",
                list(self.critic.parameters()),
                1,
                self.recipe.critic_rate,
                betas,
                second_order=self.recipe.r1 > 0,
            ),
            Turn("generator", list(self.generator.parameters()), self.recipe.generator_every, betas=betas),
        ]

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        real = batch["pixels"]
        if "fake" not in scratch:
            scratch["fake"] = self.generator(streams.normal("latent", (len(real), self.recipe.latent)))
        fake = scratch["fake"]
        if turn == "generator":
            scores = self.critic(fake).to(real.dtype)
            return {"loss": -scores.mean() if self.recipe.kind == "hinge" else F.softplus(-scores).mean()}
        real = real.detach().requires_grad_(self.recipe.r1 > 0)
        on_real, on_fake = self.critic(real).to(real.dtype), self.critic(fake.detach()).to(real.dtype)
        if self.recipe.kind == "hinge":
            loss = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
        else:
            loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        values = {"loss": loss, "real": on_real.mean().detach(), "fake": on_fake.mean().detach()}
        if self.recipe.r1:
            (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
            penalty = slope.square().flatten(1).sum(1).mean()
            values |= {"loss": loss + self.recipe.r1 / 2 * penalty, "r1": penalty.detach()}
        return values

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """How far the mean and spread of fakes are from those of real pictures, in pixel values."""
        real = batch["pixels"]
        fake = self.generator(streams.normal("latent", (len(real), self.recipe.latent)))
        return {
            "mean_gap": (real.mean(0) - fake.mean(0)).abs().mean(),
            "spread_gap": (real.std(0) - fake.std(0)).abs().mean(),
        }

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        return self.generator(streams.normal("latent", (len(batch["pixels"]), self.recipe.latent)))[:64]
