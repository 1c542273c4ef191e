"""The translating painter: a picture in, the same in another manner out. Thin; networks and tiles do the work.

Words are not read, and the seed says only how brush strokes fall, where a generator has grain; without, nothing is drawn by
chance. A request's `start` is the picture; its strength says how much of the translation is laid over it, its mask where.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from ...base.contracts import Done, Event, Failed, Knobs, Picture, Progress, Provenance, Request, Start, Started
from ...base.errors import InputError
from ...base.images import resize, to_pixels, to_tensor
from ...base.recipe import check
from ...base.runtime import versions
from ...base.streams import stream
from .knobs import TranslatorKnobs
from .recipe import ModelRecipe
from .tiles import Canvas, bytes_per_pixel, count, mirrored, through, tile_for

LEAST = 8  # pixels along a side
PAINTED = 320  # pixels of the shorter side that is painted where strokes are to be as the picture's size asks


@dataclass(frozen=True, eq=False)
class _Task:
    """A request that can be carried out."""

    request: Request
    start: Start
    knobs: TranslatorKnobs
    pixels: np.ndarray  # uint8 (H, W, 3)
    white: np.ndarray | None  # bool (H, W), True where it is painted
    canvas: Canvas
    tile: int | None


class TranslatorPainter:
    """contracts.Painter over one generator, or several that a picture goes through one after the other."""

    family = "translator"
    knobs: type[Knobs] = TranslatorKnobs
    can = frozenset({"start"})
    needs = frozenset({"start"})

    def __init__(
        self,
        recipe: ModelRecipe,
        networks: Mapping[str, nn.Module],
        name: str = "unnamed",
        fingerprint: str = "",
        size: tuple[int, int] = (256, 256),  # width and height it was trained at
        defaults: Mapping[str, Any] | None = None,  # knobs of the model's card
        device: torch.device = torch.device("cpu"),
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.recipe, self.name, self.fingerprint, self.size = recipe, name, fingerprint, size
        self.networks = [networks[part].to(device, precision).eval().requires_grad_(False) for part in recipe.names()]
        self.defaults, self.device, self.precision = dict(defaults or {}), device, precision
        self._each: float | None = None  # bytes that a pixel takes

    def paint(self, requests: Sequence[Request], previews: bool = False, trace: bool = False) -> Iterator[Event]:
        """Translate one after the other. Bad requests fail alone, in their own event."""
        for request in requests:
            try:
                task = self._settled(request)
            except InputError as error:
                yield Failed(request.id, str(error))
                continue
            yield from self._paint(task, previews, trace)

    def _settled(self, request: Request) -> _Task:
        knobs = check(TranslatorKnobs, {**self.defaults, **request.knobs}, "knobs")
        start = request.start
        if start is None:
            raise InputError("a picture to translate", "words alone", "Name one: `giverny translate FILE`, or paint --from.")
        if start.masked and start.fill != "original":
            raise InputError("fill = 'original' of a model that translates", repr(start.fill), "It paints over what is there.")
        pixels, white, _ = start.at(request.size or self._own_size(start))
        high, wide = pixels.shape[:2]
        if min(high, wide) < LEAST:
            raise InputError(f"a picture of {LEAST} x {LEAST} pixels or more", f"{wide} x {high}")
        step = self.recipe.generator.step
        strokes = knobs.strokes or max(1.0, min(high, wide) / PAINTED)
        smaller = tuple(max(LEAST, round(side / strokes)) for side in (wide, high))
        painted = pixels if strokes == 1 else resize(pixels, (smaller[0], smaller[1]))
        canvas = mirrored(to_tensor(painted)[None].to(self.device, self.precision), step)
        if self._each is None:
            channels = canvas.pixels.shape[1] + self.recipe.generator.grain
            self._each = bytes_per_pixel(self.networks[0], step, channels, canvas.pixels)
        tile = tile_for(canvas.pixels, step, self._each, knobs.memory)
        return _Task(request, start, knobs, pixels, white, canvas, tile)

    @staticmethod
    def _own_size(start: Start) -> tuple[int, int]:
        """Width and height of the part of the picture that is translated."""
        if start.box is not None:
            left, top, right, bottom = start.box
            return right - left, bottom - top
        high, wide = start.whole().pixels.shape[:2]
        return wide, high

    def _paint(self, task: _Task, previews: bool, trace: bool) -> Iterator[Event]:
        began, step, identity = time.perf_counter(), self.recipe.generator.step, task.request.id
        x, done = task.canvas.pixels, 0
        total = len(self.networks) * count(x, step, task.tile)
        yield Started(identity, total)
        grain, drawn = self.recipe.generator.grain, stream(task.request.seed)
        for network in self.networks:
            made = x
            noise = drawn.normal((1, grain, *x.shape[2:])).to(x) if grain else None
            for made in through(network, x, step, task.tile, noise):
                done += 1
                shown = self._shown(task, made) if previews else None
                yield Progress(identity, done, total, shown)
            x = made.to(self.precision)
        if not bool(torch.isfinite(made).all()):
            wanted = f"finite pixels in {str(self.precision).removeprefix('torch.')}"
            yield Failed(identity, str(InputError(wanted, "others", "Take float32.")))
            return
        pixels = self._finished(task, made)
        origin = self._provenance(task, round(time.perf_counter() - began, 4))
        yield Done(identity, Picture(pixels, origin, (task.pixels, pixels) if trace else ()))

    @staticmethod
    def _shown(task: _Task, made: Tensor) -> np.ndarray:
        """uint8 (H, W, 3): what was painted, at the picture's size."""
        painted: np.ndarray = to_pixels(task.canvas.cut(made))[0]
        high, wide = task.pixels.shape[:2]
        return painted if painted.shape[:2] == (high, wide) else resize(painted, (wide, high))

    def _finished(self, task: _Task, made: Tensor) -> np.ndarray:
        """uint8 (H, W, 3): the translation, worked over, laid over the picture as far as strength and mask say."""
        image = Image.fromarray(self._shown(task, made))
        if task.knobs.denoise:
            image = image.filter(ImageFilter.MedianFilter(2 * task.knobs.denoise + 1))
        if task.knobs.sharpen:
            image = image.filter(ImageFilter.UnsharpMask(percent=round(100 * task.knobs.sharpen)))
        pixels, strength = np.array(image), task.start.strength
        if strength < 1:
            laid = strength * pixels + (1 - strength) * task.pixels
            pixels = np.rint(laid).astype(np.uint8)
        return pixels if task.white is None else np.where(task.white[..., None], pixels, task.pixels)

    def _provenance(self, task: _Task, seconds: float) -> Provenance:
        size = (task.pixels.shape[1], task.pixels.shape[0])
        return Provenance(
            request=task.request.model_copy(update={"size": size, "start": task.start.left}),
            knobs=task.knobs.model_dump(),
            painter=self.family,
            model=self.name,
            fingerprint=self.fingerprint,
            versions=versions(),
            device=str(self.device),
            precision=str(self.precision).removeprefix("torch."),
            backend="plain",
            threads=torch.get_num_threads(),
            batch=1,
            seconds=seconds,
        )
