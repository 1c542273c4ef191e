"""From photograph to painting by a model that has learnt both: the photograph's noises, as one half of the model sees them,
painted by the other (CycleDiffusion, see sampling/cycle.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...base.contracts import Condition, Estimate, Levels, NoiseLevel, NoiseSource, Start
from ...base.errors import InputError
from ...base.images import to_pixels, to_tensor
from ...base.runtime import PictureStreams
from ...denoisers.double_unet import As
from ...denoisers.precondition import DiscreteDenoiser, Kind
from ...denoisers.simple_unet import Plain
from ...sampling.cycle import decode, encode
from ...sampling.noise import PictureNoise
from ...sampling.schedules import levels
from ...sampling.starts import image_start, started
from ...sampling.stride import Walk
from .knobs import DiffusionKnobs
from .recipe import Parts


def knows_both(parts: Parts) -> bool:
    """Whether a model of pixels has learnt paintings and photographs."""
    made = parts.recipe.denoiser
    return parts.autoencoder is None and isinstance(made, Plain) and (made.family == "double" or getattr(made, "kinds", 1) == 2)


def estimate_of(parts: Parts, kind: Kind) -> Estimate:
    """The model's estimates of pictures of one kind, in [-1, 1]."""
    plain = parts.denoiser
    denoiser = DiscreteDenoiser(As(plain.network, kind), plain.table, plain.prediction, plain.can, plain.precision)
    told = denoiser.prepare(Condition())

    def estimate(x: Tensor, level: NoiseLevel, step: int) -> Tensor:
        with torch.no_grad():
            return denoiser(x, level, told).clamp(-1, 1)

    return estimate


def check_crossing(parts: Parts, knobs: DiffusionKnobs, start: Start | None) -> None:
    """Raises InputError where a request cannot begin with a picture's own noises (knobs.begin "crossed")."""
    if not knows_both(parts):
        given = f"one of family {parts.recipe.denoiser.family!r}"
        remedy = "Others begin over a picture with begin = 'noise'."
        raise InputError("a model that has learnt paintings and photographs, for begin = 'crossed'", given, remedy)
    if start is None:
        raise InputError("a picture whose noises are painted, for begin = 'crossed'", "words alone", "Name one: --from FILE.")
    if start.masked:
        raise InputError("a whole picture for begin = 'crossed'", "a mask or a larger canvas", "Take begin = 'noise'.")
    if knobs.clip_guidance or knobs.threshold:
        raise InputError("no clip_guidance and no threshold beside begin = 'crossed'", "one of them")


def crossing(parts: Parts, clean: Tensor, start: Tensor, run: Levels, noise: NoiseSource) -> Walk:
    """Clean photographs (B, 3, H, W) as paintings: each step of the run once into noises and once out of them.

    start: the photographs with unit noise at the first level; noise: that of the steps.
    """
    noises = yield from encode(estimate_of(parts, "photograph"), clean, start, run, noise)
    return (yield from decode(estimate_of(parts, "painting"), noises, run, first=run.steps))


def crossed(
    parts: Parts,
    pictures: np.ndarray,  # uint8 (B, H, W, 3)
    seeds: Sequence[int],  # one of each picture
    steps: int = 100,
    strength: float = 0.6,  # 0 leaves a photograph as it is, 1 keeps of it what its noises say
) -> np.ndarray:
    """Photographs as paintings, uint8 (B, H, W, 3). No picture depends on its batch.

    Raises InputError for a model that has not learnt both, for latents, and for sides the network cannot halve.
    """
    if not knows_both(parts):
        raise InputError("a model that has learnt paintings and photographs", f"one of family {parts.recipe.denoiser.family!r}")
    height, width = pictures.shape[1:3]
    if height % parts.step or width % parts.step:
        raise InputError(f"sides divisible by {parts.step}", f"{width} x {height}", "Cut or scale the pictures first.")
    if len(seeds) != len(pictures):
        raise InputError("a seed for each picture", f"{len(seeds)} seeds for {len(pictures)} pictures")
    run = started(levels(parts.denoiser.table, steps), image_start(steps, strength, "diffusers").skip)
    if run is None:
        return pictures.copy()
    network = parts.network
    clean = to_tensor(pictures).to(next(network.parameters()).device, torch.float32)
    noise = PictureNoise(PictureStreams(list(seeds)), clean.shape[1:], clean.dtype, clean.device)
    alpha, sigma = run[0].for_sample(clean)
    start = alpha * clean + sigma * noise(run[0], run[0])
    for step in crossing(parts, clean, start, run, noise):
        clean = step.x
    return to_pixels(clean)
