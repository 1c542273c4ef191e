"""One's own pictures as a source of training examples: a folder or a zip archive, with or without captions.

What is recognised, the first that fits:

1. a table `metadata.csv` or `metadata.jsonl` (columns `file_name`, `text`) in any folder, for the files below it;
2. sidecars: `rose.txt` beside `rose.png`, one caption a line;
3. class folders: `roses/1.png`, `tulips/2.png`; the folder is the class, and its name the caption;
4. plain pictures without captions.

A single folder wrapped around everything does not count as a class. Every picture is looked at once on opening, so that
a damaged file is named then and not after an hour of training; pixels are decoded anew at each `read`.
"""

from __future__ import annotations

import hashlib
import io
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from PIL import Image, UnidentifiedImageError

from ..base.contracts import Sample
from ..base.errors import InputError, choose
from ..base.images import read_picture
from .tables import attributes, decode, read_csv, read_metadata, tidy
from .trees import Tree, open_tree

Kind = Literal["metadata", "sidecars", "classes", "plain"]
TABLES = ("metadata.csv", "metadata.jsonl")
# Formats that need another program to be drawn, or that Pillow can only tell the name of.
_NOT_PICTURES = frozenset({"EPS", "MPEG", "WMF", "HDF5", "GRIB", "BUFR"})


@dataclass(frozen=True)
class Entry:
    """One picture to be: where it lies and what is said of it."""

    name: str
    captions: tuple[str, ...] = ()
    label: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)  # what else its table says


@dataclass(eq=False)
class FolderSource:
    """Pictures read from a folder or archive one at a time (a contracts.Source); captions are held, pixels are not.

    skipped: (name, reason) of each file that could not be used; unlisted: pictures outside table or class folders.
    """

    name: str
    fingerprint: str  # of every file's bytes, captions and labels
    classes: tuple[str, ...]
    kind: str
    tree: Tree
    entries: tuple[Entry, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    unlisted: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def captions_of(self, index: int) -> tuple[str, ...]:
        return self.entries[index].captions

    def attributes_of(self, index: int) -> Mapping[str, str]:
        """What the table's further columns say of a picture, and its "class" where it has one. They are no part of the
        source's fingerprint."""
        entry = self.entries[index]
        return entry.attributes if entry.label is None else {**entry.attributes, "class": self.classes[entry.label]}

    def read(self, index: int) -> Sample:
        """Pixels uint8 (H, W, 3). Raises InputError if the file has gone or changed since it was opened."""
        entry = self.entries[index]
        try:
            pixels = read_picture(self.tree.read_bytes(entry.name))
        except (OSError, InputError) as error:
            raise InputError("the picture that was there on opening", f"{self.tree.root}: {entry.name} ({error})") from error
        return Sample(pixels=pixels, captions=entry.captions, label=entry.label, name=entry.name)


def picture_extensions() -> frozenset[str]:
    """Endings, such as '.png', of the files that Pillow can decode by itself."""
    known = Image.registered_extensions()
    return frozenset(end for end, form in known.items() if form in Image.OPEN and form not in _NOT_PICTURES)


def open_source(path: str | Path, *, tolerate: float = 0.05, kind: Kind | None = None) -> FolderSource:
    """The pictures of a folder or zip archive, with the captions found beside them.

    tolerate: the share of files that may be damaged or missing (they are named in `skipped`); beyond it, and where
    nothing usable is left, an InputError lists the first few. kind: take the pictures this way, whatever else is there.
    """
    tree = open_tree(path)
    names = tree.names()
    endings = picture_extensions()
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in endings]
    tables = [name for name in names if PurePosixPath(name).name in TABLES]
    sidecars = {str(PurePosixPath(name).with_suffix("")): name for name in names if name.lower().endswith(".txt")}
    classes = _class_of_each(pictures)

    found: Kind = "plain"
    if kind is not None:
        found = choose(kind, get_args(Kind), "kind of folder")  # type: ignore[assignment]
    elif tables:
        found = "metadata"
    elif any(str(PurePosixPath(name).with_suffix("")) in sidecars for name in pictures):
        found = "sidecars"
    elif len(set(classes.values())) > 1:
        found = "classes"

    labels: tuple[str, ...] = ()
    bad: list[tuple[str, str]] = []
    unlisted: tuple[str, ...] = ()
    if found == "metadata":
        entries, bad, unlisted = _by_tables(tree, tables, names, pictures)
    elif found == "sidecars":
        entries, bad = _by_sidecars(tree, pictures, sidecars)
    elif found == "classes":
        labels = tuple(sorted(set(classes.values())))
        if not labels:
            raise InputError("class folders, as roses/1.png and tulips/2.png", f"{tree.root} without such folders")
        captions = [tidy([label.replace("_", " ")]) for label in labels]
        numbers = {label: number for number, label in enumerate(labels)}
        entries = [Entry(n, captions[numbers[classes[n]]], numbers[classes[n]]) for n in pictures if n in classes]
        unlisted = tuple(name for name in pictures if name not in classes)
    else:
        entries = [Entry(name) for name in pictures]
    return _checked(tree, entries, bad, tolerate, found, labels, unlisted)


def open_table(
    path: str | Path,
    table: str,
    column: str,
    describe: Callable[[Mapping[str, str]], tuple[tuple[str, ...], str]],
    *,
    needed: Sequence[str] = (),
    tolerate: float = 0.05,
) -> FolderSource:
    """Pictures listed in a CSV table of one's own kind, in a folder or zip archive.

    table: the table's name inside; column: holds file names; describe: a row -> (captions, class name or ''); needed:
    further columns that `describe` reads. Errors as `open_source`.
    """
    tree = open_tree(path)
    names = tree.names()
    if table not in names:
        raise InputError(f"{table} beside the pictures", f"{tree.root} without it", "check that the set is complete")
    rows = read_csv(tree.read_bytes(table), table, (column, *needed))
    described = [(row[column], *describe(row), attributes(row, (column,))) for row in rows]
    labels = tuple(sorted({label for _, _, label, _ in described if label}))
    numbers: dict[str, int | None] = {label: number for number, label in enumerate(labels)}
    present = set(names)
    bad = [(name, f"listed in {table} but missing") for name, *_ in described if name not in present]
    entries = [Entry(name, texts, numbers.get(label), told) for name, texts, label, told in described if name in present]
    return _checked(tree, entries, bad, tolerate, "table", labels, ())


def _class_of_each(pictures: Sequence[str]) -> dict[str, str]:
    """Picture -> the folder that makes its class: the first below the folders that all pictures share.

    Loose pictures have none. Where all lie in one folder, that is the class.
    """
    parts = {name: PurePosixPath(name).parent.parts for name in pictures}
    shared = 0
    for level in zip(*parts.values(), strict=False):
        if len(set(level)) > 1:
            break
        shared += 1
    if shared and all(len(folders) == shared for folders in parts.values()):
        shared -= 1
    return {name: folders[shared] for name, folders in parts.items() if len(folders) > shared}


def _by_tables(
    tree: Tree, tables: Sequence[str], names: Sequence[str], pictures: Sequence[str]
) -> tuple[list[Entry], list[tuple[str, str]], tuple[str, ...]]:
    """Entries by metadata tables. Several rows for one file give it several captions.

    Names are also found in composed Unicode form, because file systems and spreadsheets disagree on how to write é.
    """
    if not tables:
        raise InputError(f"a table {' or '.join(TABLES)}", f"{tree.root} without one")
    on_disk = {unicodedata.normalize("NFC", name): name for name in names} | {name: name for name in names}
    captions: dict[str, tuple[str, ...]] = {}
    told: dict[str, dict[str, str]] = {}
    bad: dict[str, str] = {}
    for table in tables:
        for listed, texts, others in read_metadata(tree.read_bytes(table), table):
            wanted = str(PurePosixPath(table).parent / listed.strip().replace("\\", "/"))
            name = on_disk.get(wanted) or on_disk.get(unicodedata.normalize("NFC", wanted))
            if name is None:
                bad[wanted] = f"listed in {table} but missing"
            else:
                captions[name] = tuple(dict.fromkeys(captions.get(name, ()) + texts))
                told[name] = {**others, **told.get(name, {})}  # what the first row says counts
    entries = [Entry(name, captions[name], attributes=told[name]) for name in sorted(captions)]
    return entries, list(bad.items()), tuple(name for name in pictures if name not in captions)


def _by_sidecars(tree: Tree, pictures: Sequence[str], sidecars: Mapping[str, str]) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Entries by the text files beside them; a picture without one has no captions."""
    entries, bad = [], []
    for name in pictures:
        sidecar = sidecars.get(str(PurePosixPath(name).with_suffix("")))
        try:
            lines = decode(tree.read_bytes(sidecar), sidecar).splitlines() if sidecar else []
        except (InputError, OSError) as error:
            bad.append((name, f"its captions cannot be read: {error}"))
        else:
            entries.append(Entry(name, tidy(lines)))
    return entries, bad


def _examine(tree: Tree, name: str) -> tuple[bytes, str]:
    """(digest of the file, what is wrong with it or '')."""
    try:
        raw = tree.read_bytes(name)
        if not raw:
            return b"", "empty file"
        with Image.open(io.BytesIO(raw)) as picture:
            if picture.format == "JPEG":
                # Reads the whole stream, so that a cut is noticed, but reconstructs an eighth of the size: cheaper.
                picture.draft("L", (1, 1))
                picture.load()
            else:
                read_picture(raw)
    except Exception as error:  # Pillow's decoders raise whatever the damaged bytes lead them to
        reason = error.given if isinstance(error, InputError) else str(error) or type(error).__name__
        return b"", "not a picture" if isinstance(error, UnidentifiedImageError) else reason
    return hashlib.sha256(raw).digest(), ""


def _examine_all(tree: Tree, names: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    """`_examine` of each, in order, on all cores. Handed out in groups, so that a long list is not queued at once."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), 512):
            yield from pool.map(lambda name: _examine(tree, name), names[start : start + 512])


def _checked(
    tree: Tree,
    entries: Sequence[Entry],
    bad: list[tuple[str, str]],
    tolerate: float,
    kind: str,
    classes: tuple[str, ...],
    unlisted: tuple[str, ...],
) -> FolderSource:
    """The source made of those entries whose pictures are sound, unless too many are not."""
    if not 0 <= tolerate <= 1:
        raise InputError("a share of files to tolerate between 0 and 1", str(tolerate))
    good, skipped = [], list(bad)
    digest = hashlib.sha256()
    for entry, (content, reason) in zip(entries, _examine_all(tree, [e.name for e in entries]), strict=True):
        if reason:
            skipped.append((entry.name, reason))
        else:
            good.append(entry)
            digest.update(repr((entry.name, content, entry.captions, entry.label)).encode())
    total = len(good) + len(skipped)
    if not total:
        raise InputError("pictures", f"{tree.root} with none", "endings that count: .png, .jpg, .webp and others")
    if not good or len(skipped) > tolerate * total:
        first = "; ".join(f"{name} ({reason})" for name, reason in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise InputError(
            f"at most {tolerate:.0%} of the pictures damaged or missing in {tree.root}",
            f"{len(skipped)} of {total}: {first}{more}",
            "repair or remove them, or raise `tolerate`" if good else "",
        )
    return FolderSource(
        tree.root.stem if tree.root.is_file() else tree.root.resolve().name,
        digest.hexdigest()[:16],
        classes,
        kind,
        tree,
        tuple(good),
        tuple(skipped),
        unlisted,
    )
