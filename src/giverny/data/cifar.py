"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the forms their page offers.

Python batches (a folder or its .tar.gz) are pickles, which can run any program when loaded carelessly. Ours are loaded
by an unpickler that knows three stand-ins for numpy's names and nothing else: it cannot reach any other function, and
not even numpy's own code sees the foreign bytes before their type and length have been checked. Binary batches
(rows of label bytes and 3072 pixels) need no such care.
"""

from __future__ import annotations

import io
import math
import pickle
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..base.errors import InputError, choose
from .arrays import SPLITS, ArraySource
from .captions import CIFAR10, Captions

_PIXELS = 3 * 32 * 32
_LARGEST = 2**29  # bytes of one batch; the largest original has 155 million
# The batches of a split: of CIFAR-10, of CIFAR-100. The binary form adds ".bin".
_BATCHES = {
    "train": (("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"), ("train",)),
    "test": (("test_batch",), ("test",)),
}
_NAMES = ("batches.meta", "meta", "batches.meta.txt", "fine_label_names.txt")  # where the class names are


class _Dtype:
    """Stands in for numpy.dtype: only unsigned bytes are accepted."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1", "|u1", "uint8"):
            raise pickle.UnpicklingError(f"an array of type {code!r}")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like mean nothing for single bytes."""


class _Array:
    """Stands in for numpy.ndarray, and for the function that makes an empty one to be filled by `__setstate__`."""

    values: np.ndarray

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or math.prod(shape) != len(raw):
            raise pickle.UnpicklingError("an array whose bytes do not fit its shape")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Bytes:
    """Stands in for `codecs.encode`: Python 3 writes bytes into old pickles as a text and its encoding."""

    def __new__(cls, text: Any, encoding: Any) -> bytes:  # type: ignore[misc]
        if encoding != "latin1" or not isinstance(text, str):
            raise pickle.UnpicklingError(f"text to be encoded as {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        """Never reached: its being here keeps a pickle from writing attributes onto the class."""


# Classes only, each with a `__setstate__`: a pickle can set attributes on anything else that it is given.
_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Bytes,
}


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise InputError(
                "a CIFAR batch, which holds bytes, lists, numbers and arrays only",
                f"a pickle that asks for {module}.{name}",
                "do not trust this file; fetch it again from its home page",
            )
        return _ALLOWED[module, name]


def read_batch(raw: bytes, where: str) -> dict[str, Any]:
    """The dictionary of a CIFAR python batch: keys as text, arrays as numpy uint8, other values as they are.

    Raises InputError if the pickle asks for anything but plain values and byte arrays, or is damaged.
    """
    try:
        held = _SafeUnpickler(io.BytesIO(raw), encoding="bytes").load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        raise InputError(f"a CIFAR batch in {where}", f"a damaged pickle ({error})", "fetch it again") from error
    if not isinstance(held, dict):
        raise InputError(f"a dictionary in {where}", type(held).__name__)
    keys = (key.decode("latin1") if isinstance(key, bytes) else str(key) for key in held)
    return {k: v.values if isinstance(v, _Array) else v for k, v in zip(keys, held.values(), strict=True)}


def _read_files(path: Path, split: str) -> dict[str, bytes]:
    """A split's files by their last name, from a folder (or a folder inside it) or from a tar archive, in memory."""
    wanted = {name for group in _BATCHES[split] for name in group}
    wanted |= {f"{name}.bin" for name in wanted} | set(_NAMES)
    if path.is_dir():
        found = [file for pattern in ("*/*", "*") for file in sorted(path.glob(pattern))]
        return {file.name: file.read_bytes() for file in found if file.name in wanted and file.is_file()}
    held = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in wanted and member.isfile() and member.size <= _LARGEST:
                    held[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"a whole tar archive at {path}", str(error), "it may be cut short; fetch it again") from error
    return held


def _from_pickles(files: dict[str, bytes], names: tuple[str, ...]) -> tuple[list[np.ndarray], list[Any]]:
    pixels, labels = [], []
    for name in names:
        batch = read_batch(files[name], name)
        data, numbers = batch.get("data"), batch.get("labels", batch.get("fine_labels"))
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
            raise InputError(f"`data` of {_PIXELS} bytes a picture in {name}", f"keys {', '.join(batch)}")
        if (
            not isinstance(numbers, list)
            or len(numbers) != len(data)
            or not all(type(n) is int and 0 <= n < 1000 for n in numbers)
        ):
            raise InputError(f"{len(data)} whole numbers as labels in {name}", type(numbers).__name__)
        pixels.append(data)
        labels.append(numbers)
    return pixels, labels


def _from_binary(files: dict[str, bytes], names: tuple[str, ...]) -> tuple[list[np.ndarray], list[Any]]:
    """Rows of one label (CIFAR-10) or a coarse and a fine one (CIFAR-100), then 3072 pixels, plane by plane."""
    pixels, labels = [], []
    for name in names:
        head = 1 if "batch" in name else 2
        raw = np.frombuffer(files[f"{name}.bin"], np.uint8)
        if not len(raw) or len(raw) % (head + _PIXELS):
            raise InputError(f"rows of {head + _PIXELS} bytes in {name}.bin", f"{len(raw)} bytes", "fetch it again")
        rows = raw.reshape(-1, head + _PIXELS)
        pixels.append(rows[:, head:])
        labels.append(rows[:, head - 1])
    return pixels, labels


def _class_names(files: dict[str, bytes]) -> tuple[str, ...]:
    for name, key in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if name in files:
            held = read_batch(files[name], name).get(key)
            if not isinstance(held, list) or not all(isinstance(n, bytes | str) for n in held):
                raise InputError(f"a list of names under {key!r} in {name}", type(held).__name__, "fetch it again")
            return tuple(n.decode("latin1") if isinstance(n, bytes) else n for n in held)
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        if name in files:
            return tuple(files[name].decode("latin1").split())
    return ()


def is_cifar(path: Path) -> bool:
    """Whether a path looks like CIFAR: a tar archive, or a folder with its list of class names."""
    if path.is_file():
        return path.name.endswith((".tar.gz", ".tgz", ".tar"))
    return any(file.is_file() for name in _NAMES for file in (path / name, *path.glob(f"*/{name}")))


def open_cifar(
    path: str | Path, split: str = "train", captions: Captions | None = None, name: str | None = None
) -> ArraySource:
    """CIFAR-10 or -100 from a folder or tar archive, python or binary form: pictures 32x32, colour.

    captions: how labels are put into words; default: CIFAR-10's own for ten classes, else the class names.
    Raises InputError on missing, damaged or hostile files.
    """
    path = Path(path)
    files = _read_files(path, choose(split, SPLITS, "split"))
    for names in _BATCHES[split]:
        if all(n in files for n in names):
            pixels, labels = _from_pickles(files, names)
            break
        if all(f"{n}.bin" in files for n in names):
            pixels, labels = _from_binary(files, names)
            break
    else:
        wanted = " or ".join(", ".join(names) for names in _BATCHES[split])
        raise InputError(f"CIFAR's files {wanted} (or with .bin) in {path}", ", ".join(sorted(files)) or "none of them")
    planes = np.concatenate(pixels).reshape(-1, 3, 32, 32)
    numbers = np.concatenate([np.asarray(part, dtype=np.int64) for part in labels])
    classes = _class_names(files)
    if captions is None and classes == CIFAR10.classes:
        captions = CIFAR10
    if captions:
        classes = captions.classes
    texts = captions.all() if captions else [(c.replace("_", " "),) for c in classes]
    return ArraySource(name or path.name.split(".")[0], planes.transpose(0, 2, 3, 1), numbers, classes, texts)
