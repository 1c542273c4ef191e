"""How a judge is trained: one stage, on a set's pictures and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...base.contracts import Batch, Objective, Source, StageJob, Trained
from ...base.files import fingerprint
from ...base.runtime import derive_seed
from ...checkpoints.native import fill
from ...data.loader import Kept, Loader
from ...perception.classifier import Classifier
from ...training.classify import Classify, value_weights
from ...training.parallel import World
from ...training.plan import PACE
from ...training.streams import StepStreams
from .examples import choose_examples
from .hard import hardened
from .recipe import ClassifierRecipe, ModelRecipe

STAGE = "classifier"


@dataclass
class ClassifierWorkshop:
    """One training run of a judge."""

    recipe: ClassifierRecipe
    source: Source
    folder: Path  # for caches
    world: World = World()
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        data = self.recipe.data
        self.examples = choose_examples(self.source, data, self.recipe.half)
        self.network: Classifier | None = None
        self._pictures = Kept(self.source, (data.size, data.size), data.channels)

    def shares(self) -> dict[str, float]:
        return {STAGE: 1.0}

    def jobs(self) -> Iterator[StageJob]:
        recipe = self.recipe
        seen = [recipe.data.model_dump(include={"size", "channels", "fit"}), self.source.fingerprint, self.examples.fingerprint]
        parts = {"network", "objective", *(["hard"] if recipe.hard is not None else [])}
        own = recipe.model_dump(include=parts), recipe.loop.model_dump(exclude=set(PACE))
        yield StageJob(STAGE, 1.0, recipe.loop, fingerprint([seen, own]), self._start, self._keep)

    def result(self) -> Trained:
        """What goes into the model folder, with the accuracy on the pictures held out."""
        assert self.network is not None
        recipe, examples = self.recipe, self.examples
        with torch.no_grad():
            streams = StepStreams(0, 0, 0, len(examples.held), self.device)
            found = Classify(self.network, recipe.objective).validate(self._held(), streams)
        trained = {
            "half": recipe.half, "only": recipe.data.only, "pictures": len(examples.kept), "held_out": len(examples.held),
            **({"hard": recipe.hard.model_dump()} if recipe.hard is not None else {}),
            **{name: round(float(value), 4) for name, value in found.items()},
        }  # fmt: skip
        model = ModelRecipe(
            network=recipe.network, size=recipe.data.size, channels=recipe.data.channels, resizer=recipe.data.resizer,
            attributes=examples.attributes, trained=trained,
        )  # fmt: skip
        return Trained((model.size, model.size), model.model_dump(mode="json"), {STAGE: self.network})

    def _build(self) -> Classifier:
        data, values = self.recipe.data, {name: len(shown) for name, shown in self.examples.attributes.items()}
        return Classifier(self.recipe.network, data.channels, data.size, values)

    def _loader(self, batch: int, seed: int, subset: np.ndarray, shard: tuple[int, int]) -> Loader:
        data = self.recipe.data
        return Loader(
            self.source, size=(data.size, data.size), channels=data.channels, batch=batch, seed=seed, fit=data.fit,
            subset=subset, shard=shard, kept=self._pictures,
        )  # fmt: skip

    def _with_values(self, batch: Batch) -> Batch:
        values = torch.from_numpy(self.examples.values[batch["indices"].numpy()])
        if self.recipe.hard is not None and "formless" in batch:
            values[batch["formless"]] = self.examples.attributes["class"].index(self.recipe.hard.of)
        return {"pixels": batch["pixels"].to(self.device), "values": values.to(self.device)}

    def _held(self) -> Batch:
        held = self.examples.held
        return self._with_values(self._loader(len(held), 0, held, (0, 1)).batch_at(0))

    def _start(self) -> tuple[Objective, Callable[[int], Iterator[Batch]], Batch]:
        recipe, examples, loop = self.recipe, self.examples, self.recipe.loop
        with torch.random.fork_rng(devices=[]):  # initial weights from a named seed
            torch.manual_seed(derive_seed(loop.seed, STAGE))
            network = self._build().to(self.device)
        rare = recipe.objective.rare
        weights = {name: value_weights(torch.from_numpy(examples.counts(name)), rare) for name in examples.attributes if rare}
        loader = self._loader(loop.batch, loop.seed, examples.kept, (self.world.rank, self.world.size))
        objective = Classify(network, recipe.objective, weights)
        showing = None if recipe.hard is None else examples.showing("class", recipe.hard.of)

        def batches(start: int) -> Iterator[Batch]:
            for step, batch in enumerate(loader.stream(start), start):
                if recipe.hard is not None and showing is not None:
                    batch = hardened(batch, recipe.hard, showing, loader, step, loop.seed)
                yield self._with_values(batch)

        return objective, batches, self._held()

    def _keep(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        network = self._build()
        fill(network, tensors[STAGE], STAGE)
        self.network = network.to(self.device).eval().requires_grad_(False)
