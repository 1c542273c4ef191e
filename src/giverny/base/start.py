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
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from .errors import InputError
from .images import Fit, fit, png_bytes, read_picture, resize
from .knobs import Frozen
from .masks import Margins, blended, blurred, grown, reach, rim, surroundings

HALF = 128  # from this grey on a mask is white
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Program = Literal["diffusers", "webui", "webui_exact"]
Fill = Literal["original", "noise", "fill", "latent-noise", "latent-nothing"]


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


def enclosed_pixels(pixels: np.ndarray, name: str) -> Enclosed:
    """uint8 (H, W, 3), as a file that travels."""
    content = png_bytes(pixels)
    return Enclosed(name=name, sha256=hashlib.sha256(content).hexdigest(), content=content)


class Seen(NamedTuple):
    """A picture and its mask; None where all of it is painted."""

    pixels: np.ndarray  # uint8 (H, W, 3)
    white: np.ndarray | None = None  # bool (H, W), True where to paint
    soft: np.ndarray | None = None  # uint8 (H, W), the mask under its blur: above 0 also where the edge is soft, outside it


class Start(Frozen):
    """What painting starts from (SDEdit, Meng et al. 2021, arXiv 2108.01073), and how much of it is painted over."""

    picture: Enclosed
    strength: float = Field(0.6, ge=0, le=1, description="0 the picture as it is, 1 painted anew")
    mask: Enclosed | Literal["alpha"] | None = Field(
        None, description="white is painted anew, black stays to the bit; alpha: what is transparent in the picture is painted"
    )
    invert: bool = Field(False, description="black is painted anew, and white stays")
    blur: float = Field(
        0, ge=0, le=256, description="standard deviation in pixels of the picture by which the mask is softened"
    )
    fill: Fill = Field(
        "original",
        description="what is under the mask at first: the picture; nothing but noise; a blur of what is around; "
        "noise with noise on it; zeros with noise on it (the last three as AUTOMATIC1111)",
    )
    extend: Margins | None = Field(
        None, description="pixels by which the canvas grows: left, top, right, bottom; what is new is masked"
    )
    overlap: int = Field(
        16, ge=0, le=1024, description="with extend: how far into the picture, at most, anything is painted or blended"
    )
    fit: Fit = Field("crop", description="how the picture comes to the size that is painted, see `images.fit`")
    box: Box | None = Field(None, description="the part of the picture to paint from; None: all of it")
    program: Program = Field("diffusers", description="how strength is counted in steps, see `sampling.starts.image_start`")

    @field_validator("extend")
    @classmethod
    def _larger(cls, given: Margins | None) -> Margins | None:
        if given is not None and not (min(given) >= 0 and 0 < max(given) <= 8192):
            raise ValueError("extend wants four numbers from 0 to 8192, one of them above 0")
        return given

    @property
    def masked(self) -> bool:
        """Whether only a part is painted."""
        return self.mask is not None or self.extend is not None

    @property
    def left(self) -> Start:
        """The same without the files' content, for what is written into pictures."""
        mask = self.mask.left if isinstance(self.mask, Enclosed) else self.mask
        return self.model_copy(update={"picture": self.picture.left, "mask": mask})

    def whole(self) -> Seen:
        """Picture and mask as they are in the files, on their canvas.

        Raises InputError for a file that was left behind, is no still picture in grey or RGB, or a mask that does not fit.
        """
        pixels = _still(self.picture)
        white = None if self.mask is None else self._white(pixels)
        size = (pixels.shape[1], pixels.shape[0])
        if self.extend is not None:
            pixels = grown(pixels, self.extend)
            new = rim(size, self.extend, max(0, self.overlap - reach(self.blur)))
            white = new if white is None else new | grown(white, self.extend, 0)
        if white is None:
            return Seen(pixels)
        if not self.blur:
            return Seen(pixels, white, white.astype(np.uint8) * 255)
        soft = blurred(white.astype(np.uint8) * 255, self.blur)
        if self.extend is not None and self.mask is None:
            soft[~rim(size, self.extend, self.overlap)] = 0  # of a blur that goes beyond the overlap
        return Seen(pixels, soft >= HALF, soft)

    def _white(self, pixels: np.ndarray) -> np.ndarray:
        """The mask of the files, bool (H, W). pixels: of the picture."""
        if self.mask == "alpha":
            # over white and over black a pixel differs by what shines through: 255 - alpha
            white = pixels.astype(np.int16)[..., 0] - _still(self.picture, (0, 0, 0))[..., 0] >= HALF
            given = f"{self.picture.name}, which is opaque"
        else:
            assert self.mask is not None
            shades = _still(self.mask, (0, 0, 0))
            if shades.shape != pixels.shape:
                sizes = [f"{p.shape[1]} x {p.shape[0]}" for p in (pixels, shades)]
                raise InputError(f"a mask as large as the picture, {sizes[0]}", f"{self.mask.name} of {sizes[1]}")
            white = np.asarray(Image.fromarray(shades).convert("L")) >= HALF
            given = f"{self.mask.name}, which has none"
        if not white.any():
            raise InputError("a mask with something white in it, to be painted anew", given)
        if self.invert and white.all():
            raise InputError("an inverted mask with something black in it, to be painted anew", "one all white")
        return ~white if self.invert else white

    def at(self, size: tuple[int, int]) -> Seen:
        """The same as `whole`, of the part that `box` names, brought to a size (width, height)."""
        pixels, _, soft = self.whole()
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (0 <= left < right <= pixels.shape[1] and 0 <= top < bottom <= pixels.shape[0]):
                raise InputError(f"a box within {pixels.shape[1]} x {pixels.shape[0]}", str(self.box))
            pixels = pixels[top:bottom, left:right]
            soft = None if soft is None else soft[top:bottom, left:right]
        fitted = fit(pixels, size, self.fit, 255)
        if soft is None:
            return Seen(fitted)
        soft = fit(soft[..., None], size, self.fit)[..., 0]
        white = soft >= HALF
        if not white.any():
            remedy = "Blur the mask less, use another fit, or paint only around the mask."
            raise InputError("a mask with something white in what is painted", f"none at {size[0]} x {size[1]}", remedy)
        return Seen(fitted, white, soft if self.blur else white.astype(np.uint8) * 255)

    def beneath(self, seen: Seen) -> np.ndarray:
        """What the picture is encoded from, uint8 (H, W, 3): itself, or blurred surroundings where a fill wants them."""
        if seen.soft is None or self.fill in ("original", "noise"):
            return seen.pixels
        return surroundings(seen.pixels, seen.soft)

    def shown(self, seen: Seen) -> np.ndarray | None:
        """How much of what was painted is laid over the picture, uint8 (H, W); None: all of it.

        Twice the blurred mask, as AUTOMATIC1111: all that is painted shows, and the edge is soft outside it. Of the part in
        a box all that the blur reaches is handed on, to be blended where it is pasted.
        """
        if seen.soft is None:
            return None
        twice = np.minimum(seen.soft.astype(np.uint16) * 2, 255).astype(np.uint8)
        return twice if self.box is None else (seen.soft > 0).astype(np.uint8) * 255


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

    Only what is white in the mask is another than before, and under a blur what that reaches.
    """
    pixels, _, soft = start.whole()
    if start.box is None:
        raise ValueError("only a part of a picture is pasted back")
    left, top, right, bottom = start.box
    part = resize(painted, (right - left, bottom - top))
    inside = np.full(part.shape[:2], 255, np.uint8) if soft is None else soft[top:bottom, left:right]
    pixels[top:bottom, left:right] = blended(part, pixels[top:bottom, left:right], inside)
    return pixels
