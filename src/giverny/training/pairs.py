"""Objective: a denoiser of paintings and photographs, which are shown in random pairs with one time and one noise.

The double U-Net diffusion of source 001, made precise (see denoisers/double_unet.py). With p_t and m_t a noisy photograph and a
noisy painting, eps_P and eps_M what the two networks predict, mid_P and mid_M the pieces in their middle:

    loss = |eps_P - eps|^2 + |eps_M - eps|^2 + middle * (|mid_P - m_t| + |mid_M - p_t|),    means over all values.

The other terms are those the source names and leaves out: a critic for whom middle pieces are the fakes (least squares, Mao et
al. 2017), and CycleGAN's identity and cycle (Zhu et al. 2017) between the first U-Nets, which turn one kind into the other.
Where the network has no middle (a single U-Net, the control), the first two terms are all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ..base.contracts import Batch, Frozen, NoiseLevel, Streams, Turn
from ..base.table import level_of
from ..denoisers.precondition import KINDS, Kind, OfKinds, min_snr_weight
from .denoise import DenoiseRecipe, error_of, noise_for

OTHER: Mapping[Kind, Kind] = {"painting": "photograph", "photograph": "painting"}
SHOWN = 8  # pictures in a row of a preview


class PairsRecipe(Frozen):
    middle: float = Field(1.0, ge=0, description="weight of the middle piece's distance to the other kind's noisy picture")
    adversarial: float = Field(0.0, ge=0, description="weight of the critic's verdict on middle pieces; 0: no critic")
    identity: float = Field(0.0, ge=0, description="weight of what a first U-Net changes in a picture of the kind it makes")
    cycle: float = Field(0.0, ge=0, description="weight of what is lost on the way through both first U-Nets")
    critic_rate: float = Field(2e-4, gt=0, description="learning rate of the critic")

    @property
    def sees_middle(self) -> bool:
        return max(self.middle, self.adversarial, self.identity, self.cycle) > 0


class Critics(nn.Module):
    """One critic of each kind. build: makes one, pixels -> [features ..., scores]."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.painting, self.photograph = build(), build()

    def forward(self, kind: Kind, pixels: Tensor) -> Tensor:
        """Scores of pictures as ones of that kind: 1 where they seem real, 0 where not."""
        scores: Tensor = getattr(self, kind)(pixels)[-1]
        return scores.to(pixels.dtype)


@dataclass(frozen=True)
class Shown:
    """One batch as the network saw it, and what it said."""

    times: Tensor  # (B,)
    level: NoiseLevel
    noise: Tensor  # (B, C, H, W), the same for both kinds
    clean: Mapping[Kind, Tensor]
    noisy: Mapping[Kind, Tensor]
    predicted: Mapping[Kind, Tensor]
    middle: Mapping[Kind, Tensor]  # empty where the network has none


class PairsObjective:
    """Trains on batches with "pixels" (paintings) and "photographs", (B, C, H, W) in [-1, 1].

    network: an OfKinds. critics: where recipe.adversarial is above 0. paint: as in DenoiseObjective.
    """

    averaged: Sequence[str] = ("denoiser",)

    def __init__(
        self,
        network: nn.Module,
        table: Tensor,  # (T,) alphas_cumprod
        denoise: DenoiseRecipe,
        recipe: PairsRecipe,
        critics: Critics | None = None,
        paint: Callable[[], Tensor] | None = None,
    ) -> None:
        self.network, self.critics, self.table = network, critics, table
        self.denoise, self.recipe, self.paint = denoise, recipe, paint
        self.modules: Mapping[str, nn.Module] = {"denoiser": network} | ({"critic": critics} if critics is not None else {})
        self.kinds = cast(OfKinds, network)

    def turns(self) -> Sequence[Turn]:
        denoiser = Turn("denoiser", list(self.network.parameters()))
        if self.critics is None:
            return [denoiser]
        rate = self.recipe.critic_rate
        return [Turn("critic", list(self.critics.parameters()), learning_rate=rate, betas=(0.5, 0.999)), denoiser]

    def _show(self, batch: Batch, streams: Streams) -> Shown:
        clean: dict[Kind, Tensor] = {"painting": batch["pixels"], "photograph": batch["photographs"]}
        noise = noise_for(clean["painting"], self.denoise, streams)
        times = (streams.spread("time", len(noise)) * len(self.table)).floor()
        level = level_of(self.table, times.cpu())
        alpha, sigma = level.for_sample(noise)
        noisy: dict[Kind, Tensor] = {kind: alpha * clean[kind] + sigma * noise for kind in KINDS}
        times = times.to(noise)
        said = self.kinds.both(noisy, times)
        predicted = {kind: said[kind][0] for kind in KINDS}
        middle = {kind: piece.to(noise.dtype) for kind in KINDS if (piece := said[kind][1]) is not None}
        return Shown(times, level, noise, clean, noisy, predicted, middle)

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        if "shown" not in scratch:
            scratch["shown"] = self._show(batch, streams)
        shown: Shown = scratch["shown"]
        if turn == "critic":
            return {"loss": self._critics_loss(shown)}
        weights = min_snr_weight(self.denoise.prediction, shown.level, self.denoise.min_snr_gamma).to(shown.noise)
        terms = {f"{kind}s": (weights * self._errors(shown, kind)).mean() for kind in KINDS}
        loss = sum(terms.values(), shown.noise.new_zeros(()))
        for name, weight, term in self._of_middle(shown):
            terms[name] = term
            loss = loss + weight * term
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _errors(self, shown: Shown, kind: Kind) -> Tensor:
        return error_of(shown.predicted[kind], shown.clean[kind], shown.noise, shown.level, self.denoise)

    def _of_middle(self, shown: Shown) -> Iterator[tuple[str, float, Tensor]]:
        """(name, weight, sum over both kinds) of each term that counts."""
        recipe, noisy, middle = self.recipe, shown.noisy, shown.middle
        if recipe.middle:
            yield "middle", recipe.middle, _both(lambda kind: (middle[kind] - noisy[OTHER[kind]]).abs().mean())
        if recipe.adversarial and self.critics is not None:
            judge = self.critics
            yield "verdict", recipe.adversarial, _both(lambda kind: (judge(OTHER[kind], middle[kind]) - 1).square().mean())
        with statistics_kept(self.network):
            if recipe.identity:
                made = _both(lambda kind: self._through(kind, noisy[OTHER[kind]], OTHER[kind], shown))
                yield "identity", recipe.identity, made
            if recipe.cycle:
                back = _both(lambda kind: self._through(OTHER[kind], middle[kind], kind, shown))
                yield "cycle", recipe.cycle, back

    def _through(self, kind: Kind, x: Tensor, wanted: Kind, shown: Shown) -> Tensor:
        """How far what the first U-Net of a kind makes of x is from the noisy picture of the wanted kind."""
        return (self.kinds.first(kind, x, shown.times).to(x.dtype) - shown.noisy[wanted]).abs().mean()

    def _critics_loss(self, shown: Shown) -> Tensor:
        """Half of the squares, as in CycleGAN: noisy pictures of a kind are real, the other network's middle piece is fake."""
        assert self.critics is not None
        judge = self.critics

        def of(kind: Kind) -> Tensor:
            real, fake = judge(kind, shown.noisy[kind]), judge(kind, shown.middle[OTHER[kind]].detach())
            return 0.5 * ((real - 1).square().mean() + fake.square().mean())

        return _both(of)

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """error: of paintings, which are painted; unweighted, with fixed noise and times."""
        shown = self._show(batch, streams)
        found = {"error": self._errors(shown, "painting").mean(), "photographs": self._errors(shown, "photograph").mean()}
        if shown.middle:
            found["middle"] = _both(lambda kind: (shown.middle[kind] - shown.noisy[OTHER[kind]]).abs().mean()) / 2
        return found

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        """What `paint` makes; below it, where there is a middle, held-out paintings halfway in noise, and their middle pieces
        without that noise: the photographs that the network sees in them."""
        if self.paint is None:
            return None
        precision = next(self.network.parameters()).dtype
        self.network.float()
        try:
            return torch.cat([self.paint(), *self._views(batch, streams)])
        finally:
            self.network.to(precision)

    def _views(self, batch: Batch, streams: Streams) -> list[Tensor]:
        clean = batch["pixels"].float()
        noise = streams.normal("noise", clean.shape).float()[:SHOWN]
        clean = clean[:SHOWN]
        level = level_of(self.table, len(self.table) / 2)
        alpha, sigma = level.for_sample(clean)
        noisy = alpha * clean + sigma * noise
        _, middle = self.kinds.say("painting", noisy, torch.full((len(clean),), len(self.table) / 2).to(clean))
        return [] if middle is None else [noisy, (middle - sigma * noise) / alpha]


def _both(of: Callable[[Kind], Tensor]) -> Tensor:
    return of("painting") + of("photograph")


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Batch norms that note nothing of what they see: they paint by the statistics of pictures of their own kind."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
