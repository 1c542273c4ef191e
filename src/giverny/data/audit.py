"""What a set of pictures is made of, and what is wrong with it: counts, balance, captions, duplicates, leaks, quality.

The outcome is one frozen record. Evenness of an attribute is its entropy over the greatest it could have (Pielou 1966,
"The measurement of diversity in different types of biological collections").
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import Field

from ..base.contracts import Frozen, Source
from ..base.errors import InputError
from .arrays import ArraySource
from .catalog import CATALOG, Progress, open_named
from .chance import hashed
from .describe import attributes_of, picture_tables
from .duplicates import NEAR_BITS, NEAR_COLOUR, alike
from .folders import TABLES, FolderSource
from .looks import Concern, Look, Place, Quantity, concerns, looks, quantities, quantity
from .trees import open_tree

MOST_VALUES = 60  # of an attribute; a column with more says something else of each picture
MOST_NUMBERS = 12  # of an attribute whose values are numbers
CROSS_ROWS, CROSS_COLUMNS = 24, 16  # of the cross table, the commonest values
EXAMPLES = 4  # of each value
COMMON = 30  # words, and captions, that are counted
RARE = 10  # pictures; fewer teach a combination badly
_NO_CONTENT = ("format", "size", "shape")  # columns that come from the files
# Too common to tell anything of captions.
_LITTLE = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "that", "the", "to", "with")
)

# ---------------------------------------------------------------------------------------------------------------------
# The record


class Value(Frozen):
    """A value, a word or a caption, and how often it is there."""

    value: str
    count: int
    examples: tuple[Place, ...] = ()


class Attribute(Frozen):
    """How often an attribute has each value, the commonest first.

    missing: pictures that have none; evenness: 1 where all values are equally common, 0 where there is one alone;
    largest, smallest: shares among the pictures that have a value.
    """

    name: str
    values: tuple[Value, ...]
    missing: int
    evenness: float
    largest: float
    smallest: float


class CrossTable(Frozen):
    """How often values of two attributes come together: counts[row][column] of the commonest values.

    combinations: all that could be, of all values; present: that there are; rare: that fewer than `RARE` pictures have.
    """

    rows: str
    columns: str
    row_values: tuple[str, ...]
    column_values: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    combinations: int
    present: int
    rare: int


class Words(Frozen):
    """What is said of the pictures. without: those of which nothing is; lengths: of captions, in words."""

    without: int
    captions: int
    distinct: int
    lengths: Quantity | None
    words: tuple[Value, ...]
    commonest: tuple[Value, ...]


class Group(Frozen):
    """Pictures that belong together. distinct: how many differ in at least a pixel; 1: all are the same."""

    places: tuple[Place, ...]
    distinct: int


class Leak(Frozen):
    """Two parts that share pictures. pictures: those of `part` that have their like in `other`; same: to the pixel."""

    part: str
    other: str
    pictures: int
    same: int


class Audit(Frozen):
    """All that is found out about a set; what lies beside it appears in groups and leaks alone.

    copies: pictures that are there already, to the pixel; near_copies: further ones that nearly are.
    """

    name: str
    fingerprint: str
    pictures: int
    parts: dict[str, int]
    beside: tuple[str, ...] = Field(description="what it was compared with")
    attributes: tuple[Attribute, ...]
    other_columns: tuple[str, ...] = Field(description="columns with too many values to be counted")
    cross: CrossTable | None = Field(description="of the two attributes that together tell most")
    captions: Words
    copies: int
    near_copies: int
    near_bits: int = NEAR_BITS
    near_colour: float = NEAR_COLOUR
    groups: tuple[Group, ...]
    leaks: tuple[Leak, ...]
    quantities: tuple[Quantity, ...]
    concerns: tuple[Concern, ...]
    unreadable: tuple[tuple[str, str], ...] = Field(description="(file, reason)")
    unlisted: tuple[str, ...] = Field(description="pictures that no table and no class folder has")


# ---------------------------------------------------------------------------------------------------------------------
# Looking


@dataclass(frozen=True)
class Part:
    """A source that is looked at. beside: only to find what the set shares with it."""

    name: str
    source: Source
    beside: bool = False


def open_parts(name: str, beside: bool = False, progress: Progress | None = None) -> list[Part]:
    """A set by name or path, damaged pictures and all: one part, or one for each split of IDX and CIFAR sets.

    A folder whose table has no captions yet is taken as pictures alone; its attributes count all the same.
    Raises InputError as `open_named`.
    """
    path, plain = Path(name).expanduser(), False
    if name not in CATALOG and path.resolve().name not in CATALOG and (path.is_dir() or zipfile.is_zipfile(path)):
        tables = [table for table in picture_tables(open_tree(path), ()) if PurePosixPath(table.name).name in TABLES]
        plain = any("text" not in row for table in tables for _, row in table.rows)
    source = open_named(name, tolerate=1.0, kind="plain" if plain else None, progress=progress)
    if isinstance(source, ArraySource):
        try:
            test = open_named(name, "test")
        except InputError:  # there is one split only
            pass
        else:
            before = f"{name} " if beside else ""
            return [Part(f"{before}train", source, beside), Part(f"{before}test", test, beside)]
    return [Part(name if beside or name in CATALOG else source.name, source, beside)]


def audit(parts: Sequence[Part], progress: Callable[[int, int], None] | None = None) -> Audit:
    """Look at every picture of the parts, those `beside` the set last. progress: called with (done, in all).

    Raises InputError where no picture of the set can be read.
    """
    total = sum(len(part.source) for part in parts)
    places: list[Place] = []
    seen: list[Look] = []
    rows: list[Mapping[str, str]] = []
    captions: list[tuple[str, ...]] = []
    unreadable: list[tuple[str, str]] = []
    for number, part in sorted(enumerate(parts), key=lambda numbered: numbered[1].beside):
        said: dict[str, dict[str, str]] = {}
        if isinstance(part.source, FolderSource) and not part.beside:
            said = attributes_of(picture_tables(part.source.tree, [entry.name for entry in part.source.entries]))
            unreadable += part.source.skipped
        splits = {key for row in said.values() for key in row if key.lower() == "split"}
        for index, (name, label, found) in enumerate(looks(part.source)):
            if progress and len(seen) % 16 == 0:
                progress(len(seen), total)
            if isinstance(found, str):
                unreadable.append((name, found))
                continue
            row = said.get(name, {})
            kind = next((row.get(key, "no split") for key in splits), part.name)
            places.append(Place(source=number, index=index, part=kind, name=name))
            seen.append(found)
            if not part.beside:
                rows.append({key: value for key, value in row.items() if key not in splits} | _facts(part.source, label, found))
                captions.append(part.source.captions_of(index))
    if not rows:
        raise InputError("a set with pictures", "none that can be read")
    count, own = len(rows), [part for part in parts if not part.beside]
    first = own[0].source
    attributes, others = _attributes(rows, places)
    same, near = alike([found.print for found in seen])
    different = len(set(same[:count].tolist()))
    return Audit(
        name=own[0].name if len(own) == 1 else first.name,
        fingerprint=first.fingerprint,
        pictures=count,
        parts=dict(Counter(place.part for place in places[:count])),
        beside=tuple(part.name for part in parts if part.beside),
        attributes=attributes,
        other_columns=others,
        cross=_cross(rows, [a.name for a in attributes if a.name not in _NO_CONTENT and len(a.values) > 1]),
        captions=_words(captions),
        copies=count - different,
        near_copies=different - len(set(near[:count].tolist())),
        groups=_groups(places, same, near, count),
        leaks=_leaks(places, same, near, {place.part for place in places[:count]}),
        quantities=quantities(seen[:count]),
        concerns=concerns(seen[:count], places),
        unreadable=tuple(unreadable),
        unlisted=tuple(getattr(first, "unlisted", ())),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Counting


def _facts(source: Source, label: int | None, found: Look) -> dict[str, str]:
    """What the file and its class add to a picture's row of the table."""
    shape = "square" if 0.95 <= found.aspect <= 1 / 0.95 else "upright" if found.aspect < 1 else "lying"
    facts = {"size": "{} x {}".format(*found.size), "shape": shape}
    if found.format:
        facts["format"] = found.format
    if source.classes and label is not None:
        facts["class"] = source.classes[label]
    return facts


def _attributes(rows: Sequence[Mapping[str, str]], places: Sequence[Place]) -> tuple[tuple[Attribute, ...], tuple[str, ...]]:
    """The attributes with few enough values to be counted, contents before files, and the names of the other columns."""
    order = np.argsort(hashed("examples", 0, 0, np.arange(len(rows))))
    attributes: list[Attribute] = []
    others: list[str] = []
    names = dict.fromkeys(name for row in rows for name in row)
    for name in sorted(names, key=_NO_CONTENT.__contains__):
        values = [row.get(name, "") for row in rows]
        counts = Counter(value for value in values if value)
        known = counts.total()
        numbers = all(re.fullmatch(r"[-+]?\d+(\.\d*)?", value) for value in counts)
        # classes are never too many
        if name != "class" and len(counts) > min(MOST_NUMBERS if numbers else MOST_VALUES, max(8, known // 2)):
            others += [name] * (name not in _NO_CONTENT)
            continue
        # a class that is a column under another name is counted once
        if name == "class" and any(
            len({(row.get(other), value) for row, value in zip(rows, values, strict=True)}) == len(counts)
            and len({row.get(other) for row in rows}) == len(counts)
            for other in (attribute.name for attribute in attributes)
        ):
            continue
        shown: dict[str, list[Place]] = {value: [] for value in counts}
        for index in order.tolist():
            if values[index] and len(shown[values[index]]) < EXAMPLES:
                shown[values[index]].append(places[index])
        shares = np.array(list(counts.values())) / known
        attributes.append(
            Attribute(
                name=name,
                values=tuple(Value(value=v, count=n, examples=tuple(shown[v])) for v, n in counts.most_common()),
                missing=len(rows) - known,
                evenness=_entropy(counts.values()) / float(np.log(len(counts))) if len(counts) > 1 else 0.0,
                largest=float(shares.max()),
                smallest=float(shares.min()),
            )
        )
    return tuple(attributes), tuple(others)


def _entropy(counts: Iterable[int]) -> float:
    """Of the shares that the counts make, in nats."""
    shares = np.array(list(counts), dtype=np.float64)
    shares /= shares.sum()
    return float(-(shares * np.log(shares)).sum())


def _cross(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> CrossTable | None:
    """The cross table of the two attributes with the greatest joint entropy; what one implies of the other adds none."""
    tables = {(a, b): Counter((row[a], row[b]) for row in rows if a in row and b in row) for a, b in combinations(names, 2)}
    tables = {pair: table for pair, table in tables.items() if table}
    if not tables:
        return None
    down, across = max(tables, key=lambda pair: _entropy(tables[pair].values()))
    table = tables[down, across]
    sides = [Counter[str](), Counter[str]()]
    for pair, count in table.items():
        for side, value in zip(sides, pair, strict=True):
            side[value] += count
    if len(sides[0]) < len(sides[1]):
        down, across = across, down
        sides = sides[::-1]
        table = Counter({(b, a): count for (a, b), count in table.items()})
    row_values = tuple(value for value, _ in sides[0].most_common(CROSS_ROWS))
    column_values = tuple(value for value, _ in sides[1].most_common(CROSS_COLUMNS))
    return CrossTable(
        rows=down,
        columns=across,
        row_values=row_values,
        column_values=column_values,
        counts=tuple(tuple(table[row, column] for column in column_values) for row in row_values),
        combinations=len(sides[0]) * len(sides[1]),
        present=len(table),
        rare=sum(count < RARE for count in table.values()),
    )


def _words(captions: Sequence[tuple[str, ...]]) -> Words:
    texts = Counter(text for given in captions for text in given)
    words: Counter[str] = Counter()
    for text, count in texts.items():
        for word in re.findall(r"\w+(?:[-'’]\w+)*", text.lower()):
            words[word] += count * (word not in _LITTLE)
    lengths = [len(text.split()) for text in texts.elements()]
    return Words(
        without=sum(not given for given in captions),
        captions=texts.total(),
        distinct=len(texts),
        lengths=quantity("words of a caption", lengths) if lengths else None,
        words=tuple(Value(value=word, count=n) for word, n in words.most_common(COMMON) if n),
        commonest=tuple(Value(value=text, count=n) for text, n in texts.most_common(COMMON)),
    )


def _groups(places: Sequence[Place], same: np.ndarray, near: np.ndarray, count: int) -> tuple[Group, ...]:
    """Groups of two pictures or more, one of them among the first `count`; the largest first."""
    members: dict[int, list[int]] = {}
    for index, group in enumerate(near.tolist()):
        members.setdefault(group, []).append(index)
    found = [group for group in members.values() if len(group) > 1 and group[0] < count]
    found.sort(key=len, reverse=True)
    return tuple(Group(places=tuple(places[i] for i in group), distinct=len({int(same[i]) for i in group})) for group in found)


def _leaks(places: Sequence[Place], same: np.ndarray, near: np.ndarray, own: Iterable[str]) -> tuple[Leak, ...]:
    """What each part of the set (`own`) shares with each other part, and with those beside it."""
    parts = np.array([place.part for place in places])
    leaks = []
    for part in sorted(own):
        for other in sorted(set(parts.tolist()) - {part}):
            here, there = parts == part, parts == other
            alike, equal = (int(np.isin(of[here], of[there]).sum()) for of in (near, same))
            if alike:
                leaks.append(Leak(part=part, other=other, pictures=alike, same=equal))
    return tuple(leaks)
