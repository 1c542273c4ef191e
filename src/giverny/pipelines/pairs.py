"""Pictures beside those they ought to be like, or were made from, pair by pair: PSNR, SSIM, edges, LPIPS, and how much was
changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from ..base.contracts import Score, Source, Start
from ..base.errors import InputError
from ..metrics.intervals import of_mean, of_share
from ..metrics.pairs import UNTOUCHED, change, edge_correlation, histogram, psnr, structural

Told = Callable[[str, int, int | None], None]  # (what is being done, how many so far, of how many)
Distance = Callable[[np.ndarray, np.ndarray], torch.Tensor]  # of two batches uint8 (B, H, W, 3) -> (B,)
# Of pictures (1, C, H, W) in [0, 1] twice and the span of their values, by the name of the score.
PAIRED: Mapping[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "PSNR": psnr, "SSIM": structural, "edge correlation": lambda x, y, _: edge_correlation(x, y), "change": change,
}  # fmt: skip


NAMED = 12  # pictures that look untouched, of which the names are told


def quiet(*_: Any) -> None:
    """Tells nobody."""


def compare_pairs(ours: Source, theirs: Source, distance: Distance | None = None, told: Told = quiet) -> list[Score]:
    """Pictures of one name (folders and endings aside) are a pair."""
    names = [_names(source) for source in (ours, theirs)]
    both = sorted(names[0].keys() & names[1].keys())
    if not both:
        raise InputError("pictures of the same names on both sides", f"none of {len(ours)} and {len(theirs)}")
    pairing = Pairing(distance)
    for done, name in enumerate(both, 1):
        pairing.add(name, *(source.read(n[name]).pixels for source, n in zip((ours, theirs), names, strict=True)))
        told("comparing", done, len(both))
    return pairing.scores(alone=len(ours) + len(theirs) - 2 * len(both))


class Pairing:
    """Compares pairs as they come. distance: LPIPS, where its weights are there."""

    def __init__(self, distance: Distance | None = None) -> None:
        self.distance = distance
        self._names: list[str] = []
        self._found: dict[str, list[float]] = {name: [] for name in (*PAIRED, *(["LPIPS"] if distance is not None else []))}

    def add(self, name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Two pictures uint8 (H, W, 3). Raises InputError for two of different sizes."""
        if ours.shape != theirs.shape:
            sizes = " and ".join(f"{p.shape[1]} x {p.shape[0]}" for p in (ours, theirs))
            raise InputError("pairs of pictures of one size", f"{name}: {sizes}")
        self._names.append(name)
        x, y = (torch.from_numpy(p).movedim(-1, 0)[None].double() / 255 for p in (ours, theirs))
        for measure, of in PAIRED.items():
            self._found[measure].append(float(of(x, y, 1.0)))
        if self.distance is not None:
            self._found["LPIPS"].append(float(self.distance(ours[None], theirs[None])))

    def begun(self, start: Start, painted: np.ndarray) -> None:
        """A picture uint8 (H, W, 3), and what it was begun from, as its painter saw that."""
        self.add(start.picture.name, painted, start.at((painted.shape[1], painted.shape[0])).pixels)

    def scores(self, alone: int = 0) -> list[Score]:
        """Means over all pairs, and the share that looks untouched. alone: pictures without a partner, for the conditions."""
        scores = [_score(name, np.array(found), alone) for name, found in self._found.items() if np.isfinite(found).any()]
        return [*scores, _untouched(np.array(self._found["change"]), self._names, alone)]


def _untouched(changes: np.ndarray, names: Sequence[str], alone: int) -> Score:
    """The share of pairs that look as if nothing had been done: of photographs made into paintings, the failed ones."""
    hits = int((changes <= UNTOUCHED).sum())
    least = [names[i] for i in np.argsort(changes, kind="stable")[: min(hits, NAMED)].tolist()]
    told = {"n": len(changes), "pictures_without_a_partner": alone, "up_to": UNTOUCHED, "named": least}
    told["histogram"] = histogram(changes)
    interval = of_share(hits, len(changes))
    return Score(name="untouched", value=hits / len(changes), interval=interval, conditions={**told, "interval_by": "Wilson's"})


def _names(source: Source) -> dict[str, int]:
    """{name without folders and ending: index}. Raises InputError where two pictures share one."""
    entries = getattr(source, "entries", None)
    if entries is None:
        raise InputError("a folder or archive of pictures with names", f"{source.name}, whose pictures have none")
    found: dict[str, int] = {}
    for index, entry in enumerate(entries):
        name = PurePosixPath(entry.name).stem
        if name in found:
            raise InputError("pictures of different names", f"{entries[found[name]].name} and {entry.name} in {source.name}")
        found[name] = index
    return found


def _score(name: str, found: np.ndarray, alone: int) -> Score:
    finite = found[np.isfinite(found)]
    more: dict[str, Any] = {"n": len(found), "pictures_without_a_partner": alone, "interval_by": "the spread from pair to pair"}
    if len(finite) < len(found):  # equal pictures have no finite PSNR
        more["note"] = f"{len(found) - len(finite)} pairs are equal and not in the mean"
    return Score(
        name=name,
        value=float(finite.mean()),
        interval=of_mean(torch.from_numpy(finite)) if len(finite) > 1 else None,
        conditions=more,
    )
