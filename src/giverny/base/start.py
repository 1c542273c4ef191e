"""A picture to start from, as part of a request: painting goes on from it, or anew where a mask is white.

Files travel with the request, so that a worker process needs no disk of ours; what is written into a picture keeps their
names and SHA-256 alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BeforeValidator, Field, PlainSerializer, SerializerFunctionWrapHandler, model_serializer, model_validator

from .errors import InputError
from .images import Fit, fit, read_picture, resize
from .knobs import Frozen

HALF = 128  # from this grey on a mask is white
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Program = Literal["diffusers", "webui", "webui_exact"]


def _bytes(given: Any) -> Any:
    return base64.b64decode(given, validate=True) if isinstance(given, str) else given


Content = Annotated[bytes, BeforeValidator(_bytes), PlainSerializer(lambda b: base64.b64encode(b).decode(), when_used="json")]


class Enclosed(Frozen):
    """A file that travels along: its name, the SHA-256 it is known by, and, unless it was left behind, what is in it."""

    name: str = Field(description="as it was written by who gave it")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    content: Content | None = Field(None, repr=False, description="the file itself, base64 in JSON; None: left behind")

    @model_validator(mode="after")
    def _whole(self) -> Enclosed:
        if self.content is not None and hashlib.sha256(self.content).hexdigest() != self.sha256:
            raise ValueError(f"{self.name} has another SHA-256 than is said")
        return self

    @model_serializer(mode="wrap")
    def _told(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in plain(self).items() if value is not None}

    @property
    def left(self) -> Enclosed:
        """The same without its content."""
        return self.model_copy(update={"content": None})


def enclosed(path: str | os.PathLike[str]) -> Enclosed:
    """A file, ready to travel. Raises InputError where it cannot be read."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError("a readable picture file", f"{path}: {error.strerror}") from error
    return Enclosed(name=str(path), sha256=hashlib.sha256(content).hexdigest(), content=content)


class Start(Frozen):
    """What painting starts from (SDEdit, Meng et al. 2021, arXiv 2108.01073), and how much of it is painted over."""

    picture: Enclosed
    strength: float = Field(0.6, ge=0, le=1, description="0 the picture as it is, 1 painted anew")
    mask: Enclosed | Literal["alpha"] | None = Field(
        None, description="white is painted anew, black stays to the bit; alpha: what is transparent in the picture is painted"
    )
    fill: Literal["original", "noise"] = Field(
        "original", description="what is under the mask at first: the picture, or nothing but noise"
    )
    fit: Fit = Field("crop", description="how the picture comes to the size that is painted, see `images.fit`")
    box: Box | None = Field(None, description="the part of the picture to paint from; None: all of it")
    program: Program = Field("diffusers", description="how strength is counted in steps, see `sampling.starts.image_start`")

    @property
    def left(self) -> Start:
        """The same without the files' content, for what is written into pictures."""
        mask = self.mask.left if isinstance(self.mask, Enclosed) else self.mask
        return self.model_copy(update={"picture": self.picture.left, "mask": mask})

    def whole(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(picture uint8 (H, W, 3), mask bool (H, W), True where to paint) as they are in the files.

        Raises InputError for a file that was left behind, is no still picture in grey or RGB, or a mask that does not fit.
        """
        pixels = _still(self.picture)
        if self.mask is None:
            return pixels, None
        if self.mask == "alpha":
            # over white and over black a pixel differs by what shines through: 255 - alpha
            white = pixels.astype(np.int16)[..., 0] - _still(self.picture, (0, 0, 0))[..., 0] >= HALF
            given = f"{self.picture.name}, which is opaque"
        else:
            shades = _still(self.mask, (0, 0, 0))
            if shades.shape != pixels.shape:
                sizes = [f"{p.shape[1]} x {p.shape[0]}" for p in (pixels, shades)]
                raise InputError(f"a mask as large as the picture, {sizes[0]}", f"{self.mask.name} of {sizes[1]}")
            white = np.asarray(Image.fromarray(shades).convert("L")) >= HALF
            given = f"{self.mask.name}, which has none"
        if not white.any():
            raise InputError("a mask with something white in it, to be painted anew", given)
        return pixels, white

    def at(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        """The same as `whole`, of the part that `box` names, brought to a size (width, height)."""
        pixels, mask = self.whole()
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (0 <= left < right <= pixels.shape[1] and 0 <= top < bottom <= pixels.shape[0]):
                raise InputError(f"a box within {pixels.shape[1]} x {pixels.shape[0]}", str(self.box))
            pixels = pixels[top:bottom, left:right]
            mask = None if mask is None else mask[top:bottom, left:right]
        fitted = fit(pixels, size, self.fit, 255)
        if mask is None:
            return fitted, None
        white = fit(mask[..., None].astype(np.uint8) * 255, size, self.fit)[..., 0] >= HALF
        if not white.any():
            remedy = "Use another fit, or paint only around the mask."
            raise InputError("a mask with something white in what is painted", f"none at {size[0]} x {size[1]}", remedy)
        return fitted, white


def _still(file: Enclosed, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """The pixels of a file, upright, uint8 (H, W, 3). Raises InputError."""
    if file.content is None:
        raise InputError(
            f"{file.name}, with SHA-256 {file.sha256[:12]}...", "its name alone", "Put the file beside the picture."
        )
    source = io.BytesIO(file.content)
    source.name = file.name  # what read_picture calls it
    pixels = read_picture(source, background)
    with Image.open(io.BytesIO(file.content)) as image:
        frames, mode = getattr(image, "n_frames", 1), image.mode
    if frames > 1:
        raise InputError("a still picture", f"{file.name}, an animation of {frames} frames", "Save the frame you mean as PNG.")
    if mode == "CMYK":
        remedy = "Convert it with its colour profile first: without, its colours would be guessed."
        raise InputError("a picture in grey or RGB", f"{file.name}, in CMYK", remedy)
    return pixels


def pasted(start: Start, painted: np.ndarray) -> np.ndarray:
    """The whole picture of a start with a box, after the part in the box was painted, uint8 (H, W, 3) of any size.

    Only what is white in the mask is another than before.
    """
    pixels, mask = start.whole()
    if start.box is None:
        raise ValueError("only a part of a picture is pasted back")
    left, top, right, bottom = start.box
    part = resize(painted, (right - left, bottom - top))
    inside = np.ones(part.shape[:2], bool) if mask is None else mask[top:bottom, left:right]
    pixels[top:bottom, left:right][inside] = part[inside]
    return pixels
