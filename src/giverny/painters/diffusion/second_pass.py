"""The second pass: a finished picture is enlarged, noised part of the way, and painted on, which gives it detail that
enlarging cannot.

Noising a picture and denoising it again is SDEdit (Meng et al. 2021, arXiv 2108.01073); for large pictures from small models
it is known as "hires fix". How many steps a strength means is diffusers' image-to-image convention.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...base.contracts import Codec, Levels
from ...base.images import resize_tensor


def final_size(size: tuple[int, int], upscale: float, step: int) -> tuple[int, int]:
    """Width and height after enlarging, each the multiple of `step` nearest to size * upscale."""
    width, height = (max(step, round(side * upscale / step) * step) for side in size)
    return width, height


def last_steps(levels: Levels, strength: float) -> Levels | None:
    """The last int(strength * steps) steps of a run; None where that is none."""
    count = int(strength * levels.steps)
    return Levels(levels.alpha[-count - 1 :], levels.sigma[-count - 1 :]) if count else None


def enlarged(
    clean: Tensor, size: tuple[int, int], codec: Codec, how: Literal["pixels", "latents"], precision: torch.dtype
) -> Tensor:
    """Clean samples (B, z, h, w) of a picture of `size` (width, height), in the dtype of `clean`.

    "pixels": decoded, enlarged bicubically, clamped to [-1, 1], encoded. "latents": the samples themselves, bilinearly.
    """
    with torch.inference_mode():
        if how == "latents":
            larger = resize_tensor(clean, (size[0] // codec.factor, size[1] // codec.factor), "bilinear")
        else:
            fine = torch.promote_types(precision, torch.float32)
            pixels = codec.decode(clean.to(precision)).to(fine).clamp(-1, 1)
            larger = codec.encode(resize_tensor(pixels, size).clamp(-1, 1).to(precision)).to(clean.dtype)
    return larger.clone()  # an ordinary tensor
