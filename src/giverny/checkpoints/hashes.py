"""Short names by which model files are known elsewhere, all from SHA-256 (AUTOMATIC1111 stable-diffusion-webui, modules/
hashes.py, sd_models.py, extensions-builtin/Lora/network.py; kohya sd-scripts, library/train_util.py).

Of a folder that web interface knows no hash; ours is over the sorted lines "<path in the folder> <SHA-256 of the file>".
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Literal

from ..base.errors import InputError
from ..base.files import atomic_write, sha256_file

START, LENGTH = 0x100000, 0x10000  # of the old hash's window
SHORT, OLD, DATA = 10, 8, 12  # hex digits


def model_hash(digest: str) -> str:
    """Of a model or an autoencoder ("Model hash"): the first 10 digits of a file's SHA-256."""
    return digest[:SHORT]


def old_hash(path: Path) -> str:
    """The 8 digits used until 2022, over 64 KiB from the second MiB on; also of old LoRA files."""
    with _opened(path) as file:
        file.seek(START)
        return hashlib.sha256(file.read(LENGTH)).hexdigest()[:OLD]


def data_hash(path: Path) -> str:
    """The first 12 digits of `data_digest` ("Lora hashes"; of a model Civitai's "AutoV3")."""
    return data_digest(path)[:DATA]


def data_digest(path: Path) -> str:
    """64 digits over the tensors of a safetensors file without its header: notes do not change it."""
    with _opened(path) as file:
        head = file.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 0 <= size <= path.stat().st_size - 8:
            raise InputError("a whole safetensors file", str(path))
        file.seek(8 + size)
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(path: Path, files: tuple[Path, ...] = (), notes: Path | None = None) -> str:
    """64 digits of a file, or of a folder over these of its files. notes: where results are kept, as `noted`."""
    if not files:
        return noted(path, notes)
    lines = sorted(f"{file.relative_to(path).as_posix()} {noted(file, notes)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def noted(path: Path, notes: Path | None = None, part: Literal["file", "data"] = "file") -> str:
    """A file's SHA-256, looked up by path, size and time of change in `notes` (default: in the user's cache) if it was
    worked out before. Where nothing can be written there it is worked out each time. part: "data" for `data_digest`."""
    from platformdirs import user_cache_path

    notes = notes or user_cache_path("giverny", appauthor=False) / "hashes.json"
    stat = path.stat()
    mark = [stat.st_size, stat.st_mtime_ns]
    try:
        known = json.loads(notes.read_text("utf-8"))
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    name = str(path.resolve()) if part == "file" else f"{path.resolve()} ({part})"
    entry = known.get(name)
    if isinstance(entry, list) and entry[:2] == mark and len(entry) == 3:
        return str(entry[2])
    digest = sha256_file(path) if part == "file" else data_digest(path)
    with contextlib.suppress(InputError):
        atomic_write(notes, json.dumps({**known, name: [*mark, digest]}, indent=0))
    return digest


def _opened(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError("a readable file", f"{path}: {error.strerror or error}") from error
