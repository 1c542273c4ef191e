"""Classifiers as a family of judges: how their recipes read, how they are trained, how their model folders are opened."""

from __future__ import annotations

from pathlib import Path

import torch

from ...base.contracts import Family, Knobs, Source
from ...base.recipe import check
from ...base.tensors import unfilled
from ...checkpoints.native import CARD, Card, fill, read_weights
from ...perception.classifier import StridedRecipe
from ...training.classify import ClassifyRecipe
from ...training.loop import LoopRecipe
from ...training.parallel import World
from .judge import ClassifierJudge
from .recipe import ClassifierRecipe, DataRecipe, ModelRecipe
from .workshop import STAGE, ClassifierWorkshop


def open_folder(folder: Path, card: Card, device: torch.device) -> ClassifierJudge:
    """A judge from a model folder."""
    recipe = check(ModelRecipe, card.recipe, f"{folder / CARD}: recipe")
    with unfilled():
        network = recipe.build()
    fill(network, read_weights(folder, card).get(STAGE, {}), STAGE)
    return ClassifierJudge(network, recipe, card.name, card.fingerprint, card.data, device)


def workshop(recipe: ClassifierRecipe, source: Source, folder: Path, world: World, device: torch.device) -> ClassifierWorkshop:
    return ClassifierWorkshop(recipe, source, folder, world, device)


def tiny() -> ClassifierRecipe:
    return ClassifierRecipe(
        name="tiny-judge",
        title="The smallest judge that has every part",
        licence="Apache-2.0",
        data=DataRecipe(source="toy", size=28, fit="stretch", validation=32),
        network=StridedRecipe(channels=(8, 16), kernels=(5, 3), strides=(4, 2), dense=16),
        objective=ClassifyRecipe(shift=1, mirror=True, smoothing=0.1),
        loop=LoopRecipe(steps=10, batch=8, warmup=2, precision="float32", save_every=5, log_every=1),
    )


JUDGE = Family("classifier", ClassifierRecipe, Knobs, tiny, workshop, open_folder)
