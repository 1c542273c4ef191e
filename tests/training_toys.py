"""Small real trainings for the tests of the training room: every objective on toy shapes of 8 x 8 pixels.

Also imported by the processes that those tests kill, and by `training_two.py`, which torchrun starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from giverny.autoencoders.critic import CriticRecipe
from giverny.autoencoders.kl import KLAutoencoder, KLRecipe
from giverny.base.contracts import Batch, Condition, Objective, Streams, Turn
from giverny.base.images import to_tensor
from giverny.base.runtime import derive_seed
from giverny.data.toy import ToyShapes
from giverny.denoisers.unet import UNetRecipe
from giverny.sampling.schedules import ScheduleRecipe
from giverny.text.clip import ClipImageRecipe, ClipRecipe, ClipTextRecipe
from giverny.text.tokenizer import Tokenizer
from giverny.training import state
from giverny.training.adversarial import Adversarial, AdversarialRecipe
from giverny.training.contrast import Contrast, ContrastRecipe
from giverny.training.denoise import DenoiseObjective, DenoiseRecipe
from giverny.training.loop import LoopRecipe, Trainer
from giverny.training.parallel import World
from giverny.training.reconstruct import Reconstruct, ReconstructRecipe
from giverny.training.sharpen import Sharpen, SharpenRecipe

KINDS = ("reconstruct", "contrast", "denoise", "adversarial", "sharpen")
BATCH, SIDE = 8, 8


@cache
def shapes() -> tuple[Tensor, tuple[str, ...]]:
    """64 pictures (64, 3, 8, 8) in [-1, 1], and what is said of each."""
    source = ToyShapes(count=64, size=SIDE)
    samples = [source.read(i) for i in range(len(source))]
    return torch.stack([to_tensor(s.pixels) for s in samples]), tuple(s.captions[0] for s in samples)


def batch_at(step: int, rank: int = 0, size: int = 1, batch: int = BATCH) -> Batch:
    """This process's rows of a global batch; the same pictures serve as pixels and as latents."""
    pixels, words = shapes()
    rows = [(step * batch + i) % len(pixels) for i in range(rank * batch // size, (rank + 1) * batch // size)]
    return {"pixels": pixels[rows], "latents": pixels[rows], "captions": [words[i] for i in rows]}


def batches(world: World = World(), batch: int = BATCH) -> Callable[[int], Iterator[Batch]]:
    def stream(start: int) -> Iterator[Batch]:
        while True:
            yield batch_at(start, world.rank, world.size, batch)
            start += 1

    return stream


def words_as_vectors(texts: Sequence[str]) -> Condition:
    """A frozen text encoder's place holder: the same four vectors for the same text."""
    drawn = [torch.randn(4, 8, generator=torch.Generator().manual_seed(derive_seed(t))) for t in texts]
    return Condition(vectors=torch.stack(drawn))


def objective(kind: str, dropout: float = 0.0, seed: int = 0, world: World = World()) -> Objective:
    """One of KINDS at toy size, its weights from a seed."""
    torch.manual_seed(seed)
    if kind == "reconstruct":
        return Reconstruct(autoencoder(dropout), ReconstructRecipe(edges=0.5))
    if kind == "sharpen":
        return Sharpen(autoencoder(dropout), CriticRecipe(channels=(8, 16)).build(), SharpenRecipe())
    if kind == "contrast":
        tokenizer = Tokenizer.train(sorted(set(shapes()[1])), 600, 12)
        text = ClipTextRecipe(width=16, layers=1, heads=2, inner=32, length=12, vocabulary=tokenizer.vocabulary)
        image = ClipImageRecipe(width=16, layers=1, heads=2, inner=32, size=SIDE, patch=4)
        clip = ClipRecipe(text=text, image=image, shared_width=16).build()
        clip.visual_projection = nn.Sequential(nn.Dropout(dropout), clip.visual_projection)
        return Contrast(clip, tokenizer, tokenizer.end, ContrastRecipe(shift=1), world.gather)
    if kind == "denoise":
        unet = UNetRecipe(
            in_channels=3, out_channels=3, channels=(8, 16), blocks=1, attention=(False, True), depth=(1, 1), heads=(2, 2),
            context_width=8, groups=4, dropout=dropout,
        )  # fmt: skip
        recipe = DenoiseRecipe(prediction="v", min_snr_gamma=5, caption_dropout=0.3)
        return DenoiseObjective(unet.build(), ScheduleRecipe(kind="cosine").table(), recipe, words_as_vectors)
    assert kind == "adversarial"
    return gan(dropout)


def autoencoder(dropout: float = 0.0) -> KLAutoencoder:
    sizes = KLRecipe(channels=(8, 16), blocks=1, groups=4, latent_channels=2, middle_attention=False, dropout=dropout)
    return sizes.build()


def gan(dropout: float = 0.0, **changes: Any) -> Adversarial:
    """Two small perceptrons; the generator has running statistics, the critic dropout."""
    values = 3 * SIDE * SIDE
    generator = nn.Sequential(
        nn.Linear(16, 64),
        nn.BatchNorm1d(64),
        nn.LeakyReLU(0.2),
        nn.Linear(64, values),
        nn.Tanh(),
        nn.Unflatten(1, (3, SIDE, SIDE)),
    )
    critic = nn.Sequential(nn.Flatten(), nn.Linear(values, 64), nn.LeakyReLU(0.2), nn.Dropout(dropout), nn.Linear(64, 1))
    recipe = AdversarialRecipe(**({"latent": 16, "generator_every": 2, "r1": 0.1, "critic_rate": 2e-3} | changes))
    return Adversarial(generator, critic, recipe)


def loop(**changes: Any) -> LoopRecipe:
    usual = {"steps": 10, "batch": BATCH, "warmup": 3, "precision": "float32", "save_every": 5, "log_every": 1}
    return LoopRecipe.model_validate(usual | changes)


def trainer(kind: str, folder: Path, resume: bool = False, dropout: float = 0.0, **changes: Any) -> Trainer:
    """A training of one of KINDS. Where there is a state, it must overwrite all of other initial weights."""
    made = objective(kind, dropout, seed=7 if resume and any((folder / "state").glob("state-*")) else 0)
    return Trainer(made, batches(), loop(**changes), folder, batch_at(100), resume=resume, identity=kind)


def tensors(of: Trainer) -> dict[str, Tensor]:
    """Copies of everything a run's state holds: weights, averages, moments."""
    found = state.collect(of.objective.modules, of.averages, of.optimisers)
    return {k: v.detach().clone() for k, v in found.items()}


def finish(of: Trainer) -> dict[str, Tensor]:
    for _ in of.run():
        pass
    return tensors(of)


class Slope:
    """The least objective: a line through the pictures' means. `watch` is called with each step that is computed."""

    averaged: Sequence[str] = ("line",)

    def __init__(self, watch: Callable[[int], None] = lambda step: None, see: Callable[[], None] = lambda: None) -> None:
        torch.manual_seed(0)
        self.line, self.watch, self.see = nn.Linear(3, 2), watch, see
        self.line.idle = nn.Parameter(torch.ones(2, 2))  # no loss depends on it: no decay may shrink it
        self.modules = {"line": self.line}

    def turns(self) -> Sequence[Turn]:
        return [Turn("line", list(self.line.parameters()))]

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        self.watch(streams.step)  # type: ignore[attr-defined]
        x = batch["pixels"].mean((2, 3))
        noise = streams.normal("noise", (len(x), 2))
        return {"loss": (self.line(x) - x[:, :2].flip(1) - 0.1 * noise).square().mean()}

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        self.see()
        x = batch["pixels"].mean((2, 3))
        return {"error": (self.line(x) - x[:, :2].flip(1)).square().mean()}

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        return None


# -- what a killed process runs -------------------------------------------------------------------------------------------


def die(place: str, count: int, folder: str) -> None:
    """Train in `folder` and kill this process by SIGKILL at the count-th time it comes to a place."""
    import os
    import signal

    from giverny.training import log

    torch.set_num_threads(1)
    left = [count]

    def now() -> bool:
        left[0] -= 1
        return left[0] == 0

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "write":  # a state is half written
        whole = state.save_file

        def half(tensors: Any, path: str, words: Any) -> None:
            whole(tensors, path, words)
            if now():
                with Path(path).open("r+b") as file:
                    file.truncate(Path(path).stat().st_size // 2)
                kill()

        state.save_file = half
    elif place == "rename":  # a state is written and not yet in its place
        replace = Path.replace

        def never(self: Path, target: Any) -> Path:
            if "state-" in Path(target).name and now():
                kill()
            return replace(self, target)

        Path.replace = never  # type: ignore[method-assign]
    elif place == "log":  # in the middle of a line
        write = log.RunLog.write

        def cut(self: Any, step: int, values: dict[str, float], **extra: Any) -> None:
            if now():
                line = json.dumps({"step": step, **values})
                self._file.write(line[: len(line) // 2].encode())
                self._file.flush()
                kill()
            write(self, step, values, **extra)

        log.RunLog.write = cut  # type: ignore[method-assign]
    else:  # inside an optimiser's step: some weights are new, others old
        step = torch.optim.AdamW.step

        def torn(self: Any, closure: Any = None) -> Any:
            if now():
                self.param_groups = self.param_groups[:1]
                step(self)
                kill()
            return step(self, closure)

        torch.optim.AdamW.step = torn  # type: ignore[assignment,method-assign]
    finish(trainer("adversarial", Path(folder), dropout=0.2, steps=12, save_every=3))
