"""giverny data: named sets, with licence and checksum."""

from __future__ import annotations

import os
from typing import Any

import click

from .voice import Voice, speaks


@click.group("data", invoke_without_command=True)
@click.pass_context
@speaks
def command(ctx: click.Context, voice: Voice) -> None:
    """List the named sets. They are looked for in GIVERNY_DATA, then in the user's cache, then fetched where possible."""
    if ctx.invoked_subcommand is not None:
        return
    from ..data.catalog import CATALOG, find

    rows = []
    for entry in CATALOG.values():
        here = find(entry)
        state = str(here) if here else ("can be fetched" if entry.public else "not here")
        rows.append({**_row(entry), "where": state})
    voice.table(rows, ["name", "what", "pictures", "licence", "where"])
    if "GIVERNY_DATA" not in os.environ:
        voice.say("\nGIVERNY_DATA is not set; `giverny data show NAME` says where a set is had.")


def _row(entry: Any) -> dict[str, Any]:
    return {
        "name": entry.name,
        "what": entry.what,
        "pictures": entry.count,
        "size": entry.size,
        "licence": entry.licence,
    }


@command.command("show")
@click.argument("name")
@speaks
def show(name: str, voice: Voice) -> None:
    """Say everything about a set: source, licence, files and their checksums."""
    import json

    from ..base.errors import choose
    from ..data.catalog import CATALOG, find

    entry = CATALOG[choose(name, CATALOG, "data set")]
    here = find(entry)
    values = {**entry.model_dump(mode="json", exclude={"captions"}), "where": str(here) if here else None}
    voice.event("set", **values)
    voice.say(json.dumps(values, indent=2, ensure_ascii=False))


@command.command("fetch")
@click.argument("name")
@speaks
def fetch(name: str, voice: Voice) -> None:
    """Bring a set to this machine and check it. What is already here is not fetched again."""
    from ..data.catalog import locate

    with voice.progress(f"fetching {name}", None) as move:
        folder = locate(name, progress=lambda file, done, total: move(done, total=total, text=file))
    voice.event("fetched", name=name, folder=folder)
    voice.say(f"{name} is in {folder}")
