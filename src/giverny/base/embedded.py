"""Words inside picture files: where programs put them, and how they are found again.

PNG has text chunks. JPEG and WebP have EXIF: A1111 writes its infotext as UserComment, marked UNICODE and in UTF-16 with the
high byte first, which is what piexif, its reader, expects; Fooocus the same tag without mark, in the main folder; ComfyUI
writes "prompt:{...}" and "workflow:{...}" into the camera's make and model. Our JSON goes into MakerNote, the tag for a
maker's own data, which programs that keep EXIF keep unread.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from .errors import InputError
from .images import png_bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
JPEG_QUALITY = 95  # where none is said
_FOLDER, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_GRAPHS = (0x010E, 0x010F, 0x0110)  # description, make and model: where ComfyUI writes
_OURS = b"giverny\0"
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"


def keeps_pixels(suffix: str, quality: int | None = None) -> bool:
    """Whether a file of this kind holds every pixel as it was: a PNG does, and a WebP without a quality."""
    return suffix.lower() == ".png" or (suffix.lower() == ".webp" and quality is None)


def picture_bytes(pixels: np.ndarray, suffix: str, words: Mapping[str, str], quality: int | None = None) -> bytes:
    """A file of uint8 (H, W, 3). suffix: one of SUFFIXES, in any case. words: `parameters` and `giverny`, or none.

    quality: 1 to 100, of JPEG and WebP; None: JPEG_QUALITY, and a WebP that keeps every pixel.
    """
    kind = suffix.lower()
    if kind not in SUFFIXES:
        raise InputError(f"a file name that ends in {', '.join(SUFFIXES)}", repr(suffix))
    if kind == ".png":
        return png_bytes(pixels, words)
    exif = _exif(words) if words else b""
    out, image = io.BytesIO(), Image.fromarray(np.ascontiguousarray(pixels))
    if kind == ".webp":
        image.save(out, "WEBP", lossless=quality is None, quality=quality or 80, exif=exif)
        return out.getvalue()
    if len(exif) > 65533:  # a segment's length has 16 bits, and counts its own two
        raise InputError("words of at most 64 kB for a JPEG", f"{len(exif)} bytes of them", "Write PNG or WebP.")
    image.save(out, "JPEG", quality=quality or JPEG_QUALITY, subsampling=0, exif=exif)
    return out.getvalue()


def _exif(words: Mapping[str, str]) -> bytes:
    """EXIF with both texts: a TIFF header, a folder that names the EXIF folder, that folder, its values.

    Written out because the values must be of type 7, undefined, which Pillow gives to no tag it does not know: readers fail
    on anything else. The high byte comes first, in numbers as in letters.
    """
    values = {
        _MAKER_NOTE: _OURS + words["giverny"].encode(),
        _USER_COMMENT: _UNICODE + words["parameters"].encode("utf_16_be"),
    }
    first = 8 + 2 + 12 + 4  # where the EXIF folder begins: header, and a folder of one entry
    place = first + 2 + 12 * len(values) + 4
    entries = b""
    for tag, value in values.items():
        entries += struct.pack(">HHII", tag, 7, len(value), place)
        place += len(value)
    main = struct.pack(">2sHI", b"MM", 42, 8) + struct.pack(">HHHIII", 1, _FOLDER, 4, 1, first, 0)
    folder = struct.pack(">H", len(values)) + entries + bytes(4)
    return b"Exif\0\0" + main + folder + b"".join(values.values())


def read_words(path: str | os.PathLike[str]) -> dict[str, str]:
    """All words in a picture file by name: PNG's chunks by their keywords; of EXIF `parameters`, `giverny`, `prompt` and
    `workflow`; `comment` of GIF and JPEG. Raises InputError where the file is no picture."""
    try:
        with Image.open(path) as image:
            comment = image.info.pop("comment", None)
            # What stands before the pixels; of chunks behind them see below.
            words: dict[str, str] = {str(name): text for name, text in image.info.items() if isinstance(text, str)}
            # Neither pixels cut short nor damaged EXIF may cost the words that are there.
            with contextlib.suppress(Exception):
                words = {**_of_exif(image.getexif()), **words}
            with contextlib.suppress(Exception):
                if isinstance(image, PngImagePlugin.PngImageFile):
                    words |= {str(name): str(text) for name, text in image.text.items()}
    except Exception as error:  # as in read_picture
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError("a readable picture file", f"{path}: {said}") from error
    if isinstance(comment, bytes | str):
        words.setdefault("comment", decoded(comment))
    return {name: str(text) for name, text in words.items()}


def _of_exif(exif: Image.Exif) -> dict[str, str]:
    folder = exif.get_ifd(_FOLDER)
    words = {}
    comment, maker = (folder.get(tag, exif.get(tag)) for tag in (_USER_COMMENT, _MAKER_NOTE))
    if comment:
        words["parameters"] = decoded(comment)
    if isinstance(maker, bytes) and maker.startswith(_OURS):
        words["giverny"] = maker.removeprefix(_OURS).decode("utf-8", "replace")
    for text in (str(exif.get(tag, "")) for tag in _GRAPHS):
        name, mark, graph = text.partition(":")
        if mark and name in ("prompt", "workflow"):
            words[name] = graph.rstrip("\0")
    return words


def decoded(raw: Any) -> str:
    """The text of an EXIF user comment or of a file's comment, whichever encoding its writer took."""
    if not isinstance(raw, bytes):
        return str(raw)
    if raw.startswith(_UNICODE):
        body = raw.removeprefix(_UNICODE)
        # Most letters have a zero byte: first where the high byte comes first, which is how it should be.
        low_first = body[1::2].count(0) > body[0::2].count(0)
        return body.decode("utf_16_le" if low_first else "utf_16_be", "replace")
    return raw.removeprefix(_ASCII).removeprefix(bytes(8)).decode("utf-8", "replace").rstrip("\0")
