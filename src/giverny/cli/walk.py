"""giverny walk: the pictures between prompts, between seeds, or between both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..painters.diffusion.knobs import DiffusionKnobs
from .paint import command as paint
from .paint import next_number, outcomes, parse_size
from .voice import Voice, speaks

# Times that --even looks where the pictures change. Measured on fashion-mnist, 12 to 30 frames: the largest step fell from 3
# to 14 times the mean to 1.02 to 1.6 times.
MEASURES = 3


@click.command("walk")
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@click.option("--frames", type=click.IntRange(2, 10_000), default=24, show_default=True, help="Pictures in all.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=None, help="Of every picture.  [random]")
@click.option("--seeds", default=None, metavar="A,B,...", help="One for each prompt, or several for one prompt.")
@click.option("--loop", is_flag=True, help="Back to the first station at the end.")
@click.option("--even", is_flag=True, help="Frames at equal steps as seen, not as named: paints four times as many.")
@click.option(
    "--way", type=click.Choice(["linear", "spherical"]), default="linear", show_default=True, help="Mixing of text vectors."
)
@click.option("-o", "out", type=click.Path(path_type=Path), default=Path("walks"), show_default=True, help="Folder for it.")
@click.option("--fps", type=click.IntRange(1, 50), default=12, show_default=True, help="Frames a second in the GIF.")
@speaks
def command(
    prompts: tuple[str, ...],
    frames: int,
    seed: int | None,
    seeds: str | None,
    loop: bool,
    even: bool,
    way: Any,
    out: Path,
    fps: int,
    negative: str | None,
    size: str | None,
    model: str | None,
    settings: tuple[str, ...],
    device: str,
    precision: str,
    backend: str,
    voice: Voice,
    **flags: Any,
) -> None:
    """Walk from PROMPT to PROMPT, from seed to seed, or both at once: frames 00000.png, ..., walk.gif, sheet.png, walk.json.

    Every frame can be painted again from its file alone (`giverny reproduce`). In a folder that holds pictures already the
    numbers go on, and the other files bear the number of the first frame: nothing is replaced. After Ctrl-C the frames that
    are done stay, without the other files.

    \b
    giverny walk "a red dress" "a blue dress" --seed 1
    giverny walk "a dress" --seeds 1,7,42 --loop --frames 48
    giverny walk "a dress" "a coat" --seeds 1,7 --even
    """
    import secrets

    from ..assembly import DEFAULT_MODEL, open_painter
    from ..base.errors import InputError
    from ..base.recipe import override
    from ..pipelines import walk

    if seed is not None and seeds is not None:
        raise InputError("--seed or --seeds", "both")
    numbers = walk.read_seeds(seeds) if seeds is not None else [secrets.randbelow(2**32) if seed is None else seed]
    stations = walk.stations_for(prompts, numbers)
    places = walk.places_for(stations, frames, loop)
    shape, negative = parse_size(size) if size else None, negative or ""
    knobs = override({k: v for k, v in flags.items() if v is not None}, settings)
    painter = open_painter(model or DEFAULT_MODEL, device, precision, backend)
    seen: dict[float, Any] = {}
    for _ in range(MEASURES if even else 0):
        coarse = painted(painter, walk.requests_along(stations, places, way, negative, shape, knobs), "measuring", voice)
        seen.update(zip(places, coarse, strict=True))
        places = walk.respaced(seen, frames, loop, walk.legs_of(stations, loop))

    out.mkdir(parents=True, exist_ok=True)
    first = next_number(out)
    files = [out / f"{first + i:05d}.png" for i in range(frames)]
    pictures = painted(painter, walk.requests_along(stations, places, way, negative, shape, knobs), "walking", voice, files)
    told = walk.smoothness(pictures, loop, even=even, way=way)
    mark = f"-{first:05d}" if first else ""
    gif, sheet, record = out / f"walk{mark}.gif", out / f"sheet{mark}.png", out / f"walk{mark}.json"
    write_film(gif, pictures, fps)
    walk.walk_sheet(pictures, stations, places).save(sheet)
    write_record(record, stations, files, places, walk.steps_of(pictures, loop), told)
    voice.event("walk", gif=gif, sheet=sheet, record=record, **told.model_dump(mode="json"))
    voice.say(f"{frames} frames in {out}, seed {', '.join(map(str, numbers))}: {gif.name}, {sheet.name}, {record.name}")
    voice.say(in_words(told))
    if not even and told.unevenness and told.unevenness > 2:
        voice.say("The pictures change mostly in one place; --even puts more frames there.")


# Flags that mean the same in `giverny paint` are the same objects.
_SHARED = {"negative", "size", "model", "settings", "device", "precision", "backend", *DiffusionKnobs.model_fields}
command.params.extend(flag for flag in paint.params if flag.name in _SHARED)


def painted(painter: Any, requests: list[Any], what: str, voice: Voice, files: list[Path] | None = None) -> list[Any]:
    """The pictures in order; each is written as soon as it is done, where files are given."""
    from contextlib import closing

    from ..base.contracts import Failed
    from ..base.errors import InputError
    from ..pipelines.walk import able

    done: dict[str, Any] = {}
    written = {request.id: file for request, file in zip(requests, files, strict=True)} if files else {}
    with closing(outcomes(able(painter, requests), len(requests), what, voice, written)) as events:
        for event in events:
            if isinstance(event, Failed):
                raise InputError("a walk that can be painted", f"one that cannot: {event.reason}")
            done[event.id] = event.artifact
    return [done[request.id] for request in requests]


def write_film(path: Path, pictures: list[Any], fps: int) -> None:
    """An endless GIF. It counts in hundredths of a second, so some frames last one longer: the mean is `fps`."""
    from itertools import pairwise

    from ..base.images import write_gif
    from ..pipelines.walk import film

    ends = [round(100 * i / fps) * 10 for i in range(len(pictures) + 1)]
    write_gif(path, film(pictures), [end - start for start, end in pairwise(ends)])


def write_record(
    path: Path, stations: list[Any], files: list[Path], places: list[float], steps: list[float], told: Any
) -> None:
    """walk.json: stations, frames (file, place, distance to the next frame; in an open walk the last has none), smoothness."""
    from itertools import zip_longest

    from ..base.files import atomic_write

    rows = [{"file": f.name, "place": p, "step": s} for f, p, s in zip_longest(files, places, steps)]
    kept = {
        "stations": [s.model_dump() for s in stations],
        "frames": rows,
        "smoothness": told.model_dump(mode="json"),
    }
    atomic_write(path, json.dumps(kept, indent=1, ensure_ascii=False))


def in_words(told: Any) -> str:
    """Smoothness as one sentence, with its conditions."""
    knobs = told.conditions["knobs"]
    under = [told.conditions["model"], f"{told.frames} frames"]
    under += [f"{knobs['steps']} steps"] if "steps" in knobs else []
    under += [knobs["sampler"]] if "sampler" in knobs else []
    uneven = f" ({told.unevenness:.2f} times the mean)" if told.unevenness else ""
    straight = "to the farthest frame and back" if told.conditions["loop"] else "from end to end"
    detour = f", {told.detour:.2f} times as long as {straight}" if told.detour else ""
    return (
        f"steps between frames, RMS of pixels in 0..1: mean {told.mean_step:.4f}, largest {told.max_step:.4f}{uneven}; "
        f"path {told.path:.3f}{detour} ({', '.join(under)})"
    )
