"""A generator in one file: a GAN told which class to paint (Mirza & Osindero 2014), on the house's loop and contracts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from giverny.base.contracts import (
    Done,
    Event,
    Failed,
    Family,
    Frozen,
    Knobs,
    Picture,
    Progress,
    Provenance,
    Request,
    StageJob,
    Started,
    Trained,
    Turn,
)
from giverny.base.errors import InputError
from giverny.base.files import fingerprint
from giverny.base.images import to_pixels
from giverny.base.recipe import check
from giverny.base.runtime import PictureStreams, derive_seed, versions
from giverny.checkpoints.native import Card, fill, read_weights
from giverny.data.loader import Loader
from giverny.training.loop import LoopRecipe


class Data(Frozen):
    source: str = "toy"


class Recipe(Frozen):
    family: Literal["classgan"] = "classgan"
    name: str = "tiny-classgan"
    title: str = "A GAN in one file"
    licence: str = "Apache-2.0"
    budget: float | None = None
    data: Data = Data()
    side: int = 16
    latent: int = 16
    classes: tuple[str, ...] = ("circle", "square", "triangle", "ring")
    loop: LoopRecipe = LoopRecipe(steps=10, batch=8, warmup=2, precision="float32", save_every=5, log_every=1, betas=(0.0, 0.9))


class ClassKnobs(Knobs):
    truncation: float = Field(1.0, gt=0, le=2, description="size of the noise: less is more typical and less varied")


def networks(recipe: Recipe) -> dict[str, nn.Module]:
    wide, pixels = 64, 3 * recipe.side**2
    inputs = recipe.latent + len(recipe.classes)
    shape = (3, recipe.side, recipe.side)
    generator = nn.Sequential(nn.Linear(inputs, wide), nn.ReLU(), nn.Linear(wide, pixels), nn.Tanh(), nn.Unflatten(1, shape))
    critic = nn.Sequential(nn.Linear(pixels + len(recipe.classes), wide), nn.LeakyReLU(0.2), nn.Linear(wide, 1))
    return {"generator": generator, "critic": critic}


class Objective:
    """Hinge loss in two turns; the fakes of an iteration are made once."""

    averaged: Sequence[str] = ("generator",)

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.modules = recipe, networks(recipe)

    def turns(self) -> Sequence[Turn]:
        return [Turn(name, list(self.modules[name].parameters())) for name in ("critic", "generator")]

    def loss(self, turn: str, batch: Any, scratch: dict[str, Any], streams: Any) -> dict[str, Tensor]:
        told = F.one_hot(batch["labels"], len(self.recipe.classes)).float()
        if "fake" not in scratch:
            scratch["fake"] = self.fake(told, streams)
        judge = lambda pixels: self.modules["critic"](torch.cat([pixels.flatten(1), told], 1))  # noqa: E731
        if turn == "generator":
            return {"loss": -judge(scratch["fake"]).mean()}
        real, fake = judge(batch["pixels"]), judge(scratch["fake"].detach())
        return {"loss": F.relu(1 - real).mean() + F.relu(1 + fake).mean()}

    def fake(self, told: Tensor, streams: Any) -> Tensor:
        return self.modules["generator"](torch.cat([streams.normal("latent", (len(told), self.recipe.latent)), told], 1))

    def validate(self, batch: Any, streams: Any) -> dict[str, Tensor]:
        told = F.one_hot(batch["labels"], len(self.recipe.classes)).float()
        return {"gap": (self.fake(told, streams).mean(0) - batch["pixels"].mean(0)).abs().mean()}

    def preview(self, batch: Any, streams: Any) -> Tensor | None:
        return self.fake(F.one_hot(batch["labels"], len(self.recipe.classes)).float(), streams)


class Workshop:
    def __init__(self, recipe: Recipe, source: Any, folder: Path, world: Any, device: torch.device) -> None:
        self.recipe, self.source, self.world = recipe, source, world

    def shares(self) -> dict[str, float]:
        return {"gan": 1.0}

    def jobs(self) -> Iterator[StageJob]:
        identity = fingerprint([self.recipe, self.source.fingerprint])
        yield StageJob("gan", 1.0, self.recipe.loop, identity, self.start, self.keep)

    def start(self) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed("classgan", self.recipe.loop.seed))
            objective = Objective(self.recipe)
        loop, size = self.recipe.loop, (self.recipe.side,) * 2
        shard = (self.world.rank, self.world.size)
        loader = Loader(self.source, size=size, channels=3, batch=loop.batch, seed=loop.seed, fit="stretch", shard=shard)
        return objective, loader.stream, Loader(self.source, size=size, channels=3, batch=8, seed=1).batch_at(0)

    def keep(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        self.generator = networks(self.recipe)["generator"]
        self.generator.load_state_dict(tensors["generator"])

    def result(self) -> Trained:
        return Trained((self.recipe.side,) * 2, self.recipe.model_dump(mode="json"), {"generator": self.generator})


class ClassPainter:
    family, knobs = "classgan", ClassKnobs

    def __init__(self, folder: Path, card: Card, device: torch.device, precision: torch.dtype, backend: str = "auto") -> None:
        self.recipe = check(Recipe, card.recipe, "card")
        self.generator = fill(networks(self.recipe)["generator"], read_weights(folder, card)["generator"], "generator").eval()
        self.name, self.fingerprint, self.size = card.name, card.fingerprint, card.size

    def paint(self, requests: Sequence[Request], previews: bool = False, trace: bool = False) -> Iterator[Event]:
        for request in requests:
            began = time.perf_counter()
            try:
                knobs = check(ClassKnobs, request.knobs, "knobs")
                if request.size not in (None, self.size):
                    raise InputError(f"{self.size[0]} x {self.size[1]} pixels, all this model paints", str(request.size))
            except InputError as error:
                yield Failed(request.id, str(error))
                continue
            yield Started(request.id, 1)
            told = torch.tensor([[float(c in request.prompt) for c in self.recipe.classes]])
            with torch.inference_mode():
                noise = PictureStreams([request.seed]).normal((self.recipe.latent,)) * knobs.truncation
                pixels = np.stack(to_pixels(self.generator(torch.cat([noise, told], 1))))[0]
            yield Progress(request.id, 1, 1, pixels if previews else None)
            told_of = Provenance(
                request=request, knobs=knobs.model_dump(), painter=self.family, model=self.name, device="cpu",
                fingerprint=self.fingerprint, versions=versions(), precision="float32", backend="plain",
                threads=torch.get_num_threads(), batch=1, seconds=time.perf_counter() - began,
            )  # fmt: skip
            yield Done(request.id, Picture(pixels, told_of, (pixels,) if trace else ()))


PAINTER = Family("classgan", Recipe, ClassKnobs, Recipe, Workshop, ClassPainter)
