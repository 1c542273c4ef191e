"""giverny styles: saved styles and what they add to a prompt."""

from __future__ import annotations

from pathlib import Path

import click

from .voice import Voice, speaks


@click.command("styles")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@speaks
def command(file: Path | None, voice: Voice) -> None:
    """List the saved styles of FILE, by default of styles.csv in your models' folder: columns name, prompt, negative_prompt.

    {prompt} in a style is where the prompt goes; without, the style is put behind it.
    giverny paint "a barn" --style NAME     paints in one
    """
    from ..assembly.places import styles_file
    from ..text.styles import read_styles

    styles = read_styles(file or styles_file())
    voice.table([style.model_dump() for style in styles.values()], ["name", "prompt", "negative"])
