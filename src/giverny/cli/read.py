"""giverny read: what a picture file says of how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .voice import Voice, speaks


@click.command("read")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--infotext", is_flag=True, help="Only the text that web interfaces take, to paste there.")
@speaks
def command(files: tuple[Path, ...], infotext: bool, voice: Voice) -> None:
    """Print what picture FILEs say: prompt, settings, what each setting is here, and what is missing or cannot be right.

    \b
    PNG, JPEG and WebP of giverny, AUTOMATIC1111 and its kin, ComfyUI, InvokeAI, NovelAI, Fooocus; infotext in .txt files.
    giverny read picture.png
    giverny paint --like picture.png     paints with these settings
    """
    from ..assembly.matching import match_model
    from ..base.infotext import write_infotext
    from ..painters.diffusion.painter import DiffusionPainter

    for file in files:
        parameters, taken = what_is_taken(file, DiffusionPainter)
        if infotext:
            voice.event("infotext", file=file, text=write_infotext(parameters))
            voice.say(write_infotext(parameters))
            continue
        found = match_model(parameters)
        notes = [note.model_dump() for note in taken.notes]
        voice.event(
            "read", file=file, **parameters.model_dump(exclude={"notes"}), knobs=taken.knobs, model=found and found.name,
            became=taken.became, notes=notes,
        )  # fmt: skip
        if voice.as_json:
            continue
        voice.say(f"{file}: {parameters.dialect}")
        voice.say(parameters.prompt)
        if parameters.negative:
            voice.say(f"Negative prompt: {parameters.negative}")
        here = {**taken.became, **({"Model": f"{found.name}, by its {found.by}"} if found else {})}
        rows = [{"setting": key, "value": value, "here": here.get(key)} for key, value in parameters.settings.items()]
        rows += [{"setting": key, "value": value} for key, value in taken.knobs.items() if key in taken.became]  # of ours
        voice.table(rows, ["setting", "value", "here"])
        for note in taken.notes:
            voice.say(f"note: {note}")


def what_is_taken(file: Path, painter: Any) -> tuple[Any, Any]:
    """(Parameters of a file, what a painter takes of them). Of our own files all that they say, which is more than infotext.

    painter: a Painter, or the class of one.
    """
    from ..checkpoints.picture_file import read_parameters
    from ..pipelines.like import like, like_ours

    parameters = read_parameters(file)
    can: frozenset[str] = getattr(painter, "can", frozenset())
    told = own_words(file)
    return parameters, like_ours(told, painter.knobs, can) if told else like(parameters, painter.knobs, can)


def own_words(file: Path) -> Any:
    """The provenance of a picture of ours; None of any other file."""
    from ..base.errors import InputError
    from ..base.picture import read_provenance

    try:
        return read_provenance(file)
    except InputError:
        return None
