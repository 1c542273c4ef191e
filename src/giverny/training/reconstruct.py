"""Objective: an autoencoder that gives back what it was shown (Rombach et al. 2022).

Loss: mean |error| + mean error^2 over a picture's N values, plus what the encoder's belief asks for: a KL autoencoder's
divergence from a unit normal, summed over the latent, or the distance between latents and codes of one with a codebook.
The first term keeps edges, the second keeps large errors rare. Latent diffusion sums the errors too: its `kl_weight` of
1e-6 would be 1e-6 / N here.

Two more terms where they are asked for: a distance in the features of a frozen network (Zhang et al. 2018, without their
learnt weights), and from some share of the steps on the verdict of a patch critic (Esser et al. 2021), hinge loss, which
weighs as much as the other terms pull at the decoder's last convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Batch, Frozen, Streams, Turn
from ..base.ssim import ssim

Features = Callable[[Tensor], Sequence[Tensor]]  # pixels (B, C, H, W) in [-1, 1] -> maps (B, c, h, w)
STEADY = 1e-10  # keeps the direction of features that are all 0
MOST = 1e4  # largest balance of the critic's verdict


class ReconstructRecipe(Frozen):
    absolute: float = Field(1.0, ge=0, description="weight of the mean absolute error")
    squared: float = Field(1.0, ge=0, description="weight of the mean squared error")
    edges: float = Field(0.0, ge=0, description="weight of the absolute error between neighbouring pixels' differences")
    kl_weight: float = Field(1e-6, ge=0, description="weight of the divergence, summed over the latent")
    codebook: float = Field(1.0, ge=0, description="weight of the distance between latents and their codes")
    perceptual: float = Field(0.0, ge=0, description="weight of the distance in a frozen network's features; 0: without")
    verdict: float = Field(0.5, ge=0, description="pull of the critic, where there is one, relative to the other terms'")
    critic_from: float = Field(0.6, ge=0, lt=1, description="share of the steps at which the critic joins")
    critic_rate: float = Field(5e-4, gt=0, description="learning rate of the critic")


class Keeper(Protocol):
    def learn(self, belief: Any, streams: Streams, gather: Callable[[Tensor], Tensor]) -> None: ...


class Autoencoder(Protocol):
    """encode: pixels -> a belief with `mean` (B, z, h, w), `sample(noise)`, `to(dtype)`, `loss_terms()` and `figures()`.

    loss_terms: what is to be small besides the error, as {"divergence" or "codebook": scalar}; figures: what validation
    says of a belief, by name. keeper: a module that takes in every belief in training, None where nothing learns but by
    its gradient. decoder.conv_out: the last convolution.
    """

    decoder: Any

    def encode(self, pixels: Tensor) -> Any: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def keeper(self) -> Any: ...


class Reconstruct:
    """Trains an autoencoder on pixels (B, C, H, W) in [-1, 1].

    critic: pixels -> [features ..., scores]; features: of a frozen network; gather: rows of all processes in rank order.
    With a critic, parts of an accumulated batch are balanced each by itself; processes are balanced together.
    """

    averaged: Sequence[str] = ("autoencoder",)

    def __init__(
        self,
        autoencoder: nn.Module,
        recipe: ReconstructRecipe,
        critic: nn.Module | None = None,
        features: Features | None = None,
        gather: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        if recipe.perceptual and features is None:
            raise ValueError("a perceptual term wants features")
        made = cast(Autoencoder, autoencoder)
        self.autoencoder, self.recipe, self.critic = autoencoder, recipe, critic
        self.features, self.gather = features, gather
        self.encode, self.decode = made.encode, made.decode
        self.last: nn.Parameter = made.decoder.conv_out.weight
        self.keeper: Keeper | None = made.keeper()
        self.modules: Mapping[str, nn.Module] = {
            "autoencoder": autoencoder,
            **({"codebook": cast(nn.Module, self.keeper)} if self.keeper is not None else {}),
            **({"critic": critic} if critic is not None else {}),
        }

    def turns(self) -> Sequence[Turn]:
        own = Turn("autoencoder", list(self.autoencoder.parameters()))
        if self.critic is None:
            return [own]
        return [own, Turn("critic", list(self.critic.parameters()), learning_rate=self.recipe.critic_rate, betas=(0.5, 0.9))]

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        pixels = batch["pixels"]  # (B, C, H, W)
        if turn == "critic":
            return self._judge(pixels, scratch["again"], streams)
        recipe = self.recipe
        # In full precision: a sum over a latent is more than bfloat16 can count.
        belief = self.encode(pixels).to(pixels.dtype)
        if self.keeper is not None:
            self.keeper.learn(belief, streams, self.gather)
        again = self.decode(belief.sample(streams.normal("belief", belief.mean.shape))).to(pixels.dtype)
        scratch["again"] = again.detach()
        error = again - pixels
        absolute, squared = error.abs().mean(), error.square().mean()
        loss = recipe.absolute * absolute + recipe.squared * squared
        told = {"absolute": absolute}
        weights = {"divergence": recipe.kl_weight, "codebook": recipe.codebook}
        for name, term in belief.loss_terms().items():
            loss, told[name] = loss + weights[name] * term, term
        if recipe.edges:
            loss = loss + recipe.edges * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
        if recipe.perceptual:
            told["perceptual"] = self._distance(again, pixels)
            loss = loss + recipe.perceptual * told["perceptual"]
        if self._joined(streams):
            told["verdict"] = -cast(nn.Module, self.critic)(again)[-1].to(pixels.dtype).mean()
            told["balance"] = self._balance(loss, told["verdict"])
            loss = loss + recipe.verdict * told["balance"] * told["verdict"]
        return {"loss": loss} | {name: value.detach() for name, value in told.items()}

    def _joined(self, streams: Streams) -> bool:
        if self.critic is None:
            return False
        return streams.progress >= self.recipe.critic_from

    def _judge(self, pixels: Tensor, again: Tensor, streams: Streams) -> dict[str, Tensor]:
        """The critic's own loss: half the hinge loss of both kinds of pictures. Before it joins nothing moves it."""
        if not self._joined(streams):
            return {"loss": pixels.new_zeros(()).requires_grad_()}
        real, fake = (cast(nn.Module, self.critic)(x)[-1].to(pixels.dtype) for x in (pixels, again))
        return {"loss": 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())}

    def _balance(self, others: Tensor, verdict: Tensor) -> Tensor:
        """|gradient of the other terms| / |gradient of the verdict| at the last convolution, from the whole batch's."""
        slopes = [torch.autograd.grad(term, self.last, retain_graph=True)[0] for term in (others, verdict)]
        pull, push = (self.gather(slope[None]).mean(0).norm() for slope in slopes)
        return (pull / (push + 1e-4)).clamp(0, MOST)

    def _distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Mean over maps and places of the squared distance between the features' directions, in [0, 4]."""
        with torch.no_grad():
            wanted = self._directions(theirs)
        apart = [(a - b).square().sum(1).mean() for a, b in zip(self._directions(ours), wanted, strict=True)]
        return torch.stack(apart).mean().to(ours.dtype)

    def _directions(self, pixels: Tensor) -> list[Tensor]:
        maps = [m.float() for m in cast(Features, self.features)(pixels.float())]
        return [m / (m.square().sum(1, keepdim=True) + STEADY).sqrt() for m in maps]

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """psnr in dB over pixel values scaled to [0, 1] and ssim, from the mean of the encoder's belief."""
        pixels = batch["pixels"]
        belief = self.encode(pixels)
        again = self.decode(belief.mean).clamp(-1, 1)
        squared = ((again - pixels) / 2).square().mean()
        values = {"psnr": -10 * squared.log10(), "absolute": (again - pixels).abs().mean() / 2}
        values |= {"ssim": ssim(again, pixels).mean()} | belief.figures()
        return values | ({"perceptual": self._distance(again, pixels)} if self.recipe.perceptual else {})

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        """Rows of pictures, each above its reconstruction."""
        pixels = batch["pixels"][:16]
        again = self.decode(self.encode(pixels).mean)
        return torch.cat([part for i in range(0, len(pixels), 8) for part in (pixels[i : i + 8], again[i : i + 8])])
