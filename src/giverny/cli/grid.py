"""giverny grid: one prompt under many settings, as one labelled sheet and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..painters.diffusion.knobs import DiffusionKnobs
from .knob_flags import knob_flags
from .voice import Voice, speaks

AXIS = "KNOB=A,B,C"


@click.command("grid")
@click.argument("prompts", nargs=-1, metavar="PROMPT...")
@click.option("--x", "across", required=True, metavar=AXIS, help="What runs across, and its values.")
@click.option("--y", "down", default=None, metavar=AXIS, help="What runs down.")
@click.option("--z", "third", default=None, metavar=AXIS, help="A third one: the rows of y for each of its values.")
@click.option("-n", "each", type=click.IntRange(1, 100), default=1, show_default=True, help="Pictures of a prompt in a cell.")
@click.option("--seed", type=click.IntRange(0), default=None, help="Of the first picture; the k-th has seed + k. [random]")
@click.option("--negative", default=None, help="What to move away from.")
@click.option("--size", default=None, metavar="WxH", help="Pixels, such as 512x768.  [default: the model's own]")
@click.option("-m", "--model", default=None, help="A name from `giverny models`, a model folder, or a Stable Diffusion model.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=None, help="Folder.  [outputs/grid-00000 and so on]")
@click.option("--store", type=click.Path(path_type=Path), default=None, help="Of the pictures.  [runs/experiments/store]")
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Any setting of the painter, by name.")
@click.option("--device", default="auto", show_default=True)
@knob_flags(DiffusionKnobs)
@speaks
def command(
    prompts: tuple[str, ...],
    across: str,
    down: str | None,
    third: str | None,
    each: int,
    seed: int | None,
    negative: str | None,
    size: str | None,
    model: str | None,
    out: Path | None,
    store: Path | None,
    settings: tuple[str, ...],
    device: str,
    voice: Voice,
    **flags: Any,
) -> None:
    """Paint PROMPT under every combination of settings, on the same noise: grid.png, and a page (report.html).

    Besides knobs an axis may be prompt (whole prompts), words (the first value is what stands in the prompt, the others what
    stands there instead), negative, size, seed or model. A value with a comma in it stands in quotation marks. What was
    painted before is not painted again: the command is `giverny compare` without a file.

    \b
    giverny grid "a barn" -m v15 --x steps=10,20,30 --y "sampler=euler a,ddim" --z guidance=4,7
    giverny grid "a barn <lora:ink:0.5>" -m v15 --x words=:0.5,:0.8,:1 --y seed=1,2,3
    giverny grid -m v15 --x 'prompt=a barn,"a barn, in snow"' --y model=v15,other
    """
    import json
    import secrets

    from ..assembly import DEFAULT_MODEL, Bench
    from ..base.picture import Picture
    from ..compare.grids import grid_of, grid_sheet
    from .compare import carry_out

    axes = [axis for axis in (across, down, third) if axis is not None]
    if not prompts and not any(axis.partition("=")[0].strip() == "prompt" for axis in axes):
        raise click.UsageError("Missing argument 'PROMPT...', or an axis such as --x 'prompt=a barn,a house'.")
    asked = {"negative": negative, "size": size, "seed": secrets.randbelow(2**32) if seed is None else seed}
    # a word in JSON's quotation marks is the same word in TOML, which settings are read as
    given = [f"{name}={json.dumps(value)}" for name, value in {**flags, **asked}.items() if value is not None]
    recipe = grid_of(model or DEFAULT_MODEL, prompts, axes, (0,), each, [*given, *settings])
    place, folder = store or Path("runs") / "experiments" / "store", out or _next(Path("outputs"))
    table = carry_out(recipe, Bench(recipe, device), place, folder, voice)
    sheet = folder / "grid.png"
    Picture(grid_sheet(table, place)).save(sheet)
    voice.event("sheet", file=sheet)
    voice.say(f"sheet in {sheet}, seed {asked['seed']}")


def _next(place: Path) -> Path:
    """The first folder of its kind that is not there yet."""
    taken = [int(path.name[5:]) for path in place.glob("grid-*") if path.name[5:].isdigit()]
    return place / f"grid-{max(taken, default=-1) + 1:05d}"
