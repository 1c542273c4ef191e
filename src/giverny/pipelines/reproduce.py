"""The same picture again: what "same" means is recorded in its provenance, and every recorded input is compared."""

from __future__ import annotations

from typing import Any

from ..base.contracts import Painter, Picture, Provenance
from .text2image import collect
from .walk import able

COMPARED = ("fingerprint", "versions", "device", "precision", "backend", "threads", "batch", "noise", "knobs")


def repaint(painter: Painter, told: Provenance) -> tuple[Picture, dict[str, tuple[Any, Any]]]:
    """(the picture, {recorded input: (then, now)} of those that differ).

    It is painted in a batch of the recorded size, because the same batch is part of what makes pixels bit-equal; each
    row of a batch has its own noise, so copies of the request serve as its neighbours.
    """
    request = told.request.model_copy(update={"knobs": dict(told.knobs)})
    batch = [request.model_copy(update={"id": str(i)}) for i in range(told.batch)]
    picture = collect(able(painter, batch), batch)[0]
    now = picture.provenance
    assert now is not None
    differing = {
        name: (getattr(told, name), getattr(now, name)) for name in COMPARED if getattr(told, name) != getattr(now, name)
    }
    return picture, differing
