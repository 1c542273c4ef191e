"""giverny demo: the first look, offline, with the model that ships."""

from __future__ import annotations

from pathlib import Path

import click

from .paint import paint_into
from .voice import Voice, speaks

SEED = 7


@click.command("demo")
@click.option("-o", "out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@speaks
def command(out: Path, voice: Voice) -> None:
    """Paint what the shipped model knows: a contact sheet, and the way from noise to picture."""
    from ..assembly import find_model, open_painter
    from ..checkpoints.native import read_card
    from ..pipelines.text2image import requests_for

    painter = open_painter()
    prompts = read_card(find_model()).prompts
    voice.say(f"{painter.name}: painting {', '.join(prompts)}")
    pictures = paint_into(painter, requests_for(prompts, 4, SEED), out, False, voice)
    traced = paint_into(painter, requests_for(prompts[:5], 1, SEED), out / "evolution", True, voice)
    voice.say(f"\n{len(pictures)} pictures and their contact sheet: {out / 'sheet-00000.png'} (or the newest sheet-*.png)")
    voice.say(f"{len(traced)} evolutions from noise: {out / 'evolution' / 'sheet-00000-evolution.png'}")
    voice.say('\nNext: giverny paint "a red dress" -n 4        giverny paint --help')
