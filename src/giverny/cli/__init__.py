"""The command line. A file in this folder is a command; it is imported when it is called, so `--help` is quick."""

from __future__ import annotations

import importlib
import sys

import click

COMMANDS = {  # name -> what `giverny --help` says of it
    "paint": "Words become pictures.",
    "translate": "Pictures become others, such as photographs paintings.",
    "submit": "An archive of paintings for the Monet competition.",
    "walk": "The pictures between prompts, between seeds, or between both.",
    "read": "What a picture file says of how it was made, whichever program wrote it.",
    "reproduce": "Paint a picture again, and say what differs.",
    "train": "Train a model from a recipe.",
    "choose": "The best checkpoint of a training becomes its model.",
    "measure": "How good a model's pictures are, or those of a folder, beside real ones.",
    "compare": "An experiment, or a grid of settings, as a table and a page.",
    "styles": "Saved styles, parts of prompts under a name.",
    "grid": "One prompt under many settings, as a labelled sheet.",
    "models": "Models that can be opened by name.",
    "data": "Named data sets: where they come from, under which licence.",
    "doctor": "What this machine can do, and what is missing.",
    "demo": "A first look: ten prompts, a contact sheet, the way from noise to picture.",
}


class LazyGroup(click.Group):
    """Knows its commands by name; imports one only when it is called or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            from ..base.errors import nearest

            raise click.UsageError(f"no command {args[0]!r}; {nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(version("giverny"))
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version.")
def cli() -> None:
    """giverny: train, run, steer, measure and compare image generators.

    Every command takes --json (one JSON object per line on standard output) and --help.
    """


def main() -> None:
    """The program. Leaves with 0, 1 (not the same picture), 2 (input that cannot be used) or 130 (stopped by Ctrl-C)."""
    sys.exit(cli())
