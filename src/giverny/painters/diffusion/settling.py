"""What of the settings of a picture a model cannot follow, said before anything is painted."""

from __future__ import annotations

from ...base.errors import InputError
from .knobs import DiffusionKnobs
from .recipe import Parts
from .second_pass import final_size
from .sizes import check_sizes

MOST = 4096  # pixels along a side


def check_settings(parts: Parts, knobs: DiffusionKnobs, size: tuple[int, int]) -> None:
    """size: width and height of the first pass. Raises InputError."""
    check_sizes(parts.recipe, knobs)
    if knobs.guidance_from > knobs.guidance_to:
        raise InputError("guidance_from <= guidance_to", f"{knobs.guidance_from} > {knobs.guidance_to}")
    if knobs.threshold and parts.recipe.autoencoder is not None:
        remedy = "Of latents it would cut arbitrary parts: use guidance_rescale, or less guidance."
        raise InputError("a model of pixels, which have a range, for `threshold`", "one of latents, which have none", remedy)
    if knobs.clamp != "none" and (knobs.threshold or parts.recipe.autoencoder is not None):
        raise InputError("a model of pixels, and no `threshold`, for `clamp`", "one of latents, or both")
    width, height = size
    step = parts.step
    if min(size) < step or width % step or height % step or max(size) > MOST:
        near = tuple(max(step, round(min(side, MOST) / step) * step) for side in size)
        wanted = f"sides from {step} to {MOST} divisible by {step}"
        raise InputError(wanted, f"{width} x {height}", f"Nearest: {near[0]} x {near[1]}.")
    if max(final_size(size, knobs.upscale, step)) > MOST:
        given = f"{width} x {height} enlarged {knobs.upscale:g} times"
        raise InputError(f"sides of at most {MOST} in the end", given, f"upscale can be {MOST / max(size):.4g} here")
