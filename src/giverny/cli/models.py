"""giverny models: what can be opened by name, and how a trained model gets a name."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from .voice import Voice, speaks


@click.group("models", invoke_without_command=True)
@click.pass_context
@speaks
def command(ctx: click.Context, voice: Voice) -> None:
    """List the models that can be opened by name: those that ship, your own, and those in GIVERNY_MODELS."""
    if ctx.invoked_subcommand is not None:
        return
    from ..assembly import describe_model, models

    rows = []
    for name, folder in models().items():
        card = describe_model(folder)
        wide, high = card["size"]
        rows.append(
            {
                "name": name, "paints": card["title"], "size": f"{wide} x {high}", "licence": card["licence"],
                "megabytes": f"{card['bytes'] / 1e6:.1f}", "folder": card["folder"],
            }
        )  # fmt: skip
    voice.table(rows, ["name", "paints", "size", "licence", "megabytes"])


@command.command("show")
@click.argument("name")
@speaks
def show(name: str, voice: Voice) -> None:
    """Print a model's card: data, licence, hours, device, scores with their conditions."""
    import json

    from ..assembly import describe_model, find_model

    card = describe_model(find_model(name))
    voice.event("card", **card)
    voice.say(json.dumps({k: v for k, v in card.items() if k != "recipe"}, indent=2, ensure_ascii=False))


@command.command("add")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", default=None, help="The name to open it by.  [default: the card's]")
@click.option("--to", "place", type=click.Path(path_type=Path), default=None, help="Another place for models.")
@click.option("--replace", is_flag=True, help="Replace a model of that name.")
@speaks
def add(folder: Path, name: str | None, place: Path | None, replace: bool, voice: Voice) -> None:
    """Copy a model folder (or a run's) to where models are found by name."""
    from ..assembly import find_model, judges, user_models
    from ..base.errors import InputError
    from ..checkpoints.native import CARD, read_card, read_weights

    source = find_model(folder)
    card = read_card(source)
    read_weights(source, card)  # whole, and as its card says
    target = (place or user_models()) / (name or card.name)
    if target.exists() and not replace:
        raise InputError("a name that is free", f"{target.name}, taken by {target}", "Use --name or --replace.")
    staged = target.with_name(f".{target.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for file in (*card.files, CARD):
        shutil.copy2(source / file, staged / file)
    if target.exists():
        shutil.rmtree(target)
    staged.rename(target)
    voice.event("added", name=target.name, folder=target)
    use = f"giverny measure WHAT --judge {target.name}" if card.family in judges() else f"giverny paint PROMPT -m {target.name}"
    voice.say(f"{target.name} is now in {target}; use it: {use}")
