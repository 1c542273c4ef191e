"""LoRAs and textual inversions by name: files in the folders `lora` and `embeddings` beside a user's own models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..base.errors import InputError, nearest
from ..checkpoints.hashes import noted
from ..text.calls import extract
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


def digests(texts: Sequence[str]) -> dict[str, str]:
    """{name: SHA-256} of the LoRAs that prompts call, and of the textual inversions whose words may stand in them. A name that
    is not here is left out: whoever paints says so."""
    called = {call.name for text in texts for call in extract(text)[1] if call.kind == "lora"}
    files = {name: path for name, path in adapters(LORA).items() if name in called}
    files |= {name: Path(name) for name in called - files.keys() if Path(name).is_file()}
    words = {word: path for word, path in embeddings().items() if any(word.lower() in text.lower() for text in texts)}
    return {name: noted(path) for name, path in {**words, **files}.items()}


def embeddings() -> dict[str, Path]:
    """{word: file} of all textual inversions; the word is the file's name."""
    return adapters(EMBEDDINGS)
