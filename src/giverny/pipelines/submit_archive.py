"""The archive that a competition asks for: its rules, whether an archive keeps them, and writing one that does.

The rules are those of "I'm Something of a Painter Myself" (Kaggle, gan-getting-started): images.zip with 7,000 to 10,000 JPEGs
of 256 x 256 pixels, which are scored by MiFID. Ours: flat names and RGB.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..base.contracts import Frozen
from ..base.errors import InputError
from ..base.files import atomic_path
from ..data.trees import ZipTree


class Rules(Frozen):
    """What a competition asks of an archive."""

    least: int = 7_000  # pictures
    most: int = 10_000
    size: int = 256  # pixels along a side


MONET = Rules()


@dataclass(frozen=True)
class Checked:
    """How an archive keeps the rules."""

    pictures: int
    wrong: tuple[str, ...]  # a sentence for each breach; none: it keeps them
    copies: tuple[tuple[str, str], ...]  # (a picture, the first one that is equal to it in every pixel): no breach


def refuse_count(count: int, rules: Rules = MONET, what: str = "pictures", remedy: str = "") -> None:
    """Raises InputError where an archive of so many pictures would break the rules."""
    if not rules.least <= count <= rules.most:
        raise InputError(f"{rules.least:,} to {rules.most:,} {what}, as the competition asks", f"{count:,}", remedy)


def pack(made: Mapping[str, Path], out: Path, rules: Rules = MONET) -> Checked:
    """Write an archive of JPEGs, {name in it: file}, and look it through before it gets its name: whole or not at all.

    The same files make the same bytes: nothing is compressed again, and no time is told. Raises InputError where the rules are
    broken or the system refuses.
    """
    try:
        with atomic_path(out) as temporary:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                for name, part in made.items():
                    archive.writestr(zipfile.ZipInfo(name), part.read_bytes())
            found = check(temporary, rules)
            if found.wrong:
                raise InputError("an archive that keeps the rules", "; ".join(found.wrong[:5]))
            return found
    except OSError as error:
        raise InputError("room for the archive", f"{out}: {error.strerror or error}", "Make room, and run again.") from error


def check(path: Path, rules: Rules = MONET, told: Callable[[int, int], None] | None = None) -> Checked:
    """How an archive keeps the rules: number of pictures, size, JPEG, RGB, readable to the end, no folders, no name twice.

    told(done, total) hears how far it is. Raises InputError where there is no archive.
    """
    tree = ZipTree(path)
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist()]
    wrong, copies = [], []
    seen: set[str] = set()
    first: dict[bytes, str] = {}
    pictures = 0
    for number, name in enumerate(names, start=1):
        if "/" in name or "\\" in name:
            wrong.append(f"{name}: a folder" if name.endswith("/") else f"{name}: in a folder")
        if name in seen:
            wrong.append(f"{name}: there twice")
        seen.add(name)
        if not name.endswith("/"):
            pictures += 1
            try:
                flaw, digest = looked_at(tree.read_bytes(name), rules.size)
            except OSError as error:
                flaw, digest = str(error), b""
            if flaw:
                wrong.append(f"{name}: {flaw}")
            elif first.setdefault(digest, name) != name:
                copies.append((name, first[digest]))
        if told is not None:
            told(number, len(names))
    if not rules.least <= pictures <= rules.most:
        wrong.insert(0, f"{pictures:,} pictures, where {rules.least:,} to {rules.most:,} are asked for")
    return Checked(pictures, tuple(wrong), tuple(copies))


def looked_at(content: bytes, size: int) -> tuple[str, bytes]:
    """(why a file is no JPEG of size x size pixels in RGB, or "", a digest of its pixels)."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            wide, high = image.size
            if image.format != "JPEG":
                return f"no JPEG but {image.format}", b""
            if (wide, high) != (size, size):
                return f"{wide} x {high} pixels, not {size} x {size}", b""
            if image.mode != "RGB":
                return f"colours in {image.mode}, not in RGB", b""
            return "", hashlib.sha256(np.asarray(image).tobytes()).digest()
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        unknown = isinstance(error, UnidentifiedImageError)
        return "no picture" if unknown else f"damaged ({str(error) or type(error).__name__})", b""
