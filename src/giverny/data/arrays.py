"""Sets that are one array of small pictures: MNIST's IDX files, and any other uint8 array.

IDX (LeCun's MNIST page): two zero bytes, a type code (8 = unsigned byte), the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values, the last dimension running fastest.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ..base.contracts import Sample
from ..base.errors import InputError, choose
from .captions import Captions

SPLITS = ("train", "test")
_PREFIX = {"train": "train", "test": "t10k"}
_DENSEST = 1100  # deflate cannot shrink anything further than about 1032 to 1


class ArraySource:
    """Pictures of one size in one array (a contracts.Source that can also `gather` many at once).

    pixels: uint8 (N, H, W, C), C = 1 or 3, in memory or memory-mapped. labels: (N,) integers, -1 where none.
    texts: the distinct tuples of captions; text_of: (N,) which of them belongs to a picture, default: its label.
    """

    def __init__(
        self,
        name: str,
        pixels: np.ndarray,
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
        texts: Sequence[tuple[str, ...]] = (),
        text_of: np.ndarray | None = None,
    ) -> None:
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[3] not in (1, 3):
            raise InputError("a uint8 array (N, H, W, 1 or 3)", f"{pixels.dtype} {pixels.shape}")
        self.name, self.pixels, self.classes = name, pixels, tuple(classes)
        self.labels = np.full(len(pixels), -1) if labels is None else np.asarray(labels, dtype=np.int64)
        if len(self.labels) != len(pixels):
            raise InputError(f"{len(pixels)} labels, one for each picture", str(len(self.labels)))
        self.texts = (*texts, ())  # index -1, of a picture without label, finds the empty tuple
        self.text_of = np.full(len(pixels), -1) if not texts else self.labels if text_of is None else text_of
        if len(pixels) and self.classes and not -1 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise InputError(f"labels below {len(self.classes)} in {name}", str(int(self.labels.max())))
        digest = hashlib.sha256(repr((pixels.shape, self.classes, self.texts)).encode())
        for part in (self.labels, self.text_of, *np.array_split(pixels, max(1, len(pixels) // 4096))):
            digest.update(np.ascontiguousarray(part).data)
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.pixels)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Many pictures in one move: uint8 (n, H, W, C)."""
        return self.pixels[indices]

    def captions_of(self, index: int) -> tuple[str, ...]:
        return self.texts[self.text_of[index]]

    def attributes_of(self, index: int) -> Mapping[str, str]:
        """The name of a picture's "class", where it has one."""
        label = int(self.labels[index])
        return {"class": self.classes[label]} if self.classes and label >= 0 else {}

    def read(self, index: int) -> Sample:
        label = int(self.labels[index])
        return Sample(
            pixels=np.array(self.pixels[index]),
            captions=self.texts[self.text_of[index]],
            label=None if label < 0 else label,
            name=f"{self.name}/{index}",
        )


def read_idx(path: str | Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, plain (memory-mapped, read-only) or gzip-compressed (in memory).

    Raises InputError on a wrong magic number, on a size that differs from the header's, and on damaged compression.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return _unpack_idx(path) if packed else _map_idx(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"a whole gzip file at {path}", str(error), "it may be cut short; fetch it again") from error
    except OSError as error:
        raise InputError(f"a readable IDX file at {path}", str(error), "check the path") from error


def _idx_shape(file: BinaryIO, path: Path) -> tuple[int, ...]:
    """Read the header; leaves the file at the first value."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
        raise InputError("an IDX file of unsigned bytes (it starts with 00 00 08)", f"{path}, which starts {magic.hex(' ')!r}")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InputError(f"{magic[3]} dimensions in the header of {path}", "a file that ends before them")
    return struct.unpack(f">{magic[3]}I", sizes)


def _map_idx(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        shape, start = _idx_shape(file, path), file.tell()
    promised, held = math.prod(shape), path.stat().st_size - start
    if promised != held:
        raise InputError(f"{promised} values in {path}, as its header says", str(held), "it may be cut short")
    # An empty file cannot be mapped.
    return np.memmap(path, np.uint8, "r", start, shape) if promised else np.zeros(shape, np.uint8)


def _unpack_idx(path: Path) -> np.ndarray:
    with gzip.open(path) as file:
        shape = _idx_shape(cast(BinaryIO, file), path)
        promised = math.prod(shape)
        if promised > path.stat().st_size * _DENSEST:  # a header that lies must not cost its promise in memory
            raise InputError(f"{promised} values in {path}, as its header says", f"{path.stat().st_size} packed bytes")
        values, held = np.empty(promised, dtype=np.uint8), 0
        while got := file.readinto(values.data[held:]):
            held += got
        # Reading past the end also makes gzip compare its checksum.
        if held != promised or file.read(1):
            found = "more" if held == promised else str(held)
            raise InputError(f"{promised} values in {path}, as its header says", found, "it may be damaged")
    return values.reshape(shape)


def find_idx(folder: str | Path, split: str) -> tuple[Path, Path] | None:
    """The picture and label files of a split, packed or not, or None where the folder has not both."""
    found = []
    for part in ("images-idx3", "labels-idx1"):
        stem = f"{_PREFIX[split]}-{part}-ubyte"
        # Some unpackers put a dot where the original has a dash.
        names = (stem, stem.replace("-idx", ".idx"), f"{stem}.gz")
        found += [path for name in names if (path := Path(folder) / name).is_file()][:1]
    return (found[0], found[1]) if len(found) == 2 else None


def open_idx(
    folder: str | Path, split: str = "train", captions: Captions | None = None, name: str | None = None
) -> ArraySource:
    """A folder with MNIST's file names: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, with or without `.gz`.

    captions: how labels are put into words; without them pictures have labels only. Raises InputError as `read_idx`,
    and where pictures and labels differ in number.
    """
    folder = Path(folder)
    files = find_idx(folder, choose(split, SPLITS, "split"))
    if files is None:
        wanted = f"{_PREFIX[split]}-images-idx3-ubyte and {_PREFIX[split]}-labels-idx1-ubyte, each perhaps with .gz"
        raise InputError(wanted, f"{folder} without both", "check that the folder is complete")
    pixels, labels = (read_idx(file) for file in files)
    if pixels.ndim != 3 or labels.ndim != 1:
        raise InputError("3 dimensions of pictures and 1 of labels", f"{pixels.ndim} and {labels.ndim} in {folder}")
    if len(pixels) != len(labels):
        raise InputError("as many labels as pictures", f"{len(labels)} and {len(pixels)} in {folder}", "fetch it again")
    if captions:
        classes, texts = captions.classes, captions.all()
    else:
        classes, texts = tuple(str(i) for i in range(int(labels.max(initial=0)) + 1)), ()
    return ArraySource(name or folder.resolve().name, pixels[..., None], labels, classes, texts)
