"""How a translator is trained: one stage, or a second one on what the first has made of the given pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...base.contracts import Batch, Objective, Source, StageJob, Trained
from ...base.errors import InputError
from ...base.files import fingerprint, fingerprint_tensors
from ...base.images import beside
from ...base.runtime import derive_seed, seeded
from ...base.streams import stream
from ...checkpoints.native import fill
from ...data.crops import held_out, thinned
from ...data.loader import Kept, Loader
from ...data.unpaired import Unpaired, UnpairedLoader
from ...training.loop import LoopRecipe
from ...training.parallel import World
from ...training.plan import PACE
from .recipe import ModelRecipe, TranslatorRecipe


@dataclass
class TranslatorWorkshop:
    """One training run of a translator."""

    recipe: TranslatorRecipe
    source: Source
    folder: Path  # for caches, of which there are none
    world: World = World()
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if not isinstance(self.source, Unpaired):
            raise InputError("two sets of pictures, of what is wanted and of what is given", self.source.name)
        data, sets = self.recipe.data, self.source
        seeds = [derive_seed(source.fingerprint) for source in (sets.given, sets.wanted)]
        self.held_given, given = held_out(sets.given, data.validation, seeds[0], data.group)
        self.held_wanted, wanted = held_out(sets.wanted, data.validation, seeds[1])
        self.given = thinned(sets.given, given, data.share, seeds[0], data.group)
        self.wanted = thinned(sets.wanted, wanted, data.share, seeds[1])
        self._kept = Kept(sets.given, data.larger, 3), Kept(sets.wanted, data.larger, 3)  # by all stages
        self.made: list[nn.Module] = []  # the finished stages' generators

    def shares(self) -> dict[str, float]:
        again = self.recipe.again
        return {"translate": 1.0} | ({} if again is None else {"again": again.share})

    def jobs(self) -> Iterator[StageJob]:
        """The second is asked for only after the first has been kept."""
        recipe = self.recipe
        usual = {"source", "given"} | ({"share"} if recipe.data.share == 1 else set())
        sets: list[Any] = [recipe.data.model_dump(exclude=usual), self.source.fingerprint]
        parts = [part.model_dump() for part in (recipe.generator, recipe.critic, recipe.objective)]
        loops = {"translate": recipe.loop}
        if recipe.again is not None:
            loops["again"] = recipe.again.loop or recipe.loop
        for name, loop in loops.items():
            before = [fingerprint_tensors(network.state_dict()) for network in self.made]
            identity = fingerprint([sets, parts, loop.model_dump(exclude=set(PACE)), before])
            start = lambda name=name, loop=loop: self._start(name, loop)  # noqa: E731
            yield StageJob(name, self.shares()[name], loop, identity, start, self._keep)

    def result(self) -> Trained:
        recipe = ModelRecipe(generator=self.recipe.generator, stages=len(self.made))
        networks = dict(zip(recipe.names(), self.made, strict=True))
        return Trained(
            self.recipe.data.size, recipe.model_dump(mode="json"), networks, {}, self.recipe.knobs, self.recipe.prompts
        )

    def _start(self, name: str, loop: LoopRecipe) -> tuple[Objective, Any, Batch]:
        assert isinstance(self.source, Unpaired)
        data = self.recipe.data
        with seeded(loop.seed, "translator", name):
            objective = self.recipe.build()
        for module in objective.modules.values():
            module.to(self.device)
        loader = UnpairedLoader(
            self.source, size=data.learnt, batch=loop.batch, seed=loop.seed, fit=data.fit, flip=data.flip, larger=data.larger,
            shard=(self.world.rank, self.world.size), given=self.given, wanted=self.wanted, kept=self._kept,
        )  # fmt: skip

        def batches(start: int) -> Iterator[Batch]:
            for step, batch in enumerate(loader.stream(start), start):
                yield batch | {"given": self._so_far(batch["given"], derive_seed(loop.seed, self.world.rank, step))}

        fixed = {"given": self._so_far(self._fixed(self.source.given, self.held_given), derive_seed(loop.seed, "held out"))}
        return objective, batches, fixed | {"wanted": self._fixed(self.source.wanted, self.held_wanted)}

    def _fixed(self, source: Source, rows: Any) -> Tensor:
        """Held-out pictures, always in the same order."""
        data = self.recipe.data
        pixels: Tensor = Loader(
            source, size=data.size, channels=3, batch=len(rows), seed=0, fit=data.fit, subset=rows, workers=0
        ).batch_at(0)["pixels"]
        return pixels

    @torch.no_grad()
    def _so_far(self, pixels: Tensor, seed: int) -> Tensor:
        """Given pictures as the finished stages translate them, one by one. seed: of the noise that they are shown."""
        if not self.made:
            return pixels
        made, grain, drawn = [], self.recipe.generator.grain, stream(seed)
        for one in pixels:
            picture = one[None].to(self.device)
            for network in self.made:
                noise = drawn.normal((1, grain, *picture.shape[2:])) if grain else None
                picture = network(beside(picture, noise))
            made.append(picture)
        return torch.cat(made)

    def _keep(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        network = self.recipe.generator.build()
        fill(network, tensors["forth"], "translator")
        self.made.append(network.to(self.device).eval().requires_grad_(False))
