"""What Stable Diffusion XL is told in ways of its own: sizes beside the words, and silence where nothing is to be left.

Podell et al. 2023 (arXiv 2307.01952), section 2.2: in training, the network was told how large a picture had been before it was
scaled, where it was cut, and how large it came to be. When painting, these numbers say what a picture should look like: fine,
and whole. Six of them, (height, width) and (top, left) as they were, (height, width) as it is, each as the sinusoid that times
have, follow the pooled vector. Facts: diffusers, pipeline_stable_diffusion_xl.py; AUTOMATIC1111 stable-diffusion-webui,
modules/sd_models_xl.py, which as well has zeros in place of an empty negative prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...base.contracts import Condition, Denoise, NoiseLevel, Prepared, Probe, Request
from ...base.errors import InputError
from ...base.infotext import read_size
from ...layers.blocks import sinusoid
from .knobs import DiffusionKnobs
from .recipe import ModelRecipe

SIZES = 6  # numbers that are told


def size_width(recipe: ModelRecipe) -> int:
    """How wide one number's sinusoid is; 0 where the network has no room for them."""
    width, rest = divmod(recipe.denoiser.pooled_width - recipe.pooled_width, SIZES)
    return 0 if rest else max(0, width)


def check_sizes(recipe: ModelRecipe, knobs: DiffusionKnobs) -> None:
    """Raises InputError for knobs of sizes in a model that is not told of any."""
    if recipe.second is None and (knobs.original_size or knobs.crop):
        raise InputError(
            "Stable Diffusion XL for original_size and crop", "a model that is not told of sizes", "Leave them out."
        )


def told_sizes(recipe: ModelRecipe, knobs: DiffusionKnobs, size: tuple[int, int]) -> Tensor | None:
    """What follows the pooled vector of a picture of this size, (6 * width,); None for models that are told nothing."""
    if recipe.second is None:
        return None
    before, cut = read_size(knobs.original_size) or size, read_size(knobs.crop) or (0, 0)
    numbers = torch.tensor([*reversed(before), *reversed(cut), *reversed(size)], dtype=torch.float32)
    return sinusoid(numbers, size_width(recipe)).flatten()


class Sized:
    """A denoiser that is told sizes beside the words, the same for every picture and branch of guidance. sizes: (S,)."""

    def __init__(self, denoise: Denoise, sizes: Tensor) -> None:
        self.denoise, self.sizes, self.can = denoise, sizes, denoise.can

    def prepare(self, condition: Condition) -> Prepared:
        words = condition.pooled
        assert words is not None
        sizes = self.sizes.to(words).expand(len(words), -1)
        return self.denoise.prepare(replace(condition, pooled=torch.cat([words, sizes], dim=1)))

    def __call__(self, x: Tensor, level: NoiseLevel, prepared: Prepared, probe: Probe | None = None) -> Tensor:
        return self.denoise(x, level, prepared, probe)


def silenced(recipe: ModelRecipe, knobs: DiffusionKnobs, requests: Sequence[Request], negative: Condition) -> Condition:
    """The condition of negative prompts, zeros for those of Stable Diffusion XL that say nothing, unless they are encoded."""
    auto = "encoded" if knobs.dialect == "comfyui" else "zeros"
    how = auto if knobs.empty_negative == "auto" else knobs.empty_negative
    if recipe.second is None or how == "encoded" or all(r.negative for r in requests):
        return negative
    assert negative.vectors is not None and negative.pooled is not None
    says = torch.tensor([bool(r.negative) for r in requests]).to(negative.pooled)
    vectors, pooled = negative.vectors * says[:, None, None].to(negative.vectors), negative.pooled * says[:, None]
    return replace(negative, vectors=vectors, pooled=pooled)
