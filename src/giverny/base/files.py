"""Files that are either whole or not there, and short names for contents (fingerprints).

Atomic writing is the usual recipe of databases: write a sibling, flush it to the disk, rename it over the target, flush
the folder. A reader, or a run killed at any moment, sees the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from .errors import InputError

_DIGITS = 16  # of a fingerprint: 64 bits, enough to tell apart all the models and runs of a person


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary sibling to write to; it becomes `path` when the block ends, and is removed when the block raises.

    The sibling's name starts with a dot and ends in `.part`, so that leftovers of a killed process are plain to see and
    no reader takes them for pictures; writers that go by the extension must be told the format. Missing folders are
    made, a symbolic link is followed. Raises InputError where the system refuses the place; errors of the block pass.
    """
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(None, "it is a folder")
    except OSError as error:
        raise _refused(target, error) from error
    # 40 letters of the name are at most 160 bytes: the whole stays below the 255 that file systems allow
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        _flush(temporary)
        try:
            temporary.replace(target)
        except OSError as error:
            raise _refused(target, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name != "nt":  # Windows cannot open a folder, and needs no such flush
        _flush(target.parent)


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a whole file or nothing; text is written as UTF-8 with its line ends as they are.

    Raises InputError where the system refuses (no rights, no room, a folder of that name).
    """
    with atomic_path(path) as temporary:
        try:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        except OSError as error:
            raise _refused(Path(path), error) from error


def _flush(path: Path) -> None:
    """Wait until the disk has it."""
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refused(path: Path, error: OSError) -> InputError:
    return InputError("a place to write to", f"{path}: {error.strerror or error}", "choose another place or make room")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, 64 hex digits. Raises InputError where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError("a readable file", f"{path}: {error.strerror or error}") from error


def fingerprint(value: Any) -> str:
    """16 hex digits that depend on a value's contents only: SHA-256 over canonical JSON (sorted keys, shortest floats).

    value: pydantic models, mappings, sequences, sets, paths, strings, numbers, booleans and None, nested at will. A
    model counts as the mapping of its fields. Whole numbers and floats differ (1 and 1.0). Raises TypeError for other
    things, and ValueError for infinities and NaN, which have no canonical form.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _as_json(value: Any) -> Any:
    """What the json module does not know by itself, in terms of what it knows."""
    if isinstance(value, BaseModel | Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=fingerprint)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, dtypes, shapes and bytes; neither the order nor the device counts."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # seen as bytes, since numpy knows no bfloat16
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_DIGITS]
