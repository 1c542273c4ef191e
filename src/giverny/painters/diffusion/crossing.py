"""From photograph to painting by a model that has learnt both: the photograph's noises, as one half of the model sees them,
painted by the other (CycleDiffusion, see sampling/cycle.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...base.contracts import Condition, Estimate, NoiseLevel
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
from .recipe import Parts


def knows_both(parts: Parts) -> bool:
    """Whether a model has learnt paintings and photographs."""
    made = parts.recipe.denoiser
    return isinstance(made, Plain) and (made.family == "double" or getattr(made, "kinds", 1) == 2)


def estimate_of(parts: Parts, kind: Kind) -> Estimate:
    """The model's estimates of pictures of one kind, in [-1, 1]."""
    plain = parts.denoiser
    denoiser = DiscreteDenoiser(As(plain.network, kind), plain.table, plain.prediction, plain.can, plain.precision)
    told = denoiser.prepare(Condition())

    def estimate(x: Tensor, level: NoiseLevel, step: int) -> Tensor:
        with torch.no_grad():
            return denoiser(x, level, told).clamp(-1, 1)

    return estimate


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
    if not knows_both(parts) or parts.autoencoder is not None:
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
    noises = encode(estimate_of(parts, "photograph"), clean, run, noise, noise(run[0], run[0]))
    for step in decode(estimate_of(parts, "painting"), noises, run):
        clean = step.x
    return to_pixels(clean)
