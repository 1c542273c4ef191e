"""Which settings of an infotext are missing or cannot be right, and what they may have been before a scanner or a person
spoiled them. Suggestions are for people; nothing acts on them. Ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from ..base.infotext import KEYS, SAMPLER_LABELS, SCHEDULE_LABELS, Note, known_sampler, read_size

NEEDED = ("Steps", "Sampler", "CFG scale", "Seed", "Size")  # what a picture cannot be painted again without
_HASHES = ("Model hash", "VAE hash", "Refiner hash")
_NUMBERS = {  # key: (least, most)
    "Steps": (1, 1000),
    "Seed": (0, 2**64 - 1),
    "Variation seed": (0, 2**64 - 1),
    "Clip skip": (1, 12),
    "Hires steps": (0, 1000),
    "CFG scale": (0, 100),
    "Denoising strength": (0, 1),
    "Variation seed strength": (0, 1),
    "Hires upscale": (1, 16),
}
_WHOLE = ("Steps", "Seed", "Variation seed", "Clip skip", "Hires steps")
# How scanning mistakes digits.
_DIGITS = str.maketrans({"O": "0", "o": "0", "Q": "0", "l": "1", "I": "1", "|": "1", "i": "1", "S": "5", "B": "8", "Z": "2"})
_VERSION = re.compile(r"[a-z]{0,10} ?\d+(\.\d+){1,3}\S*|[0-9a-f]{7,40}|[a-z][\w.+-]*", re.IGNORECASE)


def doubts(settings: Mapping[str, str]) -> list[Note]:
    """What is wrong with a set of settings, in their order; then what is missing. Nothing where there are none."""
    if not settings:
        return [Note(key="", problem="no settings were found")]
    notes = [note for key, value in settings.items() if (note := _doubt(key, value))]
    for key in NEEDED:
        if key not in settings:
            close = get_close_matches(key, [k for k in settings if k not in KEYS], n=1, cutoff=0.7)
            notes.append(Note(key=key, problem="missing", suggestion=f"perhaps {close[0]!r} is meant" if close else ""))
    if "Model" not in settings and "Model hash" not in settings:
        notes.append(Note(key="Model", problem="missing, and its hash as well"))
    return notes


def _doubt(key: str, value: str) -> Note | None:
    """A note on a value that cannot be right; None where nothing speaks against it."""
    plain = key in KEYS and "prompt" not in key and "hashes" not in key and not value.startswith(("{", "["))
    swallowed = next((k for k in KEYS if re.search(rf"[\s.;]{re.escape(k)}\s*:", value)), None) if plain else None
    if swallowed:
        head = re.split(rf"[\s.;]+{re.escape(swallowed)}\s*:", value)[0]
        if key in _NUMBERS:
            head = head.translate(_DIGITS)
        return Note(key=key, problem=f"{value!r} holds another setting", suggestion=f"perhaps {head!r}, then {swallowed!r}")
    wrong = _wrong(key, value)
    if not wrong:
        return None
    better = next((s for s in _spellings(key, value) if s != value and not _wrong(key, s)), None)
    return Note(key=key, problem=f"{value!r} is not {wrong}", suggestion=f"perhaps {better!r}" if better else "")


def _wrong(key: str, value: str) -> str:
    """What the value should be and is not; "" where it may be right."""
    if key in _NUMBERS:
        least, most = _NUMBERS[key]
        pattern = r"\d{1,20}" if key in _WHOLE else r"\d{1,6}(\.\d{1,20})?(e-\d\d?)?"
        right = bool(re.fullmatch(pattern, value, re.ASCII)) and least <= float(value) <= most
        return "" if right else f"a {'whole ' if key in _WHOLE else ''}number from {least} to {most}"
    if key == "Sampler":
        return "" if known_sampler(value) else "a sampler that is known"
    if key == "Schedule type":
        return "" if value.lower() in (s.lower() for s in SCHEDULE_LABELS) else "a schedule that is known"
    if key == "Size":
        size = read_size(value)
        return "" if size and min(size) >= 1 and max(size) <= 16384 else "a width and height such as 512x512"
    if key in _HASHES:
        right = bool(re.fullmatch(r"[0-9a-fA-F]{8}|[0-9a-fA-F]{10}|[0-9a-fA-F]{12}|[0-9a-fA-F]{64}", value))
        return "" if right else "a hash of 8, 10, 12 or 64 digits (0-9, a-f)"
    if key == "Version":
        return "" if _VERSION.fullmatch(value) else "a version such as v1.8.0"
    return ""


def _spellings(key: str, value: str) -> Iterable[str]:
    """What a spoiled value may have been, likeliest first."""
    tight = re.sub(r"\s+", "", value)
    if key in ("Sampler", "Schedule type"):
        labels = SAMPLER_LABELS.values() if key == "Sampler" else SCHEDULE_LABELS
        known = [*labels, *(f"{s} {t}" for s in labels for t in ("Karras", "Exponential") if key == "Sampler")]
        yield from get_close_matches(value, known, n=1, cutoff=0.7)
    elif key == "Version":
        yield re.sub(r"[\s,_]+", ".", value.strip().translate(_DIGITS))
    elif key in _HASHES:
        yield tight.lower().translate(_DIGITS).translate(str.maketrans("s", "5"))
    elif key == "Size":
        first, cross, second = re.split(r"([x×X*])", tight, maxsplit=1) if re.search(r"[x×X*]", tight) else (tight, "", "")
        yield first.translate(_DIGITS) + cross + second.translate(_DIGITS)
    elif key in _NUMBERS:
        yield tight
        yield tight.translate(_DIGITS)
        yield re.sub(r"\s+", ".", value.strip().translate(_DIGITS))
        yield value.translate(_DIGITS).strip(" .;:'`")
