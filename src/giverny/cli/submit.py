"""giverny submit: an archive of paintings for the Monet competition."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .voice import Voice, speaks

ENOUGH = "The competition's own, photo_jpg in gan-getting-started.zip, are as many as it asks for."
NAMED = 10  # failures and breaches that are named; of the others it is said how many


@click.command("submit")
@click.argument("photos", nargs=-1, type=click.Path(path_type=Path), metavar="[PHOTO...]")
@click.option("-n", "count", type=click.IntRange(1), default=None, help="So many pictures from noise, of seed 0 and on.")
@click.option("--to", "model", default="monet", show_default=True, help="A name from `giverny models`, or a model folder.")
@click.option(
    "-o", "out", type=click.Path(path_type=Path), default=Path("images.zip"), show_default=True, help="The archive to write."
)
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of the JPEGs.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Of photographs: 0 as they are, 1 all of the translation.",
)
@click.option("--size", default=None, metavar="WxH", help="Asked of a model whose settings enlarge, as --set upscale=2.  [256]")
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Any setting of the painter, by name.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True)
@click.option(
    "--check",
    "finished",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE.zip",
    help="Paint nothing: say whether this archive keeps the rules.",
)
@speaks
def command(
    photos: tuple[Path, ...],
    count: int | None,
    model: str,
    out: Path,
    quality: int,
    strength: float,
    size: str | None,
    settings: tuple[str, ...],
    device: str,
    precision: str,
    finished: Path | None,
    voice: Voice,
) -> None:
    """Write the images.zip of the competition "I'm Something of a Painter Myself": 7,000 to 10,000 JPEGs of 256 x 256 pixels.

    PHOTOs are files, folders, zip archives, folders in archives, or named sets. What is not of that size is cut to a square in
    its middle and brought to it. Fewer or more photographs are refused before anything is painted. What is done when you stop
    it (Ctrl-C) is kept beside the archive, and the same command goes on there. Leaves with 2 where a photograph could not be
    painted, or an archive does not keep the rules.

    \b
    giverny submit gan-getting-started.zip/photo_jpg --to monet
    giverny submit -n 7500 --to runs/monet-double
    giverny submit --check images.zip
    """
    if sum((bool(photos), count is not None, finished is not None)) != 1:
        raise click.UsageError("wants one of: PHOTO..., -n COUNT, --check FILE.zip.")
    if finished is not None:
        sys.exit(0 if keeps_rules(finished, voice) else 2)

    from ..assembly import open_painter
    from ..base.recipe import override
    from ..pipelines import submit
    from ..pipelines.submit_archive import refuse_count
    from .paint import parse_size

    wanted = parse_size(size) if size else None
    bad: list[tuple[str, str]] = []
    if count is not None:
        refuse_count(count)
        pieces = submit.drawn(count)
    else:
        found, bad = submit.photos_in(photos)
        pieces = submit.pieces_of(found)
        say_photographs(found, bad, voice)
        refuse_count(len(found), what="photographs that can be read", remedy=ENOUGH)
    painter = open_painter(model, device, precision)
    how: dict[str, Any] = {
        "strength": strength,
        "knobs": override({}, settings),
        "quality": quality,
        "size": wanted,
        "keep": bool(bad),
    }
    lost = watched(submit.submit(painter, pieces, out, **how), len(pieces), out, voice) + len(bad)
    if lost:
        kept = submit.parts_of(out)
        voice.say(f"{kept} is kept: with those left out mended and {out} moved away, the same command paints them alone")
    sys.exit(2 if lost else 0)


def say_photographs(found: list[Any], bad: list[tuple[str, str]], voice: Voice) -> None:
    """How many there are, in which folders, and which cannot be read."""
    from collections import Counter

    folders = Counter(str(photo.place.parent) for photo in found)
    where = "; ".join(f"{number:,} in {folder}" for folder, number in folders.most_common(4))
    voice.say(f"{len(found):,} photographs: {where}" + (f"; and {len(folders) - 4} more folders" if len(folders) > 4 else ""))
    voice.event("photographs", readable=len(found), unreadable=len(bad))
    for place, reason in bad:
        voice.event("failed", file=place, reason=reason)
    named([f"left out: {place}: {reason}" for place, reason in bad], voice)


def named(lines: list[str], voice: Voice) -> None:
    for line in lines[:NAMED]:
        voice.say(line)
    if len(lines) > NAMED:
        voice.say(f"and {len(lines) - NAMED:,} more")


def watched(painting: Any, count: int, out: Path, voice: Voice) -> int:
    """Show how the painting moves on, and say what came of it. Returns how many pictures failed."""
    from contextlib import closing

    from ..pipelines.submit import parts_of
    from ..pipelines.submit_archive import Checked

    counts, cut = {"painted": 0, "there": 0, "failed": 0}, 0
    reasons: list[str] = []
    copies: Sequence[tuple[str, str]] = ()
    begun: dict[str, float] = {}  # how far those are that are being painted
    try:
        with voice.progress("painting", count) as move, closing(painting) as events:
            for told in events:
                if isinstance(told, Checked):
                    copies = told.copies
                    continue
                if told.happened == "moving":
                    begun[told.piece.name] = told.share
                else:
                    begun.pop(told.piece.name, None)
                    counts[told.happened] += 1
                    cut += told.cut
                if told.happened == "failed":
                    reasons.append(f"left out: {told.piece.called}: {told.reason}")
                    voice.event("failed", file=told.piece.called, reason=told.reason)
                move(sum(counts.values()) + sum(begun.values()), total=count)
    except KeyboardInterrupt:
        done = counts["painted"] + counts["there"]
        voice.say(f"{done:,} of {count:,} pictures are done, in {parts_of(out)}: the same command goes on there")
        raise
    finally:
        named(reasons, voice)
    there = f", {counts['there']:,} of them there already" if counts["there"] else ""
    voice.say(f"{counts['painted'] + counts['there']:,} pictures in {out}{there}")
    say_copies(copies, voice)
    if cut:
        voice.say(f"of another size, so cut to a square and brought to 256 x 256 pixels: {cut:,}")
    voice.event("submitted", file=out, cut=cut, **counts)
    return len(reasons)


def say_copies(copies: Sequence[tuple[str, str]], voice: Voice) -> None:
    named([f"note: {name} is the same picture as {first}" for name, first in copies], voice)


def keeps_rules(file: Path, voice: Voice) -> bool:
    """Say whether an archive keeps the rules, and what in it does not."""
    from ..pipelines.submit_archive import MONET, check

    with voice.progress("looking", None) as move:
        found = check(file, told=lambda done, total: move(done, total=total))
    voice.event("checked", file=file, pictures=found.pictures, wrong=found.wrong, copies=found.copies)
    if found.wrong:
        voice.say(f"{file} does not keep the rules:")
        named(list(found.wrong), voice)
    else:
        voice.say(f"{file} keeps the rules: {found.pictures:,} JPEGs of {MONET.size} x {MONET.size} pixels")
    say_copies(found.copies, voice)
    return not found.wrong
