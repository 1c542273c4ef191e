"""giverny data: named sets, with licence and checksum; what one's own pictures are worth; captions for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

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


@command.command("audit")
@click.argument("source")
@click.option("--against", multiple=True, metavar="SOURCE", help="Also look for what it shares with this one; may be repeated.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None, help="Write a page with pictures, such as audit.html."
)
@speaks
def audit(source: str, against: tuple[str, ...], out: Path | None, voice: Voice) -> None:
    """Look through SOURCE: a folder, a zip archive or a named set. Nothing in it is changed.

    Counts by attribute (the columns of its tables, classes, file formats), balance, captions, duplicates, leaks between
    splits (a column `split`, the parts of a named set, or --against), size and quality, files that cannot be read.

    \b
    giverny data audit my/pictures -o audit.html
    giverny data audit my/training --against my/test
    """
    from ..base.errors import InputError
    from ..data.audit import audit as look_through
    from ..data.audit import open_parts

    if out is not None and out.is_dir():
        raise InputError("the name of a page to write, such as audit.html", f"{out}, a folder")
    with voice.progress(f"opening {source}", 1) as move:

        def fetched(file: str, done: int, total: int | None) -> None:
            move(done, total=total, text=file)

        parts = open_parts(source, progress=fetched)
        for name in against:
            parts += open_parts(name, beside=True, progress=fetched)
        found = look_through(parts, lambda done, total: move(done, total=total, text="looking"))
        if out is not None:
            from ..compare.audit_page import write_audit

            write_audit(out, found, [part.source for part in parts])
    voice.event("audit", **found.model_dump(mode="json"), page=out)
    if voice.as_json:
        return
    rows = [
        {
            "attribute": attribute.name, "values": len(attribute.values),
            "commonest": attribute.values[0].value,
            "share": f"{attribute.largest:.1%}", "rarest": attribute.values[-1].count,
            "evenness": f"{attribute.evenness:.2f}", "missing": attribute.missing,
        }
        for attribute in found.attributes
    ]  # fmt: skip
    split = ", ".join(f"{part} {n}" for part, n in found.parts.items()) if len(found.parts) > 1 else ""
    voice.say(f"{found.name}: {found.pictures} pictures{f' ({split})' * bool(split)}\n")
    voice.table(rows, ["attribute", "values", "commonest", "share", "rarest", "evenness", "missing"])
    words = found.captions
    voice.say(f"\ncaptions: {words.captions}, {words.distinct} distinct; {words.without} pictures without")
    voice.say(f"duplicates: copies to the pixel {found.copies}, near copies besides {found.near_copies}")
    if (found.beside or split) and not found.leaks:
        voice.say("shared: nothing")
    for leak in found.leaks:
        voice.say(f"shared: of {leak.part} {leak.pictures} in {leak.other}, {leak.same} of them to the pixel")
    for concern in found.concerns:
        if concern.count:
            voice.say(f"{concern.name}: {concern.count} ({concern.criterion})")
    for name, reason in found.unreadable[:10]:
        voice.say(f"not in use: {name} ({reason})")
    if len(found.unreadable) > 10:
        voice.say(f"not in use: {len(found.unreadable) - 10} more files")
    voice.say(f"\nthe page is {out}" if out else "\n-o audit.html writes a page that shows the pictures meant")


@command.command("caption")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--template", "templates", multiple=True, metavar="WORDS", help="Such as 'a {colour} {garment}'; may be repeated."
)
@click.option("--captioner", default=None, metavar="NAME", help="An installed captioning model.")
@click.option(
    "--write", type=click.Choice(["metadata", "sidecar"]), help="Into the folder's table, or a .txt for each picture."
)
@click.option("--keep/--replace", "keep", default=True, help="What becomes of captions that are there.  [default: keep]")
@speaks
def caption(
    folder: Path,
    templates: tuple[str, ...],
    captioner: str | None,
    write: Literal["metadata", "sidecar"] | None,
    keep: bool,
    voice: Voice,
) -> None:
    """Write captions for the pictures of FOLDER, made of the columns of its table, or of its class folders ({name}).

    A word whose attribute is missing is left out. An "a" before an attribute becomes "an" where that is said, and
    nothing before a plural. Several templates give several captions. Without --write captions go where the folder's
    captions are, else into a table.

    \b
    giverny data caption my/clothes --template "a {colour} {garment}" --template "a photo of a {garment}"
    giverny data caption my/flowers --template "a photo of a {name}" --write sidecar
    """
    from ..data.describe import caption_folder

    with voice.progress(f"captioning {folder}", 1) as move:
        done = caption_folder(
            folder, templates, captioner, write, not keep, lambda count, total: move(count, total=total, text="captioning")
        )
    voice.event("captioned", **done.model_dump(mode="json"))
    for name, texts in done.examples:
        voice.say(f"{name}: {' | '.join(texts)}")
    voice.say(f"{done.written} pictures captioned in {done.files} file{'s' * (done.files != 1)}, {done.kept} kept as they were")
    if done.without:
        voice.say(f"{done.without} pictures are left without: nothing is known of them that the templates name")
    for name, reason in done.skipped[:10]:
        voice.say(f"passed over: {name} ({reason})")


@command.command("prepare")
@click.argument("name")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change an entry of the recipe.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=None, help="Where it is kept.  [default: with the data]")
@click.option("--replace", is_flag=True, help="Make it anew where it is there.")
@speaks
def prepare(name: str, overrides: tuple[str, ...], out: Path | None, replace: bool, voice: Voice) -> None:
    """Make a set to train on from raw photographs: NAME is a prepared set (`giverny data`) or a recipe file.

    Garments are cut out, their colours named, missing (garment, colour) pairs made by recolouring, near-copies found and
    a test part put aside. Beside the pictures lie the card, which counts all of it, and a sheet to look at.
    """
    from ..assembly import prepare_set
    from ..data.catalog import home_of

    folder = out or home_of(Path(name).stem)
    with voice.progress("preparing", None) as move:
        facts = prepare_set(name, folder, overrides, lambda what, done, total: move(done, total=total, text=what), replace)
    voice.event("prepared", folder=folder, **facts)
    agreed = facts.get("colour_agreement")
    count = f"{facts['train']} pictures to train on, {facts['recoloured']} of them recoloured, {facts['test']} to test"
    voice.say(f"{facts['name']}: {count}")
    if agreed:
        voice.say(
            f"colours agree with {agreed['agree']:.1%} of the sellers' names, {agreed['agree_where_sure']:.1%} where sure"
        )
    voice.say(f"{folder}: train.zip, test.zip, card.json, and sheet.png to look at")
