"""Half of a translating GAN's objective: one domain's critic, and what a generator hears from it.

Every variant of the verdict is one switch of `JudgedRecipe`; formulas and their sources are in gans/losses.py. Random
numbers come from the step's streams, by name.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..base.contracts import Frozen, Streams
from ..gans.history import History
from ..gans.losses import (
    DRAWS,
    Change,
    Kind,
    Outputs,
    absolute,
    augmented,
    best,
    cut_mask,
    flat_mask,
    inconsistency,
    kept_of,
    mixed,
    printed_inconsistency,
    score,
    verdicts,
)


class JudgedRecipe(Frozen):
    kinds: tuple[Kind, ...] = Field(
        ("squares",), min_length=1, description="least squares, cross-entropy as the U-Net critic's paper has it, or both added"
    )
    real_share: float = Field(0.5, gt=0, lt=1, description="weight of real pictures in the critic's loss; the rest is of fakes")
    history: int = Field(50, ge=0, description="former fakes that the critic is shown among the new ones; 0: none")
    mixing: Literal["none", "cutmix", "mixup"] = Field("none", description="pictures made of a real one and a fake one")
    mixing_form: Literal["paper", "printed", "image"] = Field(
        "paper", description="paper: the critic's pixels learn the mask, and to agree with themselves; printed: a distance of "
        "mixed pictures in the generator's loss, as one report prints it, which does not hang on the mask; image: that, and "
        "the critic gives the mixed picture back, as the report says beside it (our reading; wants critic.image)"
    )  # fmt: skip
    mixing_warmup: float = Field(0.25, ge=0, le=1, description="share of the run over which mixing gains its weight")
    mask: float = Field(1.0, ge=0, description="weight of learning the mask, or of giving the mixed picture back")
    consistency: float = Field(1.0, ge=0, description="weight of agreeing with oneself on mixed pictures")
    top: float = Field(1.0, gt=0, le=1, description="share of a batch that top-k training ends with; 1: all are kept")
    top_decay: float = Field(0.99, gt=0, le=1, description="how many are kept of the former epoch's")
    top_by: Literal["score", "loss"] = Field("score", description="keep what the critic takes for real, or the lowest losses")
    augment: tuple[Change, ...] = Field((), description="how all that a critic sees is changed, gradients let through")


class Judged:
    """name: of the domain; critic: pixels -> logits, or logits of the whole and of every pixel; history: of its fakes."""

    def __init__(self, name: str, critic: nn.Module, history: History, recipe: JudgedRecipe) -> None:
        self.name, self.critic, self.history, self.recipe = name, critic, history, recipe

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {f"critic_{self.name}": self.critic, f"history_{self.name}": self.history}

    def outputs(self, pixels: Tensor) -> Outputs:
        made: Any = self.critic(pixels)
        return tuple(out.to(pixels.dtype) for out in (made if isinstance(made, tuple) else (made,)))

    def _changed(self, pixels: Tensor, who: str, streams: Streams) -> Tensor:
        changes = self.recipe.augment
        if not changes:
            return pixels
        draws = streams.uniform(f"augment.{self.name}.{who}", (len(pixels), DRAWS))
        return augmented(pixels, changes, draws)

    def _mask(self, pixels: Tensor, streams: Streams) -> Tensor:
        draws = streams.uniform(f"mix.{self.name}", (len(pixels), 4))
        sides = (pixels.shape[2], pixels.shape[3])
        return cut_mask(draws, sides) if self.recipe.mixing == "cutmix" else flat_mask(draws, sides)

    def _ramp(self, streams: Streams) -> float:
        return min(1.0, streams.progress / self.recipe.mixing_warmup) if self.recipe.mixing_warmup else 1.0

    def told(self, fake: Tensor, real: Tensor, epoch: int, streams: Streams) -> tuple[Tensor, Tensor]:
        """(what the maker of these fakes hears, (); how real each is taken to be, (B,)). real: of the same domain."""
        recipe = self.recipe
        outputs = self.outputs(self._changed(fake, "made", streams))
        each, judged = verdicts(outputs, [1.0] * len(outputs), recipe.kinds), score(outputs)
        kept = kept_of(len(fake), epoch, recipe.top, recipe.top_decay)
        if kept < len(fake):
            value = best(each, judged if recipe.top_by == "score" else -each, kept)
        else:
            value = each.mean()
        if recipe.mixing != "none" and recipe.mixing_form != "paper":
            apart = printed_inconsistency(self._mask(fake, streams), real, fake)
            value = value + self._ramp(streams) * recipe.consistency * apart
        return value, judged

    def own(self, real: Tensor, fresh: Tensor, streams: Streams) -> dict[str, Tensor]:
        """The critic's loss on real pictures and on fakes, of which some come from the history. Outputs are summed: with one
        of the whole and one of every pixel, 0.5 (real + real) + 0.5 (fake + fake)."""
        recipe = self.recipe
        fake = self.history.exchange(fresh, streams.uniform(f"history.{self.name}", (len(fresh), 2)))
        real, fake = self._changed(real, "real", streams), self._changed(fake, "fake", streams)
        on_real, on_fake = self.outputs(real), self.outputs(fake)
        parts = len(on_real)
        missed = verdicts(on_real, [1.0] * parts, recipe.kinds).mean()
        fooled = verdicts(on_fake, [0.0] * parts, recipe.kinds).mean()
        told = {"real": score(on_real).mean(), "fake": score(on_fake).mean()}
        loss = parts * (recipe.real_share * missed + (1 - recipe.real_share) * fooled)
        if recipe.mixing != "none" and recipe.mixing_form == "paper":
            mask = self._mask(real, streams)
            on_mixed = self.outputs(mixed(mask, real, fake))
            told["mask"] = verdicts(on_mixed, (0.0, mask), recipe.kinds).mean()
            told["inconsistency"] = inconsistency(on_mixed[1], mask, on_real[1], on_fake[1])
            further = recipe.mask * told["mask"] + recipe.consistency * told["inconsistency"]
            loss = loss + self._ramp(streams) * further
        elif recipe.mixing != "none" and recipe.mixing_form == "image":
            shown = mixed(self._mask(real, streams), real, fake)
            whole, image = (out.to(shown.dtype) for out in self.critic.given_back(shown))  # type: ignore[operator]
            told["image"] = absolute(image, shown).mean()
            taught = (verdicts((whole,), (0.0,), recipe.kinds).mean() + told["image"]) / 2  # halves, as of the mask
            loss = loss + self._ramp(streams) * recipe.mask * taught
        return {"loss": loss} | {key: value.detach() for key, value in told.items()}


def epoch_of(batch: dict[str, Any]) -> int:
    """The epoch that a batch belongs to: of its latest row."""
    return int(torch.as_tensor(batch["epochs"]).max())
