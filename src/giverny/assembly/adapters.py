"""LoRAs and textual inversions by name: files in the folders `lora` and `embeddings` beside a user's own models."""

from __future__ import annotations

from pathlib import Path

from ..base.errors import InputError, nearest
from .places import user_models

LORA, EMBEDDINGS = "lora", "embeddings"
SUFFIXES = {LORA: (".safetensors",), EMBEDDINGS: (".safetensors", ".pt", ".bin")}


def adapters(kind: str) -> dict[str, Path]:
    """{name: file} of what lies in the folder `kind` of the user's models, in folders within it too; the name is the file's
    without its ending, and of two with one name the first in the order of paths counts."""
    found: dict[str, Path] = {}
    for path in sorted((user_models() / kind).rglob("*")):
        if path.suffix in SUFFIXES[kind] and path.is_file():
            found.setdefault(path.stem, path)
    return found


def find_lora(name: str) -> Path:
    """The file of a LoRA: by its name, or by path. Raises InputError with the nearest spelling."""
    known = adapters(LORA)
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.suffix in SUFFIXES[LORA] and path.is_file():
        return path
    wanted = f"the path of a LoRA ({SUFFIXES[LORA][0]}), or the name of one in {user_models() / LORA}"
    raise InputError(wanted, repr(name), nearest(name, known))


def embeddings() -> dict[str, Path]:
    """{word: file} of all textual inversions; the word is the file's name."""
    return adapters(EMBEDDINGS)
