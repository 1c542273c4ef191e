"""CLIP's words from files: a tokenizer folder (tokenizer.json, or vocab.json with merges.txt), or OpenAI's list of merges.

The list (bpe_simple_vocab_16e6.txt, in the code of CLIP and of open_clip) is all that the vocabulary is made of: 256 bytes,
the same ending a word, 48,894 merges, and the two marks, in this order (openai/CLIP, clip/simple_tokenizer.py).
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from ..base.errors import InputError
from .tokenizer import END, START, SUFFIX, Tokenizer

MERGES = 49152 - 256 - 2  # of the list's lines; the first is a title, what comes after was never used


def read_words(place: Path, length: int = 77, pad: int | None = None) -> Tokenizer:
    """The tokenizer that lies at `place`. pad: instead of what the folder says, or else the end token. Raises InputError."""
    if place.is_file() and place.suffix in (".gz", ".txt"):
        return of_merges(_list(place), length, pad)
    if place.is_file():
        found = Tokenizer.read(place, length)
    elif (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
        merges = [tuple(line.split(" ")) for line in _lines(place / "merges.txt")]
        if any(len(pair) != 2 for pair in merges):
            raise InputError("a pair of symbols in each line", str(place / "merges.txt"))
        found = Tokenizer.of(_json(place / "vocab.json"), merges, length)  # type: ignore[arg-type]  # pairs, as just seen
    elif (place / "tokenizer.json").is_file():
        found = Tokenizer.read(place / "tokenizer.json", length)
    else:
        wanted = "tokenizer.json, or vocab.json and merges.txt, or the file bpe_simple_vocab_16e6.txt.gz"
        raise InputError(wanted, f"{place} without them", "Fetch the model's tokenizer folder.")
    if pad is not None:
        found.pad = pad
    elif place.is_dir() and (said := _padding(place)) is not None and (number := found.number(said)) is not None:
        found.pad = number
    return found


def of_merges(merges: list[tuple[str, str]], length: int = 77, pad: int | None = None) -> Tokenizer:
    """CLIP's vocabulary out of merges alone."""
    letters = byte_letters()
    symbols = [*letters, *(letter + SUFFIX for letter in letters), *(a + b for a, b in merges), START, END]
    return Tokenizer.of({symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}, merges, length, pad)


def byte_letters() -> list[str]:
    """A visible letter for each byte, in CLIP's order: bytes that are visible themselves first (GPT-2's rule)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = 256 - len(visible)
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(hidden)]


def _padding(place: Path) -> str | None:
    """The padding symbol that a folder names."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        said = _json(place / name).get("pad_token") if (place / name).is_file() else None
        if said is not None:
            return str(said["content"] if isinstance(said, dict) else said)
    return None


def _list(path: Path) -> list[tuple[str, str]]:
    try:
        text = gzip.decompress(path.read_bytes()).decode("utf-8") if path.suffix == ".gz" else path.read_text("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise InputError("a whole list of merges", f"{path} ({error})") from error
    pairs = [line.split() for line in text.split("\n")[1 : 1 + MERGES]]
    if len(pairs) != MERGES or any(len(pair) != 2 for pair in pairs):
        raise InputError(f"CLIP's list of {MERGES} merges", f"{path} with {len(pairs)} lines")
    return [(a, b) for a, b in pairs]


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise InputError("a readable list of merges", f"{path} ({error})") from error
    return [line for line in lines if line and not line.startswith("#version")]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("a readable file of words", f"{path} ({error})") from error
    if not isinstance(found, dict):
        raise InputError("symbols with their numbers", str(path))
    return found
