"""The diffusion painter: words and noise in, pictures out. Thin; all mathematics lives in the rooms below.

`paint` holds everything of a call in local variables, so one painter serves several threads at once. The caller pulls
events; closing the iterator stops within one step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...autoencoders.packed import packed_codec
from ...autoencoders.preview import LinearPreview, fitted
from ...autoencoders.tiled import fitting, manner
from ...base.contracts import (
    Codec,
    Condition,
    Denoise,
    Done,
    Event,
    Failed,
    Knobs,
    Levels,
    NoiseLevel,
    Picture,
    Progress,
    Provenance,
    Request,
    Sampler,
    Start,
    Started,
)
from ...base.errors import InputError
from ...base.images import Filter, resize, to_pixels
from ...base.recipe import check
from ...base.runtime import free_memory, versions
from ...sampling.brownian import TreeNoise
from ...sampling.names import FACTS, UNIT_START, resolve
from ...sampling.noise import PictureNoise, Streams
from ...sampling.samplers import Walk
from ...steering.between import between
from ...steering.clip_guidance import Guide
from ...text.space import SharedSpace
from .adapters import Adapters, Worn
from .backends import choose_backend
from .beginning import PURE, Beginning, beginning, run_over, second_beginning
from .course import alone, check_seeds, levels_of, sampler_of, spacing_of, streams_of
from .crossing import check_crossing, crossing
from .estimate import estimates
from .guard import all_sound, exactly, in_float32, quiet, sound
from .guides import ClipGuide
from .knobs import DiffusionKnobs
from .recipe import Parts
from .run import Run
from .second_pass import enlarged, final_size, last_steps
from .settling import check_settings
from .sizes import silenced, told_sizes
from .told import Prompts, steady

BATCH = 64  # pictures painted together at most
KEPT = 64  # runs whose levels are kept
LARGE = 2**20  # pixels of a batch from which on it is asked whether there is room to decode them; smaller ones never wait
SHARE = 0.7  # of the memory that is free, for decoding


class DiffusionPainter:
    """contracts.Painter over the parts of a (latent) diffusion model."""

    family = "diffusion"
    knobs: type[Knobs] = DiffusionKnobs
    can = frozenset({"toward", "variation", "start", "batch"})

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
        self._levels = lru_cache(KEPT)(partial(levels_of, parts.denoiser.table))  # a call asks for the same ones several times
        self._linear: LinearPreview | None = None

    @property
    def step(self) -> int:
        """What the sides of a picture want to be divisible by."""
        return self.parts.step

    def settle(self, request: Request) -> tuple[DiffusionKnobs, tuple[int, int]]:
        """The knobs and size a request comes to: its own, else the model's, else the class's. Raises InputError."""
        return self._settled(request)[:2]

    def _settled(self, request: Request) -> tuple[DiffusionKnobs, tuple[int, int], Prompts]:
        knobs = check(DiffusionKnobs, {**self.defaults, **request.knobs}, "knobs")
        self.levels(knobs)
        self.sampler(knobs)
        check_seeds(request, knobs)
        size = request.size or self.size
        check_settings(self.parts, knobs, size)
        if knobs.clip_guidance:
            self.guide(knobs.clip_model)
        if knobs.begin == "crossed":
            check_crossing(self.parts, knobs, request.start)
        if request.start is not None:
            request.start.at(size)
            self.levels_from(knobs, request.start)
        prompts = self._prompts(self.parts, knobs, [request])
        self.adapters.check(prompts.calls)  # says what of a prompt this model cannot do
        return knobs, size, prompts

    def guide(self, model: str = "") -> Guide:
        """The CLIP that guides, opened when it is first asked for. model: whose; "" for this model's own."""
        if model not in self._guides:
            if self.clips is None:
                raise InputError("a painter that has been given a CLIP for `clip_guidance`", "one without", "Open it by name.")
            self._guides[model] = ClipGuide(self.clips(model))  # one assignment: threads at worst open it twice
        return self._guides[model]

    def paint(self, requests: Sequence[Request], previews: bool = False, trace: bool = False) -> Iterator[Event]:
        """Paint all requests; those of equal settings and size together. Bad requests fail alone, in their own event."""
        groups: dict[tuple[DiffusionKnobs, tuple[int, int], Hashable], list[Prompts]] = {}
        for request in requests:
            try:
                knobs, size, prompts = self._settled(request)
            except InputError as error:
                yield Failed(request.id, str(error))
                continue
            start = request.start
            begins = None if start is None else (start.strength, start.masked, start.fill, start.program)
            groups.setdefault((knobs, size, (prompts.shape, begins)), []).append(prompts)
        for (knobs, size, _), group in groups.items():
            most = 1 if alone(knobs) else BATCH
            for first in range(0, len(group), most):
                yield from self._paint(Prompts.joined(group[first : first + most]), size, previews, trace)

    def _paint(self, prompts: Prompts, size: tuple[int, int], previews: bool, trace: bool) -> Iterator[Event]:
        began = time.perf_counter()
        knobs, requests = prompts.knobs, prompts.requests
        try:
            codec = self._codec_within(knobs.decode_memory, final_size(size, knobs.upscale, self.parts.step), len(requests))
            worn = Worn(self.parts, self.denoise)
            if prompts.calls:
                worn = self.adapters.worn(prompts.calls)
                prompts = self._prompts(worn.parts, knobs, requests)
            further = [{**self.further, **self.adapters.infotext(prompts.calls, words)} for words in prompts.inverted]
        except InputError as error:
            yield from (Failed(request.id, str(error)) for request in requests)
            return
        spread = self.levels_from(knobs, requests[0].start)
        again = last_steps(self.levels(knobs), knobs.upscale_strength) if knobs.upscale > 1 else None
        ways = (spread, again, spread if knobs.begin == "crossed" else None)
        steps = sum(levels.steps for levels in ways if levels is not None)
        run = Run(requests, None if alone(knobs) else steps, previews, trace)
        for request in requests:
            yield Started(request.id, run.total)
        noise = self._noise(streams_of(requests, knobs, self.codec.factor), size, knobs)
        x, begun = yield from self._walked(prompts, worn, size, spread, again, noise, run)
        if not run.going:
            return
        made = self._decoded(x, codec)
        yield from run.lose(~sound(made), "decoding")
        pixels = to_pixels(quiet(made))
        if begun is not None:
            pixels = begun.pasted(pixels)
        seconds, how = (time.perf_counter() - began) / len(requests), manner(codec, *x.shape[-2:])
        for i, request in run.left():
            origin = self._provenance(request, knobs, size, len(requests), noise.name, how, seconds, further[i])
            final = (pixels.shape[2], pixels.shape[1])
            moments = (k[i] for k in run.moments)
            # All moments are as large as the picture, so that they can be shown beside or after each other.
            frames = tuple(m if m.shape == pixels[i].shape else resize(m, final, Filter.NEAREST) for m in moments)
            yield Done(request.id, Picture(pixels[i], origin, frames))

    def _walked(
        self,
        prompts: Prompts,
        worn: Worn,
        size: tuple[int, int],
        spread: Levels | None,  # of the first pass; None: it begins clean, and takes no step
        again: Levels | None,  # of the second pass, over what was enlarged
        noise: PictureNoise,
        run: Run,
    ) -> Generator[Event, None, tuple[Tensor, Beginning | None]]:
        """From noise, or from what the pictures begin with, to clean latents; returns them, and the latter."""
        knobs, requests = prompts.knobs, prompts.requests
        clamp = knobs.clamp == "sample"
        guide = self.guide(knobs.clip_model) if knobs.clip_guidance else None
        if prompts.plain:
            told, negative = self._conditions(requests)
            plans = steady(knobs, told, silenced(self.parts.recipe, knobs, requests, negative))
        else:
            plans = prompts.plans(self.device, self.precision)
        larger = final_size(size, knobs.upscale, self.parts.step)
        sizes = [told_sizes(self.parts.recipe, knobs, each) for each in (size, larger)]
        maker = partial(estimates, worn.parts, worn.denoise, knobs, plans, prompts.spoken, guide, sizes=sizes)
        starts = [request.start for request in requests if request.start is not None]  # of all, or of none
        begun = self._begun(partial(beginning, starts), size) if starts else None
        make, sampler, keep = maker(begun.channels if begun else None), self.sampler(knobs), None
        if begun is None:
            x = noise.initial(self.levels(knobs)[0], full=spacing_of(knobs) in UNIT_START)
        else:
            drawn = noise.initial(PURE)
            yield from run.lose(~sound(begun.clean), "encoding the picture to start from")
            x = quiet(begun.noised(spread[0], drawn) if spread else begun.clean)
            keep = partial(begun.kept, noise=drawn) if begun.keeps else None
        run.note(self._pixels, x)
        if spread is not None and begun is not None and knobs.begin == "crossed":
            x = yield from self._run(crossing(worn.parts, quiet(begun.clean), x, spread, noise), run)
        elif spread is not None:
            x = yield from self._run(sampler(make(spread.steps), x, spread, noise), run, keep, clamp)
        if knobs.upscale == 1 or not run.going:
            return x, begun
        x = enlarged(x, larger, self.codec, knobs.upscale_in, self.precision)
        if begun is not None and begun.mask is not None:
            begun = self._begun(partial(second_beginning, begun, x), larger)
            yield from run.lose(~sound(begun.clean), "encoding the enlarged picture")
            x, make = quiet(begun.clean), maker(begun.channels)
        if again is not None and run.going:
            noise = self._noise(noise.streams.again(), larger, knobs)
            drawn = noise.initial(PURE)
            x = again[0].alpha.to(x) * x + again[0].sigma.to(x) * drawn
            keep = partial(begun.kept, noise=drawn) if begun is not None and begun.keeps else None
            run.note(self._pixels, x)
            before = spread.steps if spread else 0
            x = yield from self._run(sampler(make(again.steps, before), x, again, noise), run, keep, clamp)
        return x, begun

    def _run(
        self,
        walk: Walk,
        run: Run,
        keep: Callable[[Tensor, NoiseLevel], Tensor] | None = None,  # what a sample is changed to after each step
        clamp: bool = False,  # whether samples are kept to [-1, 1]
    ) -> Generator[Event, None, Tensor]:
        """Pull a sampler to its end, telling of each step; returns the final sample, zeros where a picture was lost."""
        edited: Tensor | None = None
        before = run.told
        while True:
            try:
                step = walk.send(edited)
            except StopIteration as end:
                final: Tensor = end.value
                return final
            run.told = before + step.index + 1
            if not all_sound(step.x):
                yield from run.lose(~sound(step.x), f"the denoiser at {run.place}")
                if not run.going:
                    return step.x
            edited = keep(step.x, step.level) if keep is not None else None
            if clamp:
                edited = (step.x if edited is None else edited).clamp(-1, 1)
            if run.lost:
                edited = quiet(step.x if edited is None else edited)
            run.note(self._pixels, step.x if edited is None else edited)
            shown = self._preview(step.clean) if run.previews else None
            for i, request in run.left():
                yield Progress(request.id, run.told, run.total, shown[i] if shown is not None else None)

    def _begun(self, made: Callable[..., Beginning], size: tuple[int, int]) -> Beginning:
        """What is made of a size, of the channels of this model's pictures, for its network and with its encoder."""
        fine = torch.promote_types(self.precision, torch.float32)

        def encode(pixels: Tensor) -> Tensor:
            seen = pixels.to(self.device, fine)
            return exactly(lambda codec, x: codec.encode(x), self.codec, seen, self.precision, self._finer)

        looks = self.parts.recipe.denoiser.in_channels == 2 * self.codec.channels + 1
        begun = made(size, self.parts.recipe.picture_channels, looks, encode)
        return begun if begun.channels is None else replace(begun, channels=begun.channels.to(self.precision))

    def levels_from(self, knobs: DiffusionKnobs, start: Start | None) -> Levels | None:
        """The levels that are painted through: all, or the last of them from a picture; None where that is no step."""
        if start is None:
            return self.levels(knobs)
        return run_over(lambda steps: self.levels(knobs.model_copy(update={"steps": steps})), knobs.steps, start)

    def _prompts(self, parts: Parts, knobs: DiffusionKnobs, requests: Sequence[Request]) -> Prompts:
        """The prompts over these parts, with the textual inversions they name; a plain prompt has words alone."""
        ends = [r.toward.prompt for r in requests if r.toward]
        texts = [*(r.prompt for r in requests), *(r.negative for r in requests), *ends]
        return Prompts(parts, knobs, requests, None if knobs.dialect == "plain" else self.adapters.inversions(texts))

    def _form(self, parts: Parts) -> Denoise:
        """The denoiser of parts, in this painter's form."""
        faster = choose_backend(parts, self.backend, self.device, self.precision)
        return faster[0] if faster else parts.denoiser

    def _noise(self, streams: Streams, size: tuple[int, int], knobs: DiffusionKnobs) -> PictureNoise:
        shape = (self.codec.channels, size[1] // self.codec.factor, size[0] // self.codec.factor)
        kind = TreeNoise if FACTS[resolve(knobs.sampler).sampler].draws == "tree" else PictureNoise
        # Networks may be coarse; the sum of all steps is not.
        return kind(streams, shape, torch.promote_types(self.precision, torch.float32), self.device)

    def levels(self, knobs: DiffusionKnobs) -> Levels:
        """The levels of a run. Raises InputError for an unknown sampler, and for steps that the spacing has not."""
        return self._levels(knobs)

    def sampler(self, knobs: DiffusionKnobs) -> Sampler:
        return sampler_of(self.parts.denoiser.table, knobs)

    def _conditions(self, requests: Sequence[Request]) -> tuple[Condition, Condition]:
        """What the denoiser is told under prompts without syntax, and under the negative ones; all are read at once."""
        toward = [r.toward for r in requests]
        ends = [way.prompt if way else r.prompt for r, way in zip(requests, toward, strict=True)] if any(toward) else []
        read = self.parts.condition([*(r.prompt for r in requests), *(r.negative for r in requests), *ends])
        told = read.to(self.device, self.precision)
        here, negative, *there = told.split([len(requests)] * (3 if ends else 2))
        return (between(here, there[0], toward) if there else here), negative

    def _pixels(self, latents: Tensor) -> np.ndarray:
        """Latents (B, z, h, w) on the way -> uint8 (B, H, W, 3); grey where they are no numbers."""
        return to_pixels(quiet(self._decoded(quiet(latents), self.codec)))

    def _preview(self, latents: Tensor) -> np.ndarray:
        """Nearly the same as `_pixels`, much faster: by a linear map, made when it is first asked for."""
        if self.parts.autoencoder is None:
            return self._pixels(latents)
        if self._linear is None:  # one assignment: threads at worst make it twice
            codec, precision = self.codec, self.precision
            if precision == torch.float16:  # which autoencoders may overflow
                codec, precision = self._finer(), torch.float32
            self._linear = fitted(codec, self.parts.recipe.picture_channels, self.device, precision)
        return to_pixels(quiet(self._linear(quiet(latents))))

    def _decoded(self, latents: Tensor, codec: Codec) -> Tensor:
        """Latents (B, z, h, w) -> (B, C, H, W), about [-1, 1], once more in float32 where a coarser format overflows."""
        return exactly(lambda by, x: by.decode(x), codec, latents, self.precision, self._finer)

    def _finer(self) -> Codec:
        return in_float32(self.parts.codec)

    def _codec_within(self, memory: int, size: tuple[int, int], rows: int) -> Codec:
        """What decodes so many pictures of this size in so many MiB (0: in what is free). Raises InputError for too few."""
        free = free_memory(self.device) if not memory and rows * size[0] * size[1] > LARGE else None
        if not memory and free is None:
            return self.codec
        most = memory * 2**20 or int(SHARE * (free or 0))
        form = (rows, self.codec.channels, size[1] // self.codec.factor, size[0] // self.codec.factor)
        latents = torch.empty(1, device=self.device, dtype=self.precision).expand(form)
        return fitting(self.codec, latents, most, strict=bool(memory))

    def _provenance(
        self,
        request: Request,
        knobs: DiffusionKnobs,
        size: tuple[int, int],
        batch: int,
        noise: str,
        decoded: str,
        seconds: float,
        further: dict[str, str],
    ) -> Provenance:
        return Provenance(
            request=request.model_copy(update={"size": size, "start": request.start and request.start.left}),
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
            decoded=decoded,
            seconds=round(seconds, 4),
            further=further,
        )
