"""giverny paint: words become pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import click

from ..painters.diffusion.knobs import DiffusionKnobs
from .begun import FILLS, begun_from, parse_margins
from .knob_flags import knob_flags
from .lists import in_styles, lines_of
from .voice import Voice, speaks

PREVIEW_EVERY = 0.5  # seconds
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@click.command("paint")
@click.argument("prompts", nargs=-1, metavar="PROMPT...")
@click.option(
    "--like",
    "file",
    type=click.Path(path_type=Path),
    default=None,
    help="Take prompt, seed, size, model and settings from this picture's file; what is given beside it wins.",
)
@click.option(
    "--from", "origin", type=click.Path(path_type=Path), default=None, help="Start from this picture, not from noise."
)
@click.option("--strength", type=float, default=None, help="With --from: 0 the picture as it is, 1 painted anew.  [0.6]")
@click.option("--mask", default=None, metavar="FILE|alpha", help="With --from: white is painted; alpha: what is transparent.")
@click.option("--mask-blur", "blur", type=click.FloatRange(0, 256), default=None, help="Pixels by which it is softened.  [0]")
@click.option("--mask-invert", "invert", is_flag=True, help="Black is painted, and white stays.")
@click.option("--fill", type=click.Choice(FILLS), default=None, help="What is under the mask at first.  [original]")
@click.option("--only-masked", is_flag=True, help="Paint around the mask alone, at the whole size, and paste it back.")
@click.option("--padding", type=click.IntRange(0, 8192), default=None, help="With --only-masked: pixels around it.  [32]")
@click.option("--extend", default=None, metavar="SIDE=PIXELS,...", help="With --from: a larger canvas, as left=64,top=32.")
@click.option("--overlap", type=click.IntRange(0, 1024), default=None, help="With --extend: pixels of the picture that change.")
@click.option("--fit", type=click.Choice(["crop", "pad", "stretch"]), default=None, help="How the picture comes to the size.")
@click.option(
    "--prompts",
    "listed",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="A list of prompts: a line each (settings may follow, as --steps 20), or a table (.csv, .tsv, .jsonl).",
)
@click.option("--style", "styles", multiple=True, metavar="NAME", help="A saved style around every prompt; once for each.")
@click.option(
    "--styles",
    "style_file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Where styles are saved.  [styles.csv of your models' folder]",
)
@click.option("-n", "count", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Pictures per prompt.")
@click.option("--seed", type=click.IntRange(0), default=None, help="Of the first picture; the k-th has seed + k. [random]")
@click.option("--negative", default=None, help="What to move away from.")
@click.option("--size", default=None, metavar="WxH", help="Pixels, such as 28x28.  [default: the model's own]")
@click.option("-m", "--model", default=None, help="A name from `giverny models`, or a model folder.")
@click.option(
    "-o",
    "out",
    type=click.Path(path_type=Path),
    default=Path("outputs"),
    show_default=True,
    help="Folder for the pictures.",
)
@click.option("--format", "form", type=click.Choice(["png", "jpeg", "webp"]), default="png", show_default=True)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=None, help="Of jpeg and webp.  [jpeg: 95, webp: every pixel is kept]"
)
@click.option(
    "--batch", type=click.IntRange(1), default=None, help="Pictures painted together at most.  [what the painter takes]"
)
@click.option("--trace", is_flag=True, help="Also write the way from noise to picture, into trace/.")
@click.option(
    "--preview",
    type=click.Path(path_type=Path),
    default=None,
    help="A PNG that shows, while they are painted, how far they are.",
)
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Any setting of the painter, by name.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True)
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="auto, plain or packed: the same network, computed differently.",
)
@knob_flags(DiffusionKnobs)
@speaks
def command(
    prompts: tuple[str, ...],
    file: Path | None,
    origin: Path | None,
    strength: float | None,
    mask: str | None,
    blur: float | None,
    invert: bool,
    fill: str | None,
    only_masked: bool,
    padding: int | None,
    extend: str | None,
    overlap: int | None,
    fit: str | None,
    listed: Path | None,
    styles: tuple[str, ...],
    style_file: Path | None,
    count: int,
    seed: int | None,
    negative: str | None,
    size: str | None,
    model: str | None,
    out: Path,
    form: str,
    quality: int | None,
    batch: int | None,
    trace: bool,
    preview: Path | None,
    settings: tuple[str, ...],
    device: str,
    precision: str,
    backend: str,
    voice: Voice,
    **flags: Any,
) -> None:
    """Paint PROMPTs. Pictures are 00000.png, 00001.png, ..., overviews sheet-*.png; existing files are never replaced, and
    what is done when you stop it (Ctrl-C) is there.

    \b
    giverny paint "a red dress" -n 4
    giverny paint "a dress" "a coat" --steps 30 --guidance 2 -o clothes --trace
    giverny paint --prompts list.txt --style "oil painting" --format webp
    giverny paint --like picture.png --steps 50
    giverny paint "a blue dress" --from dress.png --strength 0.5
    giverny paint "a blue dress" --from dress.png --mask mask.png --only-masked
    giverny paint "a blue dress" --from dress.png --extend left=64,right=32
    """
    import secrets

    from ..assembly import DEFAULT_MODEL, open_painter
    from ..base.recipe import override
    from ..pipelines.text2image import requests_for

    if not prompts and file is None and listed is None:
        raise click.UsageError("Missing argument 'PROMPT...', or --prompts FILE, or --like FILE.")
    if quality is not None and form == "png":
        raise click.UsageError("--quality: wants --format jpeg or webp; PNG keeps every pixel.")
    wanted_size = parse_size(size) if size else None
    knobs = override({k: v for k, v in flags.items() if v is not None}, settings)
    painter = open_painter(model or (model_of(file) if file else DEFAULT_MODEL), device, precision, backend)
    first = secrets.randbelow(2**32) if seed is None else seed
    lines = lines_of(prompts, listed, painter, voice)
    prompts = tuple(line.prompt for line in lines)
    begun: dict[str, Any] = {}  # how a picture of --like began, but for what it began with
    before: Any = None  # the same of a picture of ours, whole
    if file is None:
        requests = requests_for(prompts, count, first, negative or "", wanted_size, knobs)
    else:
        taken = pattern_of(file, painter, voice)
        taken = pattern_of(file, painter, voice)
        pattern, begun, before = taken.request(first), taken.start, taken.before
        first = pattern.seed if seed is None else seed
        words, away = prompts or (pattern.prompt,), pattern.negative if negative is None else negative
        parts = {"toward": pattern.toward, "variation": pattern.variation, "batch": pattern.batch}
        requests = requests_for(words, count, first, away, wanted_size or pattern.size, {**pattern.knobs, **knobs}, parts)
    requests = [lines[i // count].of(request, i % count) for i, request in enumerate(requests)] if lines else requests
    requests = in_styles(requests, styles, style_file)
    over = {"strength": strength, "mask": mask, "mask_blur": blur, "mask_invert": invert or None, "fill": fill, "fit": fit,
            "only_masked": only_masked or None, "padding": padding, "overlap": overlap,
            "extend": parse_margins(extend) if extend else None}  # fmt: skip
    given = {name: value for name, value in over.items() if value is not None}
    requests = begun_from(origin, given, begun, painter, requests, wanted_size, voice, before)
    pictures = paint_into(painter, requests, out, trace, voice, preview, form, quality, batch)
    voice.say(f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''} in {out}, seed {first}")


def model_of(file: Path) -> str:
    """The model here that a picture's file means; of our own pictures the place it was opened from, if it has no name here."""
    from ..assembly.matching import match_model, model_meant
    from ..checkpoints.picture_file import read_parameters
    from .read import own_words

    parameters, told = read_parameters(file), own_words(file)
    found = match_model(parameters)
    if found is None and told is not None:
        return str(told.model)
    return found.name if found else model_meant(parameters)


def pattern_of(file: Path, painter: Any, voice: Voice) -> Any:
    """What the painter takes of a file's settings, said aloud with what it does not."""
    from .read import what_is_taken

    parameters, taken = what_is_taken(file, painter)
    notes = [note.model_dump() for note in taken.notes]
    voice.event("like", file=file, dialect=taken.dialect, became=taken.became, knobs=taken.knobs, notes=notes)
    voice.say(f"like {file} ({parameters.dialect}): {', '.join(taken.became.values())}")
    for note in taken.notes:
        voice.say(f"note: {note}")
    return taken


def parse_size(text: str) -> tuple[int, int]:
    from ..base.errors import InputError

    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text.strip().lower())
    if not found or not int(found[1]) or found[2] == "0":
        raise InputError("a size such as 28x28 (width x height)", repr(text))
    return int(found[1]), int(found[2] or found[1])


def paint_into(
    painter: Any,
    requests: list[Any],
    out: Path,
    trace: bool,
    voice: Voice,
    preview: Path | None = None,
    form: str = "png",
    quality: int | None = None,
    batch: int | None = None,
) -> list[Any]:
    """Paint, writing each picture as soon as it is done; then the sheet, and the evolution where it was traced.

    preview: a PNG that shows the pictures on their way. batch: pictures painted together at most.
    """
    from contextlib import closing

    from ..base.contracts import Done
    from ..base.errors import InputError
    from ..pipelines.image2image import paint_over
    from ..pipelines.text2image import contact_sheet, evolution

    out.mkdir(parents=True, exist_ok=True)
    first = next_number(out)
    files = {r.id: out / f"{first + i:05d}{SUFFIXES[form]}" for i, r in enumerate(requests)}
    done: dict[str, Any] = {}
    failed: list[str] = []

    def painting() -> Generator[Any, None, None]:
        together = batch or len(requests)
        for i in range(0, len(requests), together):
            yield from paint_over(painter, requests[i : i + together], previews=preview is not None, trace=trace)

    shown = painting() if preview is None else previewed(painting(), preview)
    with closing(outcomes(shown, len(requests), "painting", voice, files, quality)) as events:
        try:
            for event in events:
                if isinstance(event, Done):
                    done[event.id] = event.artifact
                else:
                    failed.append(event.reason)
        except KeyboardInterrupt:
            voice.say(f"{len(done)} of {len(requests)} pictures are done, in {out}")
            raise
    pictures = [done[r.id] for r in requests if r.id in done]
    if pictures:
        sheet = out / f"sheet-{first:05d}.png"
        contact_sheet(pictures, columns_for(requests)).save(sheet)
        voice.event("sheet", file=sheet)
    if trace and pictures:
        write_trace(pictures, out / "trace", first, voice)
        overview = out / f"sheet-{first:05d}-evolution.png"
        evolution(pictures[:12]).save(overview)
        voice.event("evolution", file=overview)
    if failed:
        raise InputError("requests that can be painted", f"{len(failed)} that cannot: {failed[0]}")
    return pictures


def outcomes(
    painting: Any, count: int, what: str, voice: Voice, files: Mapping[str, Path], quality: int | None = None
) -> Generator[Any, None, None]:
    """Show how a painting of `count` pictures moves on, and give out what became of each request, Done or Failed.

    files: {id of a request: where its picture is written, as soon as it is done}. Closing this closes the painting.
    """
    from contextlib import closing

    from ..base.contracts import Done, Failed, Progress

    reached: dict[str, float] = {}  # how far each picture is; one of unforeseen steps counts when it is done
    with voice.progress(what, count) as move, closing(painting) as events:
        for event in events:
            if isinstance(event, Progress):
                reached[event.id] = event.step / event.total if event.total else 0
                move(sum(reached.values()), total=count)
            elif isinstance(event, Done | Failed):
                reached[event.id] = 1
                move(sum(reached.values()), total=count)
                if isinstance(event, Done) and event.id in files:
                    file = saved(event.artifact, files[event.id], quality, voice)
                    told = event.artifact.provenance
                    request = told.request.model_dump(include={"prompt", "seed"}) if told else {}
                    voice.event("picture", file=file, **request)
                yield event


def previewed(painting: Any, file: Path) -> Generator[Any, None, None]:
    """The same events, while a PNG shows what is known of all pictures: at most twice a second, and at the end."""
    from contextlib import closing
    from time import monotonic

    from ..base.contracts import Done, Progress
    from ..base.files import atomic_write
    from ..base.images import grid, png_bytes

    seen: dict[str, Any] = {}
    written = -math.inf
    with closing(painting) as events:
        for event in events:
            if isinstance(event, Done):
                seen[event.id] = event.artifact.pixels
            elif isinstance(event, Progress) and event.preview is not None:
                seen[event.id] = event.preview
                if monotonic() - written >= PREVIEW_EVERY:
                    atomic_write(file, png_bytes(grid(list(seen.values()))))
                    written = monotonic()
            yield event
    if seen:
        atomic_write(file, png_bytes(grid(list(seen.values()))))


def saved(picture: Any, file: Path, quality: int | None, voice: Voice) -> Path:
    """Write a picture; as PNG where a file of the kind that was wanted has no room for its words. Returns the file."""
    from ..base.errors import InputError
    from ..base.runtime import interrupts_held_back

    with interrupts_held_back():  # what is painted is written whole
        try:
            picture.save(file, quality)
            return file
        except InputError as error:
            if file.suffix != SUFFIXES["jpeg"]:
                raise
            voice.say(f"note: {file.stem} is written as PNG: {error}")
            picture.save(file.with_suffix(".png"))
            return file.with_suffix(".png")


def write_trace(pictures: list[Any], folder: Path, first: int, voice: Voice) -> None:
    """Per picture a strip of all moments and a moving picture of the same."""
    from ..base.images import write_gif
    from ..pipelines.text2image import evolution

    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures, start=first):
        evolution([picture], most=len(picture.trace)).save(folder / f"{i:05d}.png")
        write_gif(folder / f"{i:05d}.gif", picture.trace, 120)
        voice.event("trace", file=folder / f"{i:05d}.png")


def columns_for(requests: list[Any]) -> int | None:
    """Whole prompts side by side, about eight pictures a row; None leaves it to the sheet."""
    each = len(requests) // len({r.prompt for r in requests})
    return each * max(1, 8 // each) if 1 < each < len(requests) else None


def next_number(folder: Path) -> int:
    """The first number that no picture in the folder bears yet."""
    taken = [int(p.stem) for p in folder.iterdir() if p.suffix in SUFFIXES.values() and p.stem.isdigit()]
    return max(taken, default=-1) + 1
