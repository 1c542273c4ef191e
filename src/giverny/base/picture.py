"""A picture asked for, a picture made, and how the file of one says where it came from.

Files carry two texts: `giverny`, the full provenance as JSON, and `parameters`, the infotext that Stable Diffusion web
interfaces read (`infotext.py`); where they lie in a file is `embedded.py`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from .embedded import keeps_pixels, picture_bytes, read_words
from .errors import InputError
from .files import atomic_write
from .images import png_bytes
from .infotext import infotext as infotext
from .knobs import Frozen
from .start import Start as Start


class Toward(Frozen):
    """Part of the way from a request's prompt to another one: what is painted lies between the two conditions."""

    prompt: str = Field(description="the words at the other end")
    share: float = Field(ge=0, le=1, description="0 the request's own prompt, 1 the other; both to the bit")
    way: Literal["linear", "spherical"] = Field(
        "linear", description="how text vectors are mixed; pooled ones always spherical"
    )


class Variation(Frozen):
    """Part of the way from a request's noise to that of another seed, along the sphere (`runtime.slerp`).

    What Stable Diffusion web interfaces call variation seed and strength. AUTOMATIC1111's (modules/rng.py) mixes column by
    column, and only the initial noise. Here a picture's noise is one vector, and fresh noise of later steps is mixed as
    well: so strength 1 is the other seed's picture for every sampler, and a walk over several seeds has no jump where one
    leg ends and the next begins. Painters that have a knob `seeding` mix as that program does where it says so.
    """

    seed: int = Field(ge=0, lt=2**63, description="the other random stream")
    strength: float = Field(ge=0, le=1, description="0 the request's own seed, 1 the other; both to the bit")


class BatchRow(Frozen):
    """Which picture of several that one seed draws at once, as ComfyUI does."""

    row: int = Field(0, ge=0, description="0 for the first")
    of: int = Field(1, ge=1, le=1024, description="pictures in all")

    @model_validator(mode="after")
    def _inside(self) -> BatchRow:
        if self.row >= self.of:
            raise ValueError(f"row {self.row} is not among {self.of}, which are counted from 0")
        return self


_OPTIONAL = ("toward", "variation", "start", "batch")  # fields of a request that not every painter understands


class Request(Frozen):
    """One picture asked for. Serialisable: the same JSON serves the command line, the web page and a worker process."""

    prompt: str = Field("", description="what to paint; empty paints unconditionally")
    negative: str = Field("", description="what to move away from")
    seed: int = Field(0, ge=0, lt=2**63, description="the picture's own random stream")
    size: tuple[int, int] | None = Field(None, description="width and height in pixels; None: the model's own")
    knobs: Mapping[str, Any] = Field(default_factory=dict, description="the painter's settings, checked by its Knobs")
    id: str = Field("", description="echoed in events; chosen by the caller")
    toward: Toward | None = Field(None, description="another prompt, part of the way")
    variation: Variation | None = Field(None, description="another seed, part of the way")
    start: Start | None = Field(None, description="a picture to start from, whole or under a mask")
    batch: BatchRow | None = Field(None, description="the row of a draw for several pictures")
    styles: tuple[str, ...] | None = Field(None, description="saved styles whose words are in the prompts already, by name")

    @property
    def asks(self) -> frozenset[str]:
        """The optional parts in use. A painter that follows them names them in its `can`; others must not be given them."""
        return frozenset(name for name in _OPTIONAL if getattr(self, name) is not None)

    @model_serializer(mode="wrap")
    def _told(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Optional parts not in use are left out: files and messages without them stay as short as they were."""
        short = (*_OPTIONAL, "styles")
        return {name: value for name, value in plain(self).items() if value is not None or name not in short}


class Provenance(Frozen):
    """All that is needed to paint a picture again, and to say afterwards which input differed."""

    request: Request
    knobs: dict[str, Any]  # fully resolved, defaults included
    painter: str  # family, such as "diffusion"
    model: str  # the name it was opened by
    fingerprint: str  # of the model's weights and recipe
    versions: dict[str, str]  # giverny, torch, python
    device: str
    precision: str
    backend: str
    threads: int
    batch: int  # how many pictures were painted together
    noise: str = "cpu"  # source of random numbers: "cpu" or "nv", and behind a plus the Brownian tree, if there was one
    decoded: str = ""  # how, where it was not whole and with its batch: "one by one", or "tiles of 40" latents
    seconds: float = 0.0  # per picture, of its batch
    further: dict[str, str] = Field(default_factory=dict)  # more of its infotext, such as "VAE hash" or "Lora hashes"
    pixels: str | None = None  # `Picture.digest`, in files that do not keep every pixel

    @model_serializer(mode="wrap")
    def _told(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in plain(self).items() if value is not None or name != "pixels"}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and where it came from. Shows itself in a notebook."""

    pixels: np.ndarray  # uint8, (H, W, 3)
    provenance: Provenance | None = None
    trace: tuple[np.ndarray, ...] = field(default=(), repr=False)  # the sample at each moment, noise first, where asked for

    @property
    def size(self) -> tuple[int, int]:
        return int(self.pixels.shape[1]), int(self.pixels.shape[0])

    @property
    def digest(self) -> str:
        """SHA-256 of its size and pixels."""
        return hashlib.sha256(b"%d x %d " % self.size + np.ascontiguousarray(self.pixels).tobytes()).hexdigest()

    def _repr_png_(self) -> bytes:
        return png_bytes(self.pixels)

    def save(self, path: Any, quality: int | None = None) -> None:
        """Write as PNG, JPEG or WebP, as the name ends (atomic), with provenance in the file. quality: `write_picture`."""
        write_picture(path, self, quality)


def write_picture(path: str | os.PathLike[str], picture: Picture, quality: int | None = None) -> None:
    """Write a PNG, JPEG or WebP, as the name ends (whole or not at all); with provenance, its infotext and its JSON.

    quality: 1 to 100, of JPEG and WebP; without, PNG and WebP keep every pixel, and JPEG is of quality 95. Where pixels are
    not kept the JSON holds their digest, so that `giverny reproduce` can tell all the same. Raises InputError for other
    endings, and where a JPEG has no room for so many words.
    """
    told, suffix = picture.provenance, Path(path).suffix
    words = {}
    if told is not None:
        kept = told.model_copy(update={"pixels": None if keeps_pixels(suffix, quality) else picture.digest})
        words = {"parameters": infotext(told, picture.size), "giverny": kept.model_dump_json()}
    atomic_write(path, picture_bytes(picture.pixels, suffix, words, quality))


def read_provenance(path: str | os.PathLike[str]) -> Provenance:
    """Where a picture that giverny wrote came from. Raises InputError where the file does not tell, or tells nonsense."""
    text = read_words(path).get("giverny")
    if text is None:
        remedy = "only files that giverny wrote, and no program has rewritten since, say all about how they were painted"
        raise InputError("a picture with words named 'giverny' in its file", str(path), remedy)
    try:
        return Provenance.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError("undamaged words named 'giverny'", f"{path}: {place} {first['msg']}".strip()) from error
