"""Translation as a family: how its recipes read, how it is trained, how its model folders are opened."""

from __future__ import annotations

from pathlib import Path

import torch

from ...base.contracts import Family, Source
from ...base.errors import InputError
from ...base.recipe import check
from ...base.tensors import unfilled
from ...checkpoints.native import CARD, Card, fill, read_weights
from ...gans.critics import PatchRecipe
from ...gans.generators import ResnetRecipe
from ...training.judged import JudgedRecipe
from ...training.loop import LoopRecipe
from ...training.parallel import World
from ...training.translate import TranslateRecipe
from .knobs import TranslatorKnobs
from .painter import TranslatorPainter
from .recipe import AgainRecipe, DataRecipe, ModelRecipe, TranslatorRecipe
from .workshop import TranslatorWorkshop


def open_folder(
    folder: Path, card: Card, device: torch.device, precision: torch.dtype, backend: str = "auto"
) -> TranslatorPainter:
    """A painter from a model folder. backend: "auto" or "plain", which are one here."""
    if backend not in ("auto", "plain"):
        raise InputError("the backend 'plain' of a model that translates", repr(backend))
    recipe = check(ModelRecipe, card.recipe, f"{folder / CARD}: recipe")
    weights = read_weights(folder, card)
    with unfilled():
        made = recipe.build()
    networks = {name: fill(network, weights.get(name, {}), name) for name, network in made.items()}
    return TranslatorPainter(recipe, networks, card.name, card.fingerprint, card.size, card.knobs, device, precision)


def workshop(recipe: TranslatorRecipe, source: Source, folder: Path, world: World, device: torch.device) -> TranslatorWorkshop:
    return TranslatorWorkshop(recipe, source, folder, world, device)


def tiny() -> TranslatorRecipe:
    """Both stages at toy size: 16 x 16 pictures of one shape each."""
    loop = LoopRecipe(
        steps=10, batch=2, learning_rate=2e-4, warmup=0, decay="linear", decay_from=0.5, betas=(0.5, 0.999), weight_decay=0,
        clip=None, average=0.9, precision="float32", save_every=5, log_every=1,
    )  # fmt: skip
    return TranslatorRecipe(
        name="tiny-translator",
        title="The smallest translator that has every part",
        licence="Apache-2.0",
        data=DataRecipe(source="toy", given="toy", size=(16, 16), jitter=2, validation=8),
        generator=ResnetRecipe(channels=8, blocks=1, grain=1),
        critic=PatchRecipe(channels=8, layers=2),
        objective=TranslateRecipe(judged=JudgedRecipe(history=4)),
        loop=loop,
        again=AgainRecipe(share=0.5),
    )


PAINTER = Family("translator", TranslatorRecipe, TranslatorKnobs, tiny, workshop, open_folder, "picture to picture")
