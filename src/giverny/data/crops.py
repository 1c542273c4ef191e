"""Crops of photographs: those of one photograph overlap, so all of them are learnt from or all held out."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np

from ..base.contracts import Source
from ..base.runtime import derive_seed
from .folders import FolderSource

CROP = re.compile(r"(.+_\d+)_\d+")  # photo_017_2: the third crop of photograph 17


def photographs_of(source: Source) -> list[str]:
    """The photograph that each picture of a source is of: by its file's name where that reads as a crop's, else its own."""
    if not isinstance(source, FolderSource):
        return [str(index) for index in range(len(source))]
    found = []
    for entry in source.entries:
        place = PurePosixPath(entry.name)
        crop = CROP.fullmatch(place.stem)
        found.append(str(place.with_name(crop[1])) if crop else entry.name)
    return found


def held_out(source: Source, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(held out, kept): indices, int64, rising. Whole photographs, drawn at random by the source's fingerprint, until `count`
    pictures or more are held out; at most a fifth of the photographs, and at least one. One photograph alone is both."""
    names = np.array(photographs_of(source))
    different = np.unique(names)
    order = np.random.default_rng(derive_seed("held out", source.fingerprint)).permutation(different)
    sizes = np.array([(names == name).sum() for name in order])
    enough = int(np.searchsorted(sizes.cumsum(), count)) + 1
    chosen = order[: min(enough, max(1, len(order) // 5))]
    held = np.isin(names, chosen)
    everything = np.arange(len(names))
    return everything[held], everything[~held] if len(order) > 1 else everything
