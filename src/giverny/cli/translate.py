"""giverny translate: pictures become others, such as photographs paintings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..painters.translator.knobs import TranslatorKnobs
from .knob_flags import knob_flags
from .voice import Voice, speaks


@click.command("translate")
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PHOTO...")
@click.option("--to", "model", default="monet", show_default=True, help="A name from `giverny models`, or a model folder.")
@click.option(
    "-o",
    "out",
    type=click.Path(path_type=Path),
    default=Path("translated"),
    show_default=True,
    help="Folder for the pictures; of a single photo also the file to write, such as painting.jpg.",
)
@click.option("--as", "form", type=click.Choice(["png", "jpg", "webp"]), default="png", show_default=True, help="Kind of file.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    default=None,
    help="How much of it is laid over the photo; of a diffusion model, how much is painted anew.  [default: 1, or 0.6]",
)
@click.option(
    "--size", default=None, metavar="WxH", help="Pixels, such as 256x256.  [default: the photo's own, a diffusion model's own]"
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="How strokes fall.")
@click.option("--again", is_flag=True, help="Also those that are there already, made in the same way.")
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Any setting of the painter, by name.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True)
@knob_flags(TranslatorKnobs)
@speaks
def command(
    photos: tuple[Path, ...],
    model: str,
    out: Path,
    form: str,
    strength: float | None,
    size: str | None,
    seed: int,
    again: bool,
    settings: tuple[str, ...],
    device: str,
    precision: str,
    voice: Voice,
    **flags: Any,
) -> None:
    """Translate PHOTOs, of any size: files, or folders with all that lies below them. A photo that cannot be read is named, and
    the rest is done; called again, it goes on where it was. Leaves with 2 where a photo could not be translated.

    \b
    giverny translate garden.jpg
    giverny translate holidays/ --to monet -o painted --as jpg
    giverny translate garden.jpg --strength 0.7 -o soft.png
    giverny translate garden.jpg --to runs/monet-double --set begin=crossed
    """
    from contextlib import closing

    from ..assembly import open_painter
    from ..base.errors import InputError
    from ..base.recipe import override
    from ..pipelines.translate import jobs_for, translate
    from .paint import parse_size

    wanted = parse_size(size) if size else None
    jobs = jobs_for(photos, out, f".{form}")
    painter = open_painter(model, device, precision)
    knobs = override({name: value for name, value in flags.items() if value is not None}, settings)
    if strength is None:
        strength = 1.0 if "start" in getattr(painter, "needs", ()) else 0.6
    counts, reasons, over = {"painted": 0, "there": 0, "failed": 0}, [], 0
    with (
        voice.progress("translating", len(jobs)) as move,
        closing(translate(painter, jobs, strength, wanted, knobs, again, seed)) as told,
    ):
        for one in told:
            if one.happened == "moving":
                move(over + one.share, total=len(jobs))
                continue
            over += 1
            counts[one.happened] += 1
            move(over, total=len(jobs))
            if one.happened == "failed":
                reasons.append(f"{one.job.file}: {one.reason}")
                voice.event("failed", file=one.job.file, reason=one.reason)
            else:
                voice.event("picture", file=one.job.target, of=one.job.file, happened=one.happened)
    for reason in reasons:
        voice.say(f"left out: {reason}")
    there = f", {counts['there']} already there" if counts["there"] else ""
    voice.say(f"{counts['painted']} translated{there}" + (f": {jobs[0].target}" if len(jobs) == 1 else f" in {out}"))
    voice.event("translated", **counts)
    if counts["failed"] == len(jobs):
        raise InputError("photos that can be translated", f"{len(jobs)} that cannot: {reasons[0]}")
    sys.exit(2 if reasons else 0)
