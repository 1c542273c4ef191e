"""Parts of a set that share nothing: crops of one photograph overlap, so all of them are learnt from or all held out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from ..base.contracts import Source
from ..base.errors import InputError
from .chance import hashed
from .parted import Chosen

CROP = r"(.+_\d+)_\d+\.\w+$"  # photo_017_2.jpg: the third crop of photograph 17
TESTED = 5  # one picture in so many is of the test part


def photographs_of(source: Source, pattern: str = CROP) -> list[str]:
    """The photograph that each picture of a source is of: what its file's name matches in the pattern's first bracket (or
    matches at all, where there is none), else its own name. No pattern, or a source without files: each for itself.

    Raises InputError for a pattern that is none.
    """
    entries = getattr(source, "entries", None)
    if not pattern or entries is None:
        return [str(index) for index in range(len(source))]
    try:
        known = re.compile(pattern)
    except re.error as error:
        raise InputError("a pattern of names (a regular expression)", f"{pattern!r}: {error}") from error
    place = 1 if known.groups else 0
    return [found[place] if (found := known.search(entry.name)) else entry.name for entry in entries]


def held_out(source: Source, count: int, seed: int, pattern: str = CROP) -> tuple[np.ndarray, np.ndarray]:
    """(held out, kept): indices, int64, rising. Whole photographs, drawn at random, of `count` pictures and at most a fifth in
    all (but one photograph at least).

    Raises InputError where nothing would be kept, for a pattern that is none, and for one other than the usual that no two
    names share.
    """
    total = len(source)
    most = max(1, min(count, total // TESTED))
    groups = _shuffled(source, range(total), "held out", seed, pattern)
    if pattern not in ("", CROP) and len(groups) == total > 1:
        raise InputError(f"a pattern that some names of {source.name} share", f"{pattern!r}, which sets all apart")
    held = whole(groups, most)
    kept = sorted(set(range(total)) - set(held))
    if not kept:
        raise InputError("pictures to learn from beside those held out", f"{source.name}, {total} in one group")
    return np.array(sorted(held), np.int64), np.array(kept, np.int64)


def whole(groups: Iterable[Sequence[int]], most: int) -> list[int]:
    """The members of groups in turn, passing over those that would make more than `most` in all; of the first in any case."""
    taken: list[int] = []
    for group in groups:
        if len(taken) + len(group) <= most or not taken:
            taken += group
        if len(taken) >= most:
            break
    return taken


def thinned(source: Source, kept: np.ndarray, share: float, seed: int, pattern: str = CROP) -> np.ndarray:
    """A share, above 0, of the kept pictures, int64, rising: whole photographs, drawn at random until there are as many. The
    larger share holds the smaller."""
    if share == 1:
        return kept
    wanted, rows = max(1, round(len(kept) * share)), list[int]()
    for group in _shuffled(source, kept.tolist(), "thinned", seed, pattern):
        if len(rows) < wanted:
            rows += group
    return np.array(sorted(rows), np.int64)


def _shuffled(source: Source, rows: Iterable[int], what: str, seed: int, pattern: str) -> list[list[int]]:
    """Pictures by photograph, in random order."""
    names, members = photographs_of(source, pattern), dict[str, list[int]]()
    for row in rows:
        members.setdefault(names[row], []).append(row)
    groups = [members[name] for name in sorted(members)]
    return [groups[place] for place in hashed(what, seed, 0, np.arange(len(groups))).argsort(kind="stable")]


def part_of(source: Source, split: str) -> Chosen:
    """One part of a set that comes in one: "test", a fifth of it, or "train", the rest. Always the same ones."""
    tested, learnt = held_out(source, len(source), 0)
    return Chosen(source, [int(row) for row in (tested if split == "test" else learnt)], split)
