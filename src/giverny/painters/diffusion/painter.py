"""The diffusion painter: words and noise in, pictures out. Thin; all mathematics lives in the rooms below.

`paint` holds everything of a call in local variables, so one painter serves several threads at once. The caller pulls
events; closing the iterator stops within one step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...autoencoders.packed import packed_codec
from ...autoencoders.tiled import fitting
from ...base.contracts import (
    Codec,
    Condition,
    Denoise,
    Done,
    Event,
    Failed,
    Knobs,
    Levels,
    Picture,
    Progress,
    Provenance,
    Request,
    Sampler,
    Started,
)
from ...base.errors import InputError
from ...base.images import Filter, resize, to_pixels
from ...base.recipe import check
from ...base.runtime import PictureStreams, versions
from ...sampling.brownian import TreeNoise
from ...sampling.names import AUTOMATIC, FACTS, UNIT_START, Spacing, resolve
from ...sampling.noise import PictureNoise
from ...sampling.samplers import SAMPLERS, Walk
from ...sampling.schedules import levels
from ...steering.between import between
from ...steering.clip_guidance import Guide
from ...text.space import SharedSpace
from .adapters import Adapters, Worn
from .backends import choose_backend
from .estimate import estimates
from .guides import ClipGuide
from .knobs import DiffusionKnobs
from .recipe import Parts
from .second_pass import enlarged, final_size, last_steps
from .told import Prompts, steady

BATCH = 64  # pictures painted together at most
MOST = 4096  # pixels along a side


class DiffusionPainter:
    """contracts.Painter over the parts of a (latent) diffusion model."""

    family = "diffusion"
    knobs: type[Knobs] = DiffusionKnobs
    can = frozenset({"toward", "variation"})

    def __init__(
        self,
        parts: Parts,
        name: str = "unnamed",
        fingerprint: str = "",
        size: tuple[int, int] = (32, 32),  # width and height painted by default
        defaults: Mapping[str, Any] | None = None,  # knobs of the model's card
        device: torch.device = torch.device("cpu"),
        precision: torch.dtype = torch.float32,
        backend: Denoise | None = None,  # a faster form of the same denoiser; None: the plain one
        backend_name: str = "plain",
        clips: Callable[[str], SharedSpace] | None = None,  # opens a CLIP by name, the model's own for ""
    ) -> None:
        self.parts, self.name, self.fingerprint, self.size = parts, name, fingerprint, size
        self.defaults = dict(defaults or {})
        self.device, self.precision = device, precision
        self.denoise: Denoise = backend if backend is not None else parts.denoiser
        self.backend = backend_name if backend is not None else "plain"
        self.codec = packed_codec(parts.codec) if self.backend == "packed" else parts.codec
        self.clips = clips
        self.further: Mapping[str, str] = {}  # more of every picture's infotext
        self.adapters = Adapters(parts, self._form)
        self._guides: dict[str, Guide] = {}

    def settle(self, request: Request) -> tuple[DiffusionKnobs, tuple[int, int]]:
        """The knobs and size a request comes to: its own, else the model's, else the class's. Raises InputError."""
        knobs = check(DiffusionKnobs, {**self.defaults, **request.knobs}, "knobs")
        self.levels(knobs)
        if knobs.guidance_from > knobs.guidance_to:
            raise InputError("guidance_from <= guidance_to", f"{knobs.guidance_from} > {knobs.guidance_to}")
        if knobs.threshold and self.parts.recipe.autoencoder is not None:
            remedy = "Of latents it would cut arbitrary parts: use guidance_rescale, or less guidance."
            raise InputError(
                "a model of pixels, which have a range, for `threshold`", "one of latents, which have none", remedy
            )
        width, height = size = request.size or self.size
        step = self.parts.step
        if min(size) < step or width % step or height % step or max(size) > MOST:
            near = tuple(max(step, round(min(side, MOST) / step) * step) for side in size)
            raise InputError(
                f"sides from {step} to {MOST} divisible by {step}",
                f"{width} x {height}",
                f"Nearest: {near[0]} x {near[1]}.",
            )
        larger = final_size(size, knobs.upscale, step)
        if max(larger) > MOST:
            given = f"{width} x {height} enlarged {knobs.upscale:g} times"
            raise InputError(f"sides of at most {MOST} in the end", given, f"upscale can be {MOST / max(size):.4g} here")
        if knobs.clip_guidance:
            self.guide(knobs.clip_model)
        self.adapters.check(self._prompts(self.parts, knobs, [request]).calls)  # says what of a prompt this model cannot do
        return knobs, size

    def guide(self, model: str = "") -> Guide:
        """The CLIP that guides, opened when it is first asked for. model: whose; "" for this model's own."""
        if model not in self._guides:
            if self.clips is None:
                raise InputError("a painter that has been given a CLIP for `clip_guidance`", "one without", "Open it by name.")
            self._guides[model] = ClipGuide(self.clips(model))  # one assignment: threads at worst open it twice
        return self._guides[model]

    def paint(self, requests: Sequence[Request], previews: bool = False, trace: bool = False) -> Iterator[Event]:
        """Paint all requests; those of equal settings and size together. Bad requests fail alone, in their own event."""
        groups: dict[tuple[DiffusionKnobs, tuple[int, int], Hashable], list[Request]] = {}
        for request in requests:
            try:
                knobs, size = self.settle(request)
            except InputError as error:
                yield Failed(request.id, str(error))
                continue
            shape = self._prompts(self.parts, knobs, [request]).shape
            groups.setdefault((knobs, size, shape), []).append(request)
        for (knobs, size, _), group in groups.items():
            for first in range(0, len(group), BATCH):
                yield from self._paint(group[first : first + BATCH], knobs, size, previews, trace)

    def _paint(
        self, requests: Sequence[Request], knobs: DiffusionKnobs, size: tuple[int, int], previews: bool, trace: bool
    ) -> Iterator[Event]:
        began = time.perf_counter()
        try:
            codec = self._codec_within(knobs.decode_memory, final_size(size, knobs.upscale, self.parts.step), len(requests))
            prompts = self._prompts(self.parts, knobs, requests)
            worn = Worn(self.parts, self.denoise)
            if prompts.calls:
                worn = self.adapters.worn(prompts.calls)
                prompts = self._prompts(worn.parts, knobs, requests)
            further = [{**self.further, **self.adapters.infotext(prompts.calls, words)} for words in prompts.inverted]
        except InputError as error:
            yield from (Failed(request.id, str(error)) for request in requests)
            return
        spread = self.levels(knobs)
        again = last_steps(spread, knobs.upscale_strength) if knobs.upscale > 1 else None
        total = spread.steps + (again.steps if again else 0)
        for request in requests:
            yield Started(request.id, total)
        guide = self.guide(knobs.clip_model) if knobs.clip_guidance else None
        if prompts.plain:
            plans = steady(knobs, *self._conditions(requests))
        else:
            plans = prompts.plans(self.device, self.precision)
        make = estimates(worn.parts, worn.denoise, knobs, plans, prompts.spoken, guide)
        others = [(r.variation.seed, r.variation.strength) if r.variation else None for r in requests]
        streams = PictureStreams([r.seed for r in requests], others, knobs.noise)
        sampler = self.sampler(knobs)
        noise = self._noise(streams, size, knobs)
        start = noise.initial(spread[0], full=self.spacing(knobs) in UNIT_START)
        kept = [self._pixels(start)] if trace else None  # (B, H, W, 3) per moment: the sample itself, noise first
        x = yield from self._run(sampler(make(spread.steps), start, spread, noise), requests, 0, total, previews, kept)
        if knobs.upscale > 1:
            larger = final_size(size, knobs.upscale, self.parts.step)
            x = enlarged(x, larger, self.codec, knobs.upscale_in, self.precision)
            if again is not None:
                noise = self._noise(streams, larger, knobs)  # the same streams, further on
                x = again[0].alpha.to(x) * x + noise.initial(again[0])
                if kept is not None:
                    kept.append(self._pixels(x))
                walk = sampler(make(again.steps, spread.steps), x, again, noise)
                x = yield from self._run(walk, requests, spread.steps, total, previews, kept)
        pixels = self._pixels(x, codec)
        seconds = (time.perf_counter() - began) / len(requests)
        for i, request in enumerate(requests):
            origin = self._provenance(request, knobs, size, len(requests), noise.name, seconds, further[i])
            final = (pixels.shape[2], pixels.shape[1])
            moments = (k[i] for k in kept or ())
            # All moments are as large as the picture, so that they can be shown beside or after each other.
            frames = tuple(m if m.shape == pixels[i].shape else resize(m, final, Filter.NEAREST) for m in moments)
            yield Done(request.id, Picture(pixels[i], origin, frames))

    def _run(
        self,
        walk: Walk,
        requests: Sequence[Request],
        told: int,  # steps of earlier runs over these pictures
        total: int,
        previews: bool,
        kept: list[np.ndarray] | None,  # takes the sample after each step
    ) -> Generator[Event, None, Tensor]:
        """Pull a sampler to its end, telling of each step; returns the final sample."""
        while True:
            try:
                step = next(walk)
            except StopIteration as end:
                final: Tensor = end.value
                return final
            if kept is not None:
                kept.append(self._pixels(step.x))
            shown = self._pixels(step.clean) if previews else None
            for i, request in enumerate(requests):
                yield Progress(request.id, told + step.index + 1, total, shown[i] if shown is not None else None)

    def _prompts(self, parts: Parts, knobs: DiffusionKnobs, requests: Sequence[Request]) -> Prompts:
        """The prompts over these parts, with the textual inversions they name; a plain prompt has words alone."""
        ends = [r.toward.prompt for r in requests if r.toward]
        texts = [*(r.prompt for r in requests), *(r.negative for r in requests), *ends]
        return Prompts(parts, knobs, requests, None if knobs.dialect == "plain" else self.adapters.inversions(texts))

    def _form(self, parts: Parts) -> Denoise:
        """The denoiser of parts, in this painter's form."""
        faster = choose_backend(parts, self.backend, self.device, self.precision)
        return faster[0] if faster else parts.denoiser

    def _noise(self, streams: PictureStreams, size: tuple[int, int], knobs: DiffusionKnobs) -> PictureNoise:
        shape = (self.codec.channels, size[1] // self.codec.factor, size[0] // self.codec.factor)
        kind = TreeNoise if FACTS[resolve(knobs.sampler).sampler].draws == "tree" else PictureNoise
        # Networks may be coarse; the sum of all steps is not.
        return kind(streams, shape, torch.promote_types(self.precision, torch.float32), self.device)

    def spacing(self, knobs: DiffusionKnobs) -> Spacing:
        """How levels are spread: as the sampler's name says, else as the knob does, else as is usual for the sampler."""
        named = resolve(knobs.sampler)
        chosen: Any = named.spacing or knobs.spacing
        return FACTS[named.sampler].usual if chosen == AUTOMATIC else chosen

    def levels(self, knobs: DiffusionKnobs) -> Levels:
        """The levels of a run. Raises InputError for an unknown sampler, and for steps that the spacing has not."""
        discard = resolve(knobs.sampler).discard
        return levels(self.parts.denoiser.table, knobs.steps, self.spacing(knobs), discard_penultimate=discard)

    def sampler(self, knobs: DiffusionKnobs) -> Sampler:
        facts = FACTS[resolve(knobs.sampler).sampler]
        sampler: Any = SAMPLERS[facts.name]
        if "eta" not in facts.options:
            return sampler
        return partial(sampler, eta=knobs.eta if facts.name == "ddim" else knobs.eta_ancestral)

    def _conditions(self, requests: Sequence[Request]) -> tuple[Condition, Condition]:
        """What the denoiser is told under prompts without syntax, and under the negative ones; all are read at once."""
        toward = [r.toward for r in requests]
        ends = [way.prompt if way else r.prompt for r, way in zip(requests, toward, strict=True)] if any(toward) else []
        read = self.parts.condition([*(r.prompt for r in requests), *(r.negative for r in requests), *ends])
        told = read.to(self.device, self.precision)
        here, negative, *there = told.split([len(requests)] * (3 if ends else 2))
        return (between(here, there[0], toward) if there else here), negative

    def _pixels(self, latents: Tensor, codec: Codec | None = None) -> np.ndarray:
        """Latents (B, z, h, w) -> uint8 (B, H, W, 3). codec: what decodes, where it is not the painter's own."""
        with torch.inference_mode():
            return to_pixels((codec or self.codec).decode(latents.to(self.precision)).float())

    def _codec_within(self, memory: int, size: tuple[int, int], rows: int) -> Codec:
        """What decodes so many pictures of this size in so many MiB (0: as many as it takes). Raises InputError."""
        if not memory:
            return self.codec
        form = (rows, self.codec.channels, size[1] // self.codec.factor, size[0] // self.codec.factor)
        latents = torch.empty(1, device=self.device, dtype=self.precision).expand(form)
        return fitting(self.codec, latents, memory * 2**20)

    def _provenance(
        self,
        request: Request,
        knobs: DiffusionKnobs,
        size: tuple[int, int],
        batch: int,
        noise: str,
        seconds: float,
        further: dict[str, str],
    ) -> Provenance:
        return Provenance(
            request=request.model_copy(update={"size": size}),
            knobs=knobs.model_dump(),
            painter=self.family,
            model=self.name,
            fingerprint=self.fingerprint,
            versions=versions(),
            device=str(self.device),
            precision=str(self.precision).removeprefix("torch."),
            backend=self.backend,
            threads=torch.get_num_threads(),
            batch=batch,
            noise=noise,
            seconds=round(seconds, 4),
            further=further,
        )
