"""giverny models: what can be opened by name, how a trained or published model gets a name, what a file of others is, and how
it is brought to another layout."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .voice import Voice, speaks

if TYPE_CHECKING:
    from ..painters.diffusion.published import Reading

FILE = click.Path(path_type=Path)
SHOWN = 8  # of what was left out of a file


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


def reads(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say how a published model is read; it gets them as `reading`."""
    options = (
        click.option("--ema", is_flag=True, help="The averaged weights (EMA) of a single file's U-Net."),
        click.option("--variant", default=None, help="Which weights of a folder, such as fp16."),
        click.option(
            "--prediction", type=click.Choice(["epsilon", "v", "sample"]), default=None, help="What the U-Net predicts."
        ),
        click.option(
            "--config", "configs", type=FILE, default=None, help="Diffusers folder whose configs say how it is built."
        ),
        click.option("--vae", "autoencoder", type=FILE, default=None, help="Another autoencoder: a file or folder."),
        click.option("--words", type=FILE, default=None, help="CLIP's vocabulary: a tokenizer folder or list of merges."),
    )

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from ..painters.diffusion.published import Reading

        names = ("ema", "variant", "prediction", "configs", "autoencoder", "words")
        return function(*args, reading=Reading(**{name: kwargs.pop(name) for name in names}), **kwargs)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


@command.command("add")
@click.argument("model", type=FILE)
@click.option("--name", default=None, help="The name to open it by.  [default: the card's, or the file's]")
@click.option("--to", "place", type=FILE, default=None, help="Another place for models.")
@click.option("--replace", is_flag=True, help="Replace a model of that name.")
@click.option("--copy", is_flag=True, help="Copy a published model's weights too; without, its name leads to where they lie.")
@reads
@speaks
def add(model: Path, name: str | None, place: Path | None, replace: bool, copy: bool, reading: Reading, voice: Voice) -> None:
    """Give a model a name: copy a model folder (or a run's), or note where a Stable Diffusion file or folder lies."""
    from ..assembly.opening import judges, published_path
    from ..assembly.published import add_published
    from ..checkpoints.native import read_card

    if (path := published_path(model)) is not None:
        target = add_published(path, name, reading, place, replace, copy)
    else:
        target = _add_own(model, name, place, replace)
    voice.event("added", name=target.name, folder=target)
    card = read_card(target)
    uses = {"picture to picture": f"translate PHOTO --to {target.name}"}
    use = f"measure WHAT --judge {target.name}" if card.family in judges() else f"paint PROMPT -m {target.name}"
    voice.say(f"{target.name} is now in {target}; use it: giverny {uses.get(card.task, use)}")


def _add_own(model: Path, name: str | None, place: Path | None, replace: bool) -> Path:
    from ..assembly import find_model, user_models
    from ..assembly.published import SOURCE
    from ..base.errors import InputError
    from ..checkpoints.native import CARD, check_files, read_card, write_card

    source = find_model(model)
    card = read_card(source)
    check_files(source, card)  # whole, and as its card says
    target = (place or user_models()) / (name or card.name)
    if target.exists() and not replace:
        raise InputError("a name that is free", f"{target.name}, taken by {target}", "Use --name or --replace.")
    staged = target.with_name(f".{target.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for file in (*card.files, CARD):
        shutil.copy2(source / file, staged / file)
    if card.name != target.name:  # what it paints says by which name to find it again
        write_card(staged, card.model_copy(update={"name": target.name}))
    if (source / SOURCE).is_dir():  # a published model's own files
        shutil.copytree(source / SOURCE, staged / SOURCE)
    if target.exists():
        shutil.rmtree(target)
    staged.rename(target)
    return target


@command.command("info")
@click.argument("model")
@reads
@speaks
def info(model: str, reading: Reading, voice: Voice) -> None:
    """Say what a file or folder of others is: kind, parameters, hashes, licence, what it predicts, what was left out."""
    import json

    from ..assembly.published import describe_published

    told = describe_published(model, reading)
    voice.event("model", **told)
    ignored = told.get("ignored", [])
    shown = told | ({"ignored": [*ignored[:SHOWN], f"and {len(ignored) - SHOWN} more"]} if len(ignored) > SHOWN else {})
    voice.say(json.dumps(shown, indent=2, ensure_ascii=False))


@command.command("convert")
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@reads
@speaks
def convert(source: Path, target: Path, reading: Reading, voice: Voice) -> None:
    """Write a Stable Diffusion model in another layout: TARGET.safetensors is a single file, anything else a diffusers folder.
    Every tensor stays as it is; TARGET must not be there yet."""
    from ..painters.diffusion.convert import convert

    made = convert(source, target, reading)
    voice.event("converted", target=target, tensors=made.tensors, ignored=made.ignored, notes=made.notes)
    left = f"; left out: {len(made.ignored)} entries that carry no weights" if made.ignored else ""
    voice.say(f"{target}: {made.tensors} tensors{left}")
    for note in made.notes:
        voice.say(note)
