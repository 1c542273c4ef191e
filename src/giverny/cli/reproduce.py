"""giverny reproduce: paint a picture again from what its file says, and tell what differs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .voice import Voice, speaks


@click.command("reproduce")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-m", "--model", default=None, help="Another place of the model, if not under its recorded name.")
@click.option("-o", "out", type=click.Path(path_type=Path), default=None, help="Where to write the new picture.")
@speaks
def command(file: Path, model: str | None, out: Path | None, voice: Voice) -> None:
    """Repaint FILE from its own words. Leaves with 0 if every pixel is the same, with 1 if not.

    Of a picture of giverny every recorded input is compared. Those of other programs (see `giverny read`) are painted as far
    as they can be followed here, and all that differs is listed: model, noise, version, settings.
    """
    from ..base.images import read_picture
    from .read import own_words

    told = own_words(file)
    again, differing = repaint_ours(file, told, model) if told else repaint_foreign(file, model, voice)
    if out is not None:
        again.save(out)
    before = read_picture(file).astype(int)
    same_shape = before.shape == again.pixels.shape
    off = abs(before - again.pixels.astype(int)) if same_shape else None
    most, count = (int(off.max()), int((off.max(axis=-1) > 0).sum())) if off is not None else (255, -1)
    lossy = told is not None and told.pixels is not None
    same = again.digest == told.pixels if lossy else most == 0
    for name, (then, now) in differing.items():
        voice.say(f"differs: {name} was {then}, is {now}")
    if same and lossy:
        voice.say(f"the same picture: every pixel is what {file} was made from, which does not keep them all")
    elif same:
        voice.say(f"the same picture: every pixel of {file} is equal")
    elif count < 0:
        voice.say(f"not the same picture: {before.shape[1]} x {before.shape[0]} then, {again.size[0]} x {again.size[1]} now")
    else:
        kind = ", as JPEG changes them" if file.suffix.lower() in (".jpg", ".jpeg") else ""
        voice.say(f"not the same picture: {count} pixels differ, by at most {most} of 255{kind}")
    voice.event("reproduced", file=file, same=same, pixels=count, most=most, differs=differing)
    sys.exit(0 if same else 1)


def repaint_ours(file: Path, told: Any, model: str | None) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """(picture, what differs) from the whole provenance of a picture of ours."""
    from ..assembly import open_painter
    from ..base.runtime import threads
    from ..pipelines.image2image import found_again
    from ..pipelines.reproduce import repaint

    told = found_again(told, file)
    painter = open_painter(model or told.model, told.device, told.precision, told.backend)
    with threads(told.threads):
        return repaint(painter, told)


def repaint_foreign(file: Path, model: str | None, voice: Voice) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """(picture, what differs) from the words of another program, as far as they can be followed."""
    from ..assembly import open_painter
    from ..assembly.matching import model_meant
    from ..checkpoints.picture_file import read_parameters
    from ..pipelines.like import like
    from ..pipelines.reproduce import repaint_like

    parameters = read_parameters(file)
    painter = open_painter(model or model_meant(parameters))
    taken = like(parameters, painter.knobs, getattr(painter, "can", frozenset()))
    for note in taken.notes:
        voice.say(f"note: {note}")
    return repaint_like(painter, parameters, taken)
