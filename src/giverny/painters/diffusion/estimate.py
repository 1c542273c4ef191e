"""The estimate a sampler asks for, out of all knobs of guidance: branches, rescaling, CLIP, thresholding, in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ...base.contracts import Denoise, Estimate, NoiseLevel, Request
from ...denoisers.precondition import DiscreteDenoiser, Moment
from ...steering.clip_guidance import Guide, clip_guided
from ...steering.contrast import Origin, thresholded
from ...steering.guidance import guided
from .beginning import Beside
from .guides import cuts_of, words_of
from .knobs import DiffusionKnobs
from .recipe import Parts
from .sizes import Sized
from .told import Plans


class Maker(Protocol):
    """Makes the estimate of a run."""

    def __call__(self, total: int, before: int | None = None) -> Estimate: ...


def estimates(
    parts: Parts,
    denoise: Denoise,
    knobs: DiffusionKnobs,
    plans: Plans,
    requests: Sequence[Request],
    guide: Guide | None = None,
    beside: Tensor | None = None,
    sizes: Sequence[Tensor | None] = (None, None),
) -> Maker:
    """A maker of estimates for these pictures: called with the steps of a run, and those of the run before over the same
    pictures where there is one.

    plans: what the denoiser is told, see `told`; denoise: what is asked where no gradient is wanted; guide: for
    knobs.clip_guidance above 0; beside: (B, K, h, w), channels that the network sees beside the sample; sizes: (S,) each, told
    beside the words in a first run and in a second one, see `sizes.py`.
    """
    interval = knobs.guidance_from, knobs.guidance_to
    steer: Callable[[Estimate], Estimate] | None = None
    if knobs.clip_guidance and guide is not None:
        wanted, weights = words_of(guide, requests)
        cuts = cuts_of(requests, knobs.clip_guidance_cutouts) if knobs.clip_guidance_cutouts else None
        plain = parts.denoiser
        # One of its own: what the others have kept in inference mode cannot be differentiated.
        denoise = DiscreteDenoiser(plain.network, plain.table, plain.prediction, plain.can, plain.precision)
        decode = partial(_decoded, parts)
        strength = knobs.clip_guidance * weights
        steer = partial(clip_guided, decode=decode, guide=guide, wanted=wanted, strength=strength, interval=interval, cuts=cuts)
    if beside is not None:
        denoise = Beside(denoise, beside)

    def made(total: int, before: int | None = None) -> Estimate:
        told = sizes[before is not None]
        estimate = guided(
            denoise if told is None else Sized(denoise, told),
            plans(total, before),
            total,
            grad=steer is not None,
            every=knobs.guidance_every,
            rescale=knobs.guidance_rescale,
            origin=origin_of(parts.denoiser),
        )
        if steer is not None:
            estimate = steer(estimate)
        if knobs.clamp == "estimate":
            return lambda x, level, step: estimate(x, level, step).clamp(-1, 1)
        if not knobs.threshold:
            return estimate
        return lambda x, level, step: thresholded(estimate(x, level, step), knobs.threshold)

    return made


def origin_of(denoiser: DiscreteDenoiser) -> Origin:
    """Where a denoiser's estimates begin, see `steering.contrast.Origin`: without what its network says."""

    def origin(x: Tensor, level: NoiseLevel) -> Tensor:
        if denoiser.prediction == "sample":
            return torch.zeros_like(x)
        return Moment.of(level, denoiser.table, denoiser.prediction, x).own * x

    return origin


def _decoded(parts: Parts, clean: Tensor) -> Tensor:
    """Clean samples (B, z, h, w) -> pictures (B, C, H, W), about [-1, 1], float32 or finer; differentiable."""
    precision = parts.denoiser.precision or clean.dtype
    return parts.codec.decode(clean.to(precision)).to(torch.promote_types(precision, torch.float32))
