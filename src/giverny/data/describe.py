"""Captions for one's own pictures: from what a table says of them, from their class folders, or from a captioning model.

A template is a sentence with attributes in braces, "a {colour} {garment} for {wearer}". Where an attribute is missing its
word is left out, and with it a preposition that is left without an object ("a {colour} {garment}"). Captions go into
`metadata.csv` (`metadata.jsonl` where a picture has several) or into a `.txt` beside each picture, as `folders` reads them.

Models that caption pictures join through the entry point group `giverny.captioners`. All of it is ours; what is written
follows the image folders of Hugging Face.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any, Literal, Protocol

import numpy as np

from ..base.contracts import Frozen
from ..base.errors import InputError, nearest
from ..base.files import atomic_write
from .captions import article
from .folders import TABLES, open_source
from .tables import decode, read_csv, read_jsonl, tidy
from .trees import FolderTree, Tree, open_tree

GROUP = "giverny.captioners"
MISSING = frozenset({"", "-", "?", "n/a", "na", "nan", "none", "null", "unknown"})  # cells that say nothing
Write = Literal["metadata", "sidecar"]

_FILE, _TEXT = "file_name", "text"  # columns of a metadata table
_MARK = 0xE000  # in a parsed template this letter and those after it stand for the attributes (private use in Unicode)
_ARTICLE = "{a}"
_LINKS = frozenset(("and", "at", "by", "for", "from", "in", "of", "on", "to", "under", "with"))  # words that begin a phrase
# Of nouns in s most are plurals; these are not, and neither are those in ss and us.
_SINGULAR = frozenset(("atlas", "canvas", "chassis", "gas", "iris", "lens", "oasis", "series", "species", "tennis"))
_PLURAL = frozenset(("children", "clothes", "feet", "men", "people", "women"))

# ---------------------------------------------------------------------------------------------------------------------
# Templates


@functools.cache
def _parse(template: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(words, in which a letter from `_MARK` on stands for an attribute; the attributes in that order)."""
    text = ""
    fields: list[str] = []
    try:
        for literal, field, form, conversion in Formatter().parse(template):
            text += literal
            if field is not None:
                if form or conversion or not field.strip():
                    raise ValueError("braces hold the name of an attribute and nothing else")
                text += chr(_MARK + len(fields))
                fields.append(field.strip())
    except ValueError as error:
        raise InputError("a template such as 'a {colour} {garment}'", f"{template!r}: {error}") from error
    if not text.strip():
        raise InputError("a template such as 'a {colour} {garment}'", "an empty one")
    return tuple(text.split()), tuple(fields)


def compose(template: str, values: Mapping[str, str]) -> str:
    """The caption that a template makes of a picture's attributes, or '' where it names some and none is known.

    values: attribute -> word; one that is absent or '' leaves its word out. Words come in small letters, underscores
    become spaces. {a}, and an "a" or "an" right before an attribute, is the article that fits what follows, and none
    before a plural ("a {colour} {garment}": "an orange dress", "orange trousers"). Raises InputError for broken braces.
    """
    words, fields = _parse(template)
    filled = [values.get(field, "").replace("_", " ").lower() for field in fields]
    if set(fields) - {"a"} and not any(filled):
        return ""
    phrases: list[list[str | None]] = [[]]
    for word, following in zip(words, (*words[1:], " "), strict=True):
        marks = [ord(letter) - _MARK for letter in word if _MARK <= ord(letter) < _MARK + len(fields)]
        before_attribute = _MARK <= ord(following[0]) < _MARK + len(fields)
        said: str | None = word.translate({_MARK + mark: filled[mark] for mark in marks})
        if [fields[mark] for mark in marks] == ["a"] or (word.lower() in ("a", "an") and before_attribute):
            said = _ARTICLE
        elif not all(filled[mark] for mark in marks):
            said = None
        if word.lower() in _LINKS:
            phrases.append([])
        phrases[-1].append(said)
        if word[-1] in ",.;:":
            phrases.append([])
    caption = " ".join(word for phrase in phrases for word in _spoken(phrase)).rstrip(" ,;:")
    return caption[:1].upper() + caption[1:] if template.lstrip()[:1].isupper() else caption


def _spoken(phrase: Sequence[str | None]) -> list[str]:
    """A phrase with its articles put in; nothing where all it had to say is missing (None)."""
    content = [word for word in phrase if word is not None and word != _ARTICLE and word.lower() not in _LINKS]
    if not content and None in phrase:
        return []
    spoken = []
    for place, word in enumerate(phrase):
        if word == _ARTICLE:
            rest = " ".join(later for later in phrase[place + 1 :] if later is not None and later != _ARTICLE)
            if rest and not _is_plural(rest):
                spoken.append(article(rest))
        elif word is not None:
            spoken.append(word)
    return spoken


def _is_plural(words: str) -> bool:
    """Whether a noun with what stands before it means several things, by its last letters ("red shoes", "a pair of shoes")."""
    noun = re.split(rf"\s(?:{'|'.join(_LINKS)})\s", words)[0].split()[-1].lower().strip(",.;:()")
    return noun in _PLURAL or (re.search(r"[^su]s$", noun) is not None and noun not in _SINGULAR)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


@dataclass(frozen=True)
class Table:
    """A table beside pictures. column: holds their file names; rows: (the picture it means or None, its cells)."""

    name: str
    column: str
    rows: Sequence[tuple[str | None, dict[str, Any]]] = ()


def picture_tables(tree: Tree, pictures: Collection[str]) -> list[Table]:
    """The CSV and JSON-lines files that speak of pictures: those with a column in which pictures' names are found.

    Names are relative to the table's folder. A `metadata` table always counts; a damaged one raises InputError, other
    files that are no tables are passed over.
    """
    known = {unicodedata.normalize("NFC", name): name for name in pictures}
    tables = []
    for name in tree.names():
        path = PurePosixPath(name)
        if path.suffix not in (".csv", ".jsonl"):
            continue
        try:
            read: Callable[..., list[dict[str, Any]]] = read_csv if path.suffix == ".csv" else read_jsonl
            rows = read(tree.read_bytes(name), name, ())
        except InputError:
            if path.name in TABLES:
                raise
            continue
        best = _FILE
        found: list[str | None] = [None] * len(rows)
        for column in dict.fromkeys([_FILE, *(key for row in rows for key in row)]):
            meant = [known.get(_place(path.parent, row.get(column))) for row in rows]
            if sum(map(bool, meant)) > sum(map(bool, found)):
                best, found = column, meant
        if any(found) or path.name in TABLES:
            tables.append(Table(name, best, tuple(zip(found, rows, strict=True))))
    return tables


def _place(folder: PurePosixPath, cell: Any) -> str:
    """The name inside the tree that a cell of a table in `folder` means."""
    listed = cell.strip().replace("\\", "/") if isinstance(cell, str) else ""
    return unicodedata.normalize("NFC", str(folder / listed))


def attributes_of(tables: Iterable[Table]) -> dict[str, dict[str, str]]:
    """{picture: {attribute: word}} of all tables; cells that say nothing (`MISSING`) are left out, and so are captions."""
    found: dict[str, dict[str, str]] = {}
    for table in tables:
        for picture, row in table.rows:
            if picture is not None:
                cells = {key: " ".join(str(cell).split()) for key, cell in row.items() if isinstance(cell, str | int | float)}
                kept = {k: v for k, v in cells.items() if v.lower() not in MISSING and k not in (table.column, _FILE, _TEXT)}
                found.setdefault(picture, {}).update(kept)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Captioners


class Captioner(Protocol):
    """A model that says what it sees: uint8 (H, W, 3) -> captions, the best first."""

    def caption(self, pixels: np.ndarray) -> Sequence[str]: ...


def open_captioner(name: str) -> Captioner:
    """The captioner of that name among those installed (entry points of the group `giverny.captioners`)."""
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in installed:
        remedy = nearest(name, installed) or "none is installed; give --template instead"
        raise InputError(f"an installed captioner (entry point group {GROUP!r})", repr(name), remedy)
    captioner: Captioner = installed[name].load()
    if not callable(getattr(captioner, "caption", None)):
        raise InputError("an object with caption(pixels) -> captions", f"{installed[name].value}, which has none")
    return captioner


# ---------------------------------------------------------------------------------------------------------------------
# Captioning a folder


class Captioned(Frozen):
    """What was done to a folder. without: pictures for which there was nothing to say; skipped: (file, reason)."""

    written: int
    kept: int
    without: int
    files: int
    examples: tuple[tuple[str, tuple[str, ...]], ...]
    skipped: tuple[tuple[str, str], ...]


def caption_folder(
    folder: str | Path,
    templates: Sequence[str] = (),
    captioner: str | None = None,
    write: Write | None = None,
    replace: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Captioned:
    """Caption the pictures of a folder, by templates, by a captioner, or both (templates first), and write that down.

    write: where to; None: into sidecars where the folder has such and no table, else into its table. replace: also
    the captions of pictures that have some; they are kept otherwise. Each file is written whole or not at all; when
    the work is stopped half way, what is done is written and the next call goes on from there.
    Raises InputError for an archive, an attribute that no table has, a captioner that is not there.
    """
    tree = open_tree(folder)
    if not isinstance(tree, FolderTree):
        raise InputError("a folder, into which captions can be written", f"{tree.root}, an archive", "unpack it first")
    if not templates and captioner is None:
        raise InputError("a template or a captioner", "neither", "such as --template 'a {colour} {garment}'")
    model = open_captioner(captioner) if captioner else None
    source = open_source(tree.root, tolerate=1.0, kind="sidecars")
    sidecars = {entry.name: entry.captions for entry in source.entries}
    tables = picture_tables(tree, sidecars)
    metadata = [table for table in tables if PurePosixPath(table.name).name in TABLES]
    if write == "sidecar" and metadata:
        given = f"sidecars beside {metadata[0].name}, which goes before"
        raise InputError("captions where they are read", given, "leave --write sidecar out")
    said = attributes_of(tables)
    _add_classes(tree.root, templates, said, {key for t in tables for _, row in t.rows for key in row if key != t.column})
    held = {name: texts for name, texts in sidecars.items() if texts}
    if metadata:
        cells = [(picture, row.get(_TEXT)) for table in metadata for picture, row in table.rows if picture is not None]
        lists = [(picture, cell if isinstance(cell, list) else [cell]) for picture, cell in cells]
        held = {picture: texts for picture, given in lists if (texts := tidy(t for t in given if isinstance(t, str)))}
    made: dict[str, tuple[str, ...]] = {}
    files = 0
    try:
        for done, name in enumerate(sidecars):
            if progress:
                progress(done, len(sidecars))
            if name in held and not replace:
                continue
            texts = tidy(compose(template, said.get(name, {})) for template in templates)
            if model:
                answer = model.caption(source.read(done).pixels)
                if isinstance(answer, str) or not all(isinstance(text, str) for text in answer):
                    raise InputError(f"a list of strings from the captioner {captioner!r}", f"{answer!r:.80} for {name}")
                texts += tidy(answer)
            if texts:
                made[name] = tuple(dict.fromkeys(texts))
    finally:
        if made and (write or ("sidecar" if held and not metadata else "metadata")) == "sidecar":
            files = _write_sidecars(tree.root, made)
        elif made:  # sidecars are not read beside a table, so what they say goes into it
            files = _write_metadata(tree, metadata, made if metadata else {**held, **made})
    kept = len((held.keys() & sidecars.keys()) - made.keys())
    return Captioned(
        written=len(made),
        kept=kept,
        without=len(sidecars) - len(made) - kept,
        files=files,
        examples=tuple(made.items())[:5],
        skipped=(*source.skipped, *_missing(tree, metadata)),
    )


def _missing(tree: Tree, metadata: Iterable[Table]) -> list[tuple[str, str]]:
    """(file, reason) of what tables list and the folder has not."""
    there = {unicodedata.normalize("NFC", name) for name in tree.names()}
    listed = [(_place(PurePosixPath(t.name).parent, row.get(t.column)), t.name) for t in metadata for _, row in t.rows]
    return [(name, f"listed in {table} but missing") for name, table in listed if name not in there]


def _add_classes(root: Path, templates: Sequence[str], said: dict[str, dict[str, str]], columns: set[str]) -> None:
    """Check that templates name columns that there are; where {name} is none of them, it is made the class folder's."""
    wanted = {field for template in templates for field in _parse(template)[1]} - {"a"}
    columns = columns - {_FILE, _TEXT}
    if "name" in wanted - columns:
        classes = open_source(root, tolerate=1.0, kind="classes")
        for entry in classes.entries:
            if entry.label is not None:
                said.setdefault(entry.name, {})["name"] = classes.classes[entry.label]
        columns.add("name")
    for field in sorted(wanted - columns):
        remedy = nearest(field, columns) or "there is no table beside the pictures; of class folders use {name}"
        raise InputError("an attribute that the folder's table has", f"{{{field}}}", remedy)


def _write_sidecars(root: Path, made: Mapping[str, tuple[str, ...]]) -> int:
    """One `.txt` beside each picture, one caption a line. Returns the number of files."""
    sidecars: dict[Path, tuple[str, ...]] = {}
    for name, texts in made.items():
        if sidecars.setdefault((root / name).with_suffix(".txt"), texts) != texts:
            raise InputError("one picture for each .txt", f"{name} and another of that name", "use --write metadata")
    for path, texts in sidecars.items():
        atomic_write(path, "\n".join(texts) + "\n")
    return len(sidecars)


def _write_metadata(tree: FolderTree, metadata: Sequence[Table], texts: Mapping[str, tuple[str, ...]]) -> int:
    """Captions into every table that lists a picture; the rest, and those a CSV has no rows for, into one at the root.

    Returns the number of files. Columns and rows that were there stay.
    """
    rows = Counter(picture for table in metadata for picture, _ in table.rows if table.name.endswith(".csv"))
    whole = {picture for table in metadata for picture, _ in table.rows if table.name.endswith(".jsonl")}
    rest = [name for name in texts if name not in whole and rows[name] < len(texts[name])]
    several = any(len(texts[name]) > 1 for name in rest) or any(table.name == TABLES[1] for table in metadata)
    changed = {table.name: table for table in metadata}
    if rest:
        changed.setdefault(TABLES[several], Table(TABLES[several], _FILE))
    for name, table in sorted(changed.items(), reverse=True):  # JSON lines first: they hold all of it
        raw = tree.read_bytes(name) if table in metadata else b""
        more = rest if name == TABLES[several] else []
        write = _csv_with if name.endswith(".csv") else _jsonl_with
        atomic_write(tree.root / name, write(raw, table, texts, more))
    return len(changed)


def _csv_with(raw: bytes, table: Table, texts: Mapping[str, tuple[str, ...]], more: Sequence[str]) -> str:
    """The table with captions: a row holds one, the first row of a picture its first. more: pictures to add."""
    header, *lines = [row for row in csv.reader(io.StringIO(decode(raw, table.name), newline="")) if any(row)] or [[]]
    header = [name.strip() for name in header]
    new = [column for column in (_FILE, _TEXT) if column not in header]
    wide = len(header)
    header += new
    seen: Counter[str] = Counter()
    out = [header]
    for (picture, cells), line in zip(table.rows, lines, strict=True):
        row = [*line[:wide], *[""] * (wide - len(line)), *[""] * len(new), *line[wide:]]
        row[header.index(_FILE)] = cells[table.column] if _FILE in new else row[header.index(_FILE)]
        if picture is not None and picture in texts:
            row[header.index(_TEXT)] = texts[picture][min(seen[picture], len(texts[picture]) - 1)]
            seen[picture] += 1
        out.append(row)
    for picture in more:
        cells = {_FILE: picture, _TEXT: texts[picture][0]}
        out.append([cells.get(column, "") for column in header])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(out)
    return buffer.getvalue()


def _jsonl_with(raw: bytes, table: Table, texts: Mapping[str, tuple[str, ...]], more: Sequence[str]) -> str:
    """The table with captions, `text` being a list. more: pictures to add."""
    out = []
    for picture, row in table.rows:
        held = list(texts[picture]) if picture is not None and picture in texts else row.get(_TEXT, [])
        out.append({**row, _FILE: row.get(_FILE, row.get(table.column)), _TEXT: held})
    out += [{_FILE: picture, _TEXT: list(texts[picture])} for picture in more]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in out)
