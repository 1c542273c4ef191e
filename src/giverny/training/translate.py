"""Objective: pictures of one domain become pictures of another, from unpaired examples (CycleGAN, Zhu et al. 2017).

Two generators and two critics in two turns, in the original's order: the generators move first, then the critics, which see
the fakes made before that move, partly from a history. What is told of verdicts is in judged.py. The round trip may also be
compared in a critic's features, its weights changing over the run (Wang & Lin 2024, arXiv 2408.15374).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..base.contracts import Batch, Frozen, Streams, Turn
from ..base.images import beside
from ..base.ssim import ssim
from ..gans.losses import absolute, between, score
from .judged import Judged, JudgedRecipe, epoch_of


class CycleRecipe(Frozen):
    """The round trip. Entries with `_end` make a linear schedule over the run; None: the same all along."""

    weight: float = Field(10.0, ge=0, description="of the round trip's error")
    weight_end: float | None = Field(None, ge=0)
    features: float = Field(0.0, ge=0, le=1, description="share of the error in the critic's features; the rest is of pixels")
    features_end: float | None = Field(None, ge=0, le=1)
    swapped: bool = Field(False, description="`features` is the share of the pixels, as one report prints it")
    weighting: Literal["none", "generated", "printed"] = Field(
        "none", description="weigh each picture by the critic's score, within 0..1: of what it became, as the paper says it "
        "means, or of what it was, as it prints"
    )  # fmt: skip

    def now(self, progress: float) -> tuple[float, float]:
        """(weight, share of the features) at a share of the run."""
        ends = self.weight if self.weight_end is None else self.weight_end
        further = self.features if self.features_end is None else self.features_end
        share = between(self.features, further, progress)
        return between(self.weight, ends, progress), 1 - share if self.swapped else share


class TranslateRecipe(Frozen):
    family: Literal["cycle"] = "cycle"
    judged: JudgedRecipe = JudgedRecipe()
    cycle: CycleRecipe = CycleRecipe()
    identity: float = Field(10.0, ge=0, description="weight of leaving alone what is in the domain already; 0: not asked for")
    together: bool = Field(
        False, description="translate and leave alone in one pass: quicker on GPUs, equal with instance norm"
    )
    critic_rate: float | None = Field(None, gt=0, description="learning rate of the critics; None: the loop's")


class Translation:
    """What all translating objectives share. forth: from what is given to what is wanted; judges: of each domain's fakes.

    A batch has `given` and `wanted`, (B, C, H, W) in [-1, 1] each, and `epochs` (B,). grain: channels of noise that generators
    are shown beside a picture.
    """

    averaged: Sequence[str] = ("forth",)
    modules: Mapping[str, nn.Module]

    def __init__(self, forth: nn.Module, judges: Sequence[Judged], critic_rate: float | None, grain: int = 0) -> None:
        self.forth, self.judges, self.critic_rate, self.grain = forth, judges, critic_rate, grain

    def seen(self, pixels: Tensor, streams: Streams, name: str) -> Tensor:
        """Pixels with the noise that generators are shown beside them, drawn under a name."""
        shape = (len(pixels), self.grain, *pixels.shape[2:])
        return beside(pixels, streams.normal(f"grain.{name}", shape) if self.grain else None)

    def moved(self) -> list[nn.Parameter]:
        """What the generators' turn moves."""
        raise NotImplementedError

    def made(self, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        """The generators' loss; leaves {domain: fakes} in scratch["fakes"]."""
        raise NotImplementedError

    def turns(self) -> Sequence[Turn]:
        critics = [p for judge in self.judges for p in judge.critic.parameters()]
        return [Turn("generators", self.moved()), Turn("critics", critics, learning_rate=self.critic_rate)]

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        if turn == "generators":
            return self.made(batch, scratch, streams)
        each = {judge.name: judge.own(batch[judge.name], scratch["fakes"][judge.name], streams) for judge in self.judges}
        told = {f"{key}.{name}": value for name, part in each.items() for key, value in part.items() if key != "loss"}
        return {"loss": torch.stack([part["loss"] for part in each.values()]).sum()} | told

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """change: how far pictures move, in [0, 1]; structure: ssim to what they were; own: how far wanted ones are moved."""
        given, wanted = batch["given"], batch["wanted"]
        made, same = self._shown(given, streams, "given"), self._shown(wanted, streams, "wanted")
        values = {"change": (made - given).abs().mean() / 2, "structure": ssim(made, given).mean()}
        return values | {"own": (same - wanted).abs().mean() / 2}

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        """Rows of pictures, each above what they become."""
        given = batch["given"][:16]
        made = self._shown(given, streams, "given")
        return torch.cat([part for i in range(0, len(given), 8) for part in (given[i : i + 8], made[i : i + 8])])

    def _shown(self, pixels: Tensor, streams: Streams, name: str) -> Tensor:
        """Many pictures of full size, in the memory that one takes."""
        return torch.cat([self.forth(one[None]) for one in self.seen(pixels, streams, name)]).to(pixels.dtype)


class CycleTranslation(Translation):
    """Both ways. judges: of what is wanted and of what is given, in this order."""

    averaged: Sequence[str] = ("forth", "back")

    def __init__(
        self, forth: nn.Module, back: nn.Module, wanted: Judged, given: Judged, recipe: TranslateRecipe, grain: int = 0
    ) -> None:
        super().__init__(forth, (wanted, given), recipe.critic_rate, grain)
        self.back, self.wanted, self.given, self.recipe = back, wanted, given, recipe
        self.modules = {"forth": forth, "back": back, **wanted.modules, **given.modules}

    def moved(self) -> list[nn.Parameter]:
        return [*self.forth.parameters(), *self.back.parameters()]

    def made(self, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        recipe, given, wanted, epoch = self.recipe, batch["given"], batch["wanted"], epoch_of(batch)
        painted, same_wanted = self._passed("forth", given, wanted, streams)
        taken, same_given = self._passed("back", wanted, given, streams)
        scratch["fakes"] = {"wanted": painted.detach(), "given": taken.detach()}
        again = (
            self.back(self.seen(painted, streams, "painted")).to(given.dtype),
            self.forth(self.seen(taken, streams, "taken")).to(given.dtype),
        )
        told, scores = {}, {}
        for judge, fake in ((self.wanted, painted), (self.given, taken)):
            told[f"verdict.{judge.name}"], scores[judge.name] = judge.told(fake, batch[judge.name], epoch, streams)
        told["cycle.given"] = self._round_trip(again[0], given, self.given, scores["wanted"], streams)
        told["cycle.wanted"] = self._round_trip(again[1], wanted, self.wanted, scores["given"], streams)
        loss = torch.stack(list(told.values())).sum()
        if same_wanted is not None and same_given is not None:
            told["same.wanted"], told["same.given"] = (same_wanted - wanted).abs().mean(), (same_given - given).abs().mean()
            loss = loss + recipe.identity * (told["same.wanted"] + told["same.given"])
        return {"loss": loss} | {key: value.detach() for key, value in told.items()}

    def _passed(self, name: str, x: Tensor, own: Tensor, streams: Streams) -> tuple[Tensor, Tensor | None]:
        """(x translated, what is of the generator's own domain, given to it; None where that is not asked for)"""
        generator, kind = self.modules[name], x.dtype
        x = self.seen(x, streams, name)
        if not self.recipe.identity:
            return generator(x).to(kind), None
        own = self.seen(own, streams, f"{name}.own")
        if self.recipe.together:
            made, same = generator(torch.cat([x, own])).to(kind).split(len(x))
            return made, same
        return generator(x).to(kind), generator(own).to(kind)

    def _round_trip(self, again: Tensor, first: Tensor, judge: Judged, became: Tensor, streams: Streams) -> Tensor:
        """Weighted error between a picture and what came back. became: score of what it was in between."""
        cycle = self.recipe.cycle
        weight, share = cycle.now(streams.progress)
        apart = (1 - share) * absolute(again, first)
        if share:
            with torch.no_grad():
                before = judge.critic.features(first).to(first.dtype)  # type: ignore[operator]
            apart = apart + share * absolute(judge.critic.features(again).to(first.dtype), before)  # type: ignore[operator]
        if cycle.weighting != "none":
            with torch.no_grad():
                judged = became if cycle.weighting == "generated" else score(judge.outputs(first))
            apart = apart * judged.detach().clamp(0, 1)
        return weight * apart.mean()
