"""The same picture again: what "same" means is recorded in its provenance, and every recorded input is compared."""

from __future__ import annotations

from typing import Any

from ..base.contracts import Painter, Picture, Provenance
from ..base.errors import InputError
from ..base.infotext import Parameters, parameters_of
from .image2image import paint_over
from .like import Taken
from .text2image import collect

COMPARED = ("fingerprint", "versions", "device", "precision", "backend", "threads", "batch", "noise", "decoded", "knobs")


def repaint(painter: Painter, told: Provenance) -> tuple[Picture, dict[str, tuple[Any, Any]]]:
    """(the picture, {recorded input: (then, now)} of those that differ).

    It is painted in a batch of the recorded size, because the same batch is part of what makes pixels bit-equal; each
    row of a batch has its own noise, so copies of the request serve as its neighbours.
    """
    request = told.request.model_copy(update={"knobs": dict(told.knobs)})
    batch = [request.model_copy(update={"id": str(i)}) for i in range(told.batch)]
    picture = collect(paint_over(painter, batch), batch)[0]
    now = picture.provenance
    assert now is not None
    differing = {
        name: (getattr(told, name), getattr(now, name)) for name in COMPARED if getattr(told, name) != getattr(now, name)
    }
    return picture, differing


def repaint_like(painter: Painter, parameters: Parameters, taken: Taken) -> tuple[Picture, dict[str, tuple[Any, Any]]]:
    """The same for a picture of another program: (the picture, {what differs: (as its file says, here)}).

    taken: what the painter follows of `parameters`. Raises InputError where no seed is said, without which nothing is
    painted again.
    """
    if taken.seed is None:
        raise InputError("a file that says the seed", "one that does not", "`giverny paint --like FILE` takes the rest of it.")
    request = taken.request()
    picture = collect(paint_over(painter, [request]), [request])[0]
    assert picture.provenance is not None
    return picture, differences(parameters, taken, picture.provenance)


def differences(parameters: Parameters, taken: Taken, now: Provenance) -> dict[str, tuple[Any, Any]]:
    """{what: (as the file says, here)} of what makes the painted picture another than the file's: settings not followed,
    the model, the program, the device, which no other program writes down."""
    here = parameters_of(now).settings
    wanted = {key: parameters.settings.get(key) for key in ("Model", "Model hash", "RNG", "Version")}
    if parameters.dialect == "a1111":
        wanted["RNG"] = wanted["RNG"] or "GPU"
    differing: dict[str, tuple[Any, Any]] = {
        key: (value or "not said", here.get(key)) for key, value in wanted.items() if value != here.get(key)
    }
    if parameters.dialect != "giverny":
        differing["device"] = ("not said", f"{now.device}, {now.precision}")
    for note in taken.notes:
        if note.key and note not in parameters.notes:
            way = "followed in another way" if note.key in taken.became else "not followed"
            differing.setdefault(note.key, (parameters.settings.get(note.key, "not said"), way))
    return differing
