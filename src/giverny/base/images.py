"""Pixels: every file format in, one layout and one value range inside, PNG and GIF out.

As arrays pictures are uint8 (H, W, 3); as tensors float32 (C, H, W) in [-1, 1]. Both resize with antialiasing, since a
picture shrunk without it is another picture to every network and every metric (Parmar et al. 2022, arXiv 2104.11222).
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from .errors import InputError
from .files import atomic_path
from .sheet import grid as grid  # contact sheets are used wherever pictures are

Color = tuple[int, int, int]
Fit = Literal["crop", "pad", "stretch"]
Filter = Image.Resampling
WHITE: Color = (255, 255, 255)
# What an EXIF orientation asks for, as array operations on (H, W, C).
_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}
_ORIENTATION = 0x0112

# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_picture(source: str | Path | bytes | BinaryIO, background: Color = WHITE) -> np.ndarray:
    """Any picture that Pillow can decode, as uint8 (H, W, 3), upright; of an animation, the first frame.

    Transparent parts show `background`. Greys of 16 bits are scaled to 8; whole numbers of 32 bits and floats, which
    carry no range of their own, are scaled as `_scale_numbers` says. Colour profiles are not applied.
    Raises InputError, naming the file, for one that is missing, empty, damaged, cut short, too large (Pillow's limit
    against decompression bombs) or no picture. Thread-safe.
    """
    name = _name(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.format == "EPS":  # decoding it would run a program that the file brings along
                raise InputError("a picture made of pixels", f"{name}, which is PostScript", "export it as PNG")
            image.load()
            pixels = _to_rgb(image, background, name)
            turn = _TURNS.get(_orientation(image))
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError("a picture file", f"{name}, in which no picture format is recognised") from error
    except Image.DecompressionBombError as error:
        raise InputError("a picture of sane size", f"{name}: {error}", "shrink it first") from error
    # Decoders meet damaged files with errors of every type; whatever it is, the file cannot be read.
    except Exception as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError("a readable picture file", f"{name}: {said or type(error).__name__}") from error
    return np.ascontiguousarray(turn(pixels) if turn else pixels)


def _name(source: str | Path | bytes | BinaryIO) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(getattr(source, "name", "an open file"))


def _orientation(image: Image.Image) -> int:
    """1 to 8; upright where damaged EXIF data cannot say."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the pixels are good: metadata must not cost the picture
        return 1


def _to_rgb(image: Image.Image, background: Color, name: str) -> np.ndarray:
    """uint8 (H, W, 3) of a loaded image in any of Pillow's modes; a fresh array."""
    clear = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        numbers = np.asarray(image)
        grey = _scale_numbers(numbers, image, name)
        # a transparent grey is named by its unscaled value
        alpha = np.where(numbers == clear, 0, 255) if isinstance(clear, int) else None
        return _over(np.repeat(grey[..., None], 3, axis=2), alpha, background)
    if image.mode == "La":  # Pillow's only way out of premultiplied grey
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or clear is not None:
        layers = np.asarray(image.convert("RGBA"))
        return _over(layers[..., :3], layers[..., 3], background)
    return np.array(image.convert("RGB"))


def _over(pixels: np.ndarray, alpha: np.ndarray | None, background: Color) -> np.ndarray:
    """Composite (H, W, 3) on a colour by alpha (H, W) in 0..255, rounded to nearest."""
    if alpha is None or alpha.min() == 255:
        return np.array(pixels)
    weight = alpha.astype(np.uint16)[..., None]
    # at most 255 * 255 + 127, which 16 bits hold
    return ((pixels * weight + np.array(background, np.uint16) * (255 - weight) + 127) // 255).astype(np.uint8)


def _scale_numbers(numbers: np.ndarray, image: Image.Image, name: str) -> np.ndarray:
    """Greys of more than 8 bits as uint8 (H, W).

    16-bit modes, and the 32-bit mode in which Pillow hands out 16-bit PNG and PGM files, run from 0 to 65535. All other
    numbers are taken by the smallest customary range that holds them (floats 0..1, then 0..255, then 0..65535); where
    none does, from their own least to their greatest value.
    """
    values = numbers.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError("finite pixel values", f"{name}, which has NaN or infinite ones")
    low, high = 0.0, 65535.0
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high <= ranges[-1]:
            low, high = 0.0, next(top for top in ranges if high <= top)
    return np.rint((values - low) * (255.0 / ((high - low) or 1.0))).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Arrays and tensors


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (H, W), (H, W, C) or (B, H, W, C) -> float32 (C, H, W) or (B, C, H, W) in [-1, 1]."""
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels want uint8, given {pixels.dtype}")
    values = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1
    return values[None] if values.dim() == 2 else values.movedim(-1, -3).contiguous()


def beside(picture: Tensor, noise: Tensor | None) -> Tensor:
    """A picture (B, C, H, W) with noise (B, N, H, W) as further channels, of its type and on its device; alone without."""
    return picture if noise is None else torch.cat([picture, noise.to(picture)], 1)


def to_pixels(tensor: Tensor) -> np.ndarray:
    """Float (C, H, W) or (B, C, H, W) with C = 1 or 3 -> uint8 (H, W, 3) or (B, H, W, 3): clamped to [-1, 1], rounded.

    Raises InputError where a value is NaN.
    """
    if tensor.dim() not in (3, 4) or tensor.shape[-3] not in (1, 3):
        raise ValueError(f"a picture tensor wants shape ([B,] 1 or 3, H, W), given {tuple(tensor.shape)}")
    values = tensor.detach().float().cpu()
    if values.isnan().any():
        share = values.isnan().float().mean().item()
        raise InputError("a picture", f"{share:.1%} values that are not numbers", "try float32, or weaker guidance")
    bytes_ = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)
    return bytes_.expand(*bytes_.shape[:-1], 3).contiguous().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    filter: Filter = Filter.LANCZOS,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """uint8 (H, W[, C]) -> (height, width[, C]), antialiased. size: (width, height).

    box: (left, top, right, bottom), the part of `pixels` to take, all by default. Raises InputError for a size below 1.
    """
    if min(size) < 1:
        raise InputError("a width and height of 1 or more", f"{size[0]}x{size[1]}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        return resize(pixels[..., 0], size, filter, box)[..., None]
    return np.array(Image.fromarray(pixels).resize(size, filter, box))


def resize_tensor(x: Tensor, size: tuple[int, int], mode: Literal["bilinear", "bicubic"] = "bicubic") -> Tensor:
    """(B, C, H, W) -> (B, C, height, width), antialiased, in x's dtype. size: (width, height). Bicubic overshoots."""
    exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
    resized = torch.nn.functional.interpolate(exact, (size[1], size[0]), mode=mode, antialias=True)
    return resized.to(x.dtype)


def fit(pixels: np.ndarray, size: tuple[int, int], how: Fit, fill: int = 0) -> np.ndarray:
    """uint8 (H, W, C) -> (height, width, C). size: (width, height).

    how: "crop" scales until the size is covered and keeps the centre; "pad" scales down only, never up, and centres on
    a ground of value `fill`; "stretch" lets the proportions go.
    """
    (width, height), (high, wide) = size, pixels.shape[:2]
    if how == "stretch" or (wide, high) == (width, height):
        return resize(pixels, size) if (wide, high) != (width, height) else pixels.copy()
    if how == "crop":
        scale = max(width / wide, height / high)
        if scale == 1:  # whole pixels, so that nothing is resampled
            left, top = (wide - width) // 2, (high - height) // 2
            return pixels[top : top + height, left : left + width].copy()
        across, down = min(wide, width / scale), min(high, height / scale)
        left, top = (wide - across) / 2, (high - down) / 2
        return resize(pixels, size, box=(left, top, left + across, top + down))
    scale = min(1.0, width / wide, height / high)
    inner = (max(1, round(wide * scale)), max(1, round(high * scale)))
    small = resize(pixels, inner) if scale < 1 else pixels
    return _centred(small, size, fill)


def _centred(pixels: np.ndarray, size: tuple[int, int], fill: int) -> np.ndarray:
    """(H, W, C) in the middle of a ground of (width, height); the odd pixel goes to the right and below."""
    high, wide = pixels.shape[:2]
    left, top = (size[0] - wide) // 2, (size[1] - high) // 2
    ground = np.full((size[1], size[0], pixels.shape[2]), fill, np.uint8)
    ground[top : top + high, left : left + wide] = pixels
    return ground


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def png_bytes(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """A PNG of uint8 (H, W, 3), (H, W, 1) or (H, W). text: its text chunks, tEXt where Latin-1 suffices, else iTXt."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    out = io.BytesIO()
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    Image.fromarray(np.ascontiguousarray(flat)).save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


def write_gif(path: str | os.PathLike[str], frames: Sequence[np.ndarray], milliseconds: int | Sequence[int]) -> None:
    """Write uint8 (H, W, 3) frames of one size as an endless animation. milliseconds: per frame, or one for each."""
    first, *rest = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    if any(frame.size != first.size for frame in rest):
        raise ValueError("frames of an animation want one size")
    duration = milliseconds if isinstance(milliseconds, int) else list(milliseconds)
    with atomic_path(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)
