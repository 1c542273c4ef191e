"""Objective: translation one way only, told what to keep by patches (CUT, Park et al. 2020, arXiv 2007.15651).

A place of the translation, in the generator's own features, is to be found again among the places of the picture it came
from. There is no way back and one critic: half of CycleGAN's networks, for sets too small for two games at once. As in the
paper, pictures of the wanted domain go the same way, so that they are left alone.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..base.contracts import Batch, Frozen, Streams
from ..gans.losses import patch_contrast, places_of
from .judged import Judged, JudgedRecipe, epoch_of
from .translate import Translation


class PatchTranslateRecipe(Frozen):
    family: Literal["patches"] = "patches"
    judged: JudgedRecipe = JudgedRecipe(history=0)
    contrast: float = Field(1.0, ge=0, description="weight of finding the places of what is given")
    contrast_own: float = Field(
        1.0, ge=0, description="the same of wanted pictures, which are to be left alone; 0: not asked for"
    )
    places: int = Field(256, ge=2, description="places compared in each map")
    temperature: float = Field(0.07, gt=0)
    critic_rate: float | None = Field(None, gt=0, description="learning rate of the critic; None: the loop's")


class PatchTranslation(Translation):
    """forth: a generator that shows maps on the way (`features`); projections: maps, places -> unit vectors of the places."""

    def __init__(self, forth: nn.Module, projections: nn.Module, wanted: Judged, recipe: PatchTranslateRecipe) -> None:
        super().__init__(forth, (wanted,), recipe.critic_rate)
        self.projections, self.wanted, self.recipe = projections, wanted, recipe
        self.modules = {"forth": forth, "projections": projections, **wanted.modules}

    def moved(self) -> list[nn.Parameter]:
        return [*self.forth.parameters(), *self.projections.parameters()]

    def made(self, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        recipe, given, wanted = self.recipe, batch["given"], batch["wanted"]
        painted = self.forth(given).to(given.dtype)
        scratch["fakes"] = {"wanted": painted.detach()}
        told = {"verdict.wanted": self.wanted.told(painted, wanted, epoch_of(batch), streams)[0]}
        told["contrast"] = recipe.contrast * self._contrast(painted, given, "given", streams)
        if recipe.contrast_own:
            same = self.forth(wanted).to(wanted.dtype)
            told["contrast_own"] = recipe.contrast_own * self._contrast(same, wanted, "wanted", streams)
        return {"loss": torch.stack(list(told.values())).sum()} | {key: value.detach() for key, value in told.items()}

    def _contrast(self, made: Tensor, first: Tensor, name: str, streams: Streams) -> Tensor:
        """Mean over maps and pictures of how hard places are to find again."""
        look: Any = self.forth.features
        ours = look(made)
        with torch.no_grad():
            theirs = look(first)
        places = []
        for index, seen in enumerate(ours):
            count = seen.shape[2] * seen.shape[3]
            draws = streams.uniform(f"places.{name}.{index}", (len(seen), count))
            places.append(places_of(draws, self.recipe.places))
        found = self.projections(ours, places)
        with torch.no_grad():
            among = self.projections(theirs, places)
        each = [
            patch_contrast(a.to(made.dtype), b.to(made.dtype), self.recipe.temperature)
            for a, b in zip(found, among, strict=True)
        ]
        return torch.stack(each).mean()
