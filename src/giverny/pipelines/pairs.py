"""Pictures beside those they ought to be like, or were made from, pair by pair: PSNR, SSIM, edges, LPIPS, and how much was
changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from ..base.contracts import Score, Source
from ..base.errors import InputError
from ..metrics.intervals import of_mean, of_share
from ..metrics.pairs import UNTOUCHED, change, edge_correlation, histogram, psnr, structural
from .measure import Measured, Told, quiet


def compare_pairs(
    ours: Source, theirs: Source, distance: Callable[[np.ndarray, np.ndarray], torch.Tensor] | None = None, told: Told = quiet
) -> Measured:
    """Pictures of one name (folders and endings aside) are a pair. distance: of two batches uint8 (B, H, W, 3) -> (B,)."""
    names = [_names(source) for source in (ours, theirs)]
    both = sorted(names[0].keys() & names[1].keys())
    if not both:
        raise InputError("pictures of the same names on both sides", f"none of {len(ours)} and {len(theirs)}")
    values: dict[str, list[float]] = {"PSNR": [], "SSIM": [], "edge correlation": [], "change": []}
    if distance is not None:
        values["LPIPS"] = []
    for done, name in enumerate(both, 1):
        a, b = (source.read(n[name]).pixels for source, n in zip((ours, theirs), names, strict=True))
        if a.shape != b.shape:
            raise InputError(
                "pairs of pictures of one size", f"{name}: {a.shape[1]} x {a.shape[0]} and {b.shape[1]} x {b.shape[0]}"
            )
        x, y = (torch.from_numpy(p).movedim(-1, 0)[None].double() / 255 for p in (a, b))
        values["PSNR"].append(float(psnr(x, y, 1.0)))
        values["SSIM"].append(float(structural(x, y, 1.0)))
        values["edge correlation"].append(float(edge_correlation(x, y)))
        values["change"].append(float(change(x, y, 1.0)))
        if distance is not None:
            values["LPIPS"].append(float(distance(a[None], b[None])))
        told("comparing", done, len(both))
    alone = len(ours) + len(theirs) - 2 * len(both)
    scores = [_score(name, np.array(found), alone) for name, found in values.items() if np.isfinite(found).any()]
    return Measured((*scores, _untouched(np.array(values["change"]), alone)))


def _untouched(changes: np.ndarray, alone: int) -> Score:
    """The share of pairs that look as if nothing had been done: of photographs made into paintings, the failed ones."""
    hits = int((changes <= UNTOUCHED).sum())
    told = {"n": len(changes), "pictures_without_a_partner": alone, "up_to": UNTOUCHED, "histogram": histogram(changes)}
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
