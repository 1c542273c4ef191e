"""giverny reproduce: paint a picture again from what its file says, and tell what differs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .voice import Voice, speaks


@click.command("reproduce")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-m", "--model", default=None, help="Another place of the model, if not under its recorded name.")
@click.option("-o", "out", type=click.Path(path_type=Path), default=None, help="Where to write the new picture.")
@speaks
def command(file: Path, model: str | None, out: Path | None, voice: Voice) -> None:
    """Repaint FILE from its own provenance. Leaves with 0 if every pixel is the same, with 1 if not."""
    from ..assembly import open_painter
    from ..base.images import read_picture
    from ..base.picture import read_provenance
    from ..base.runtime import threads
    from ..pipelines.reproduce import repaint

    told = read_provenance(file)
    painter = open_painter(model or told.model, told.device, told.precision, told.backend)
    with threads(told.threads):
        again, differing = repaint(painter, told)
    if out is not None:
        again.save(out)
    before = read_picture(file).astype(int)
    same_shape = before.shape == again.pixels.shape
    off = abs(before - again.pixels.astype(int)) if same_shape else None
    most, count = (int(off.max()), int((off.max(axis=-1) > 0).sum())) if off is not None else (255, -1)
    for name, (then, now) in differing.items():
        voice.say(f"differs: {name} was {then}, is {now}")
    if most == 0:
        voice.say(f"the same picture: every pixel of {file} is equal")
    elif count < 0:
        voice.say(f"not the same picture: {before.shape[1]} x {before.shape[0]} then, {again.size[0]} x {again.size[1]} now")
    else:
        voice.say(f"not the same picture: {count} pixels differ, by at most {most} of 255")
    voice.event("reproduced", file=file, same=most == 0, pixels=count, most=most, differs=differing)
    sys.exit(0 if most == 0 else 1)
