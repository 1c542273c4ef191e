"""What knobs mean for the course of a painting: its levels, its sampler, and where its noise comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ...base.contracts import Estimate, Levels, NoiseSource, Request, Sampler
from ...base.errors import InputError
from ...base.infotext import read_size
from ...base.runtime import PictureStreams
from ...sampling.comfyui import ComfyStreams, Place
from ...sampling.consistency import consistent
from ...sampling.names import AUTOMATIC, FACTS, Spacing, resolve
from ...sampling.noise import Streams
from ...sampling.samplers import SAMPLERS, Walk
from ...sampling.schedules import levels
from ...sampling.spacings import LCM_TIMES
from ...sampling.webui import Seed, WebuiStreams
from .knobs import DiffusionKnobs


def spacing_of(knobs: DiffusionKnobs) -> Spacing:
    """How levels are spread: as the sampler's name says, else as the knob does, else as is usual for the sampler."""
    named = resolve(knobs.sampler)
    chosen: Any = named.spacing or knobs.spacing
    return FACTS[named.sampler].usual if chosen == AUTOMATIC else chosen


def levels_of(table: Tensor, knobs: DiffusionKnobs) -> Levels:
    """The levels of a run. Raises InputError for an unknown sampler, and for steps or ends that the spacing has not."""
    return levels(
        table,
        knobs.steps,
        spacing_of(knobs),
        knobs.rho or None,
        sigma_min=knobs.sigma_min or None,
        sigma_max=knobs.sigma_max or None,
        discard_penultimate=resolve(knobs.sampler).discard or knobs.discard_penultimate,
    )


def sampler_of(table: Tensor, knobs: DiffusionKnobs) -> Sampler:
    """The sampler with its options. Raises InputError where these knobs do not go with the table."""
    facts = FACTS[resolve(knobs.sampler).sampler]
    sampler: Any = SAMPLERS[facts.name]
    told = {
        "eta": knobs.eta if facts.name == "ddim" else knobs.eta_ancestral,
        "s_churn": knobs.s_churn,
        "s_tmin": knobs.s_tmin,
        "s_tmax": knobs.s_tmax or math.inf,
        "s_noise": knobs.s_noise,
        "lower_order_final": knobs.lower_order_final,
        **({"order": knobs.order} if knobs.order else {}),
    }
    sampler = partial(sampler, **{name: told[name] for name in facts.options if name in told})
    if facts.name != "lcm" or not knobs.latent_consistency:
        return sampler
    if len(table) < LCM_TIMES or table[-1] <= 0:
        wanted = f"a model of {LCM_TIMES} training times or more that ends short of pure noise, for latent_consistency"
        raise InputError(wanted, "another one", "only latent consistency models want it")

    def taught(estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource) -> Walk:
        return sampler(consistent(estimate, table), x, levels, noise)

    return taught


def alone(knobs: DiffusionKnobs) -> bool:
    """Whether a picture is painted by itself: how many steps it takes shows on the way, and would hang on its neighbours."""
    return FACTS[resolve(knobs.sampler).sampler].pace == "adaptive"


def check_seeds(request: Request, knobs: DiffusionKnobs) -> None:
    """Raises InputError where a request asks of its noise what the program whose seeds it has does not know."""
    for name in ("ensd", "seed_resize_from"):
        if getattr(knobs, name) and knobs.seeding != "a1111":
            raise InputError(
                f"seeding a1111 with {name}", f"seeding {knobs.seeding}", f"say seeding=a1111, or leave {name} away"
            )
    if request.batch is not None and knobs.seeding != "comfyui":
        raise InputError(
            "seeding comfyui for the row of a batch", f"seeding {knobs.seeding}", "others give each picture a seed"
        )
    if request.variation is not None and knobs.seeding == "comfyui":
        raise InputError("seeding giverny or a1111 for a variation", "seeding comfyui", "that program has none")


def streams_of(requests: Sequence[Request], knobs: DiffusionKnobs, factor: int) -> Streams:
    """The random numbers of these pictures. factor: pixels per place of a sample, along a side."""
    if knobs.seeding == "comfyui":
        rows = [(r.seed, *((r.batch.row, r.batch.of) if r.batch else (0, 1))) for r in requests]
        return ComfyStreams([Place(*row) for row in rows], knobs.noise)
    others = [(r.variation.seed, r.variation.strength) if r.variation else None for r in requests]
    if knobs.seeding == "giverny":
        return PictureStreams([r.seed for r in requests], others, knobs.noise)
    seeds = [Seed(r.seed, *(other or ())) for r, other in zip(requests, others, strict=True)]
    return WebuiStreams(seeds, knobs.noise, read_size(knobs.seed_resize_from), knobs.ensd, factor)
