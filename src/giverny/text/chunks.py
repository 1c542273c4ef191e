"""Prompts longer than a text tower's window, cut into chunks of so many tokens, each token with its weight.

AUTOMATIC1111 (modules/sd_hijack_clip.py): a chunk is filled to the last place; where a comma lies close behind, what follows
it moves to the next chunk. ComfyUI (comfy/sd1_clip.py): words, as white space parts them, stay whole unless they are long. The
first releases of AUTOMATIC1111 (modules/sd_hijack_clip_old.py): brackets are tokens that change the weight of what follows.

Any window will do: chunks are `Tokenizer.length - 2` tokens between a start and an end token, 75 in Stable Diffusion. Ours: a
textual inversion moves with the words around it when a comma pulls them into the next chunk, and is never cut in two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..base.contracts import WordSpan
from ..base.errors import InputError
from .emphasis import STRONGER, Dialect, Piece
from .tokenizer import SUFFIX, Tokenizer

BACKTRACK = 20  # tokens from the end of a chunk in which a comma is looked for
LONG = 8  # tokens from which ComfyUI cuts a word
NAMED = "embedding:"  # what ComfyUI has before the name of a textual inversion


@dataclass(frozen=True)
class Placed:
    """A textual inversion in a chunk: which, and the place of its first vector."""

    name: str
    start: int


@dataclass(frozen=True)
class Chunk:
    """L tokens as the tower takes them: start, text, end, padding."""

    ids: tuple[int, ...]  # L
    weights: tuple[float, ...]  # L, 1 for all but text
    used: int  # tokens of text
    spans: tuple[WordSpan, ...]  # of its words, places counted from the start token as 0
    placed: tuple[Placed, ...] = ()

    @property
    def plain(self) -> bool:
        """Nothing in it counts more or less than usual."""
        return all(weight == 1 for weight in self.weights)


class Inversions:
    """Textual inversions (Gal et al. 2022, arXiv 2208.01618) by the names that call them up in a prompt.

    vectors: (k, C) each, which stand in for k tokens. A name is found by its tokens, the longest first, in upper and lower
    case alike. Raises InputError for a name without tokens, and for more vectors than a chunk holds.
    """

    def __init__(self, tokenizer: Tokenizer, vectors: Mapping[str, Tensor]) -> None:
        self.vectors = dict(vectors)
        self._triggers: dict[int, list[tuple[tuple[int, ...], str]]] = {}
        for name, value in vectors.items():
            ids = tokenizer.split(name)[0]
            if not ids:
                raise InputError("a name that the tokenizer reads", repr(name))
            if value.dim() != 2 or not 1 <= len(value) <= tokenizer.length - 2:
                wanted = f"1 to {tokenizer.length - 2} vectors (k, C) for the textual inversion {name!r}"
                raise InputError(wanted, str(tuple(value.shape)))
            self._triggers.setdefault(ids[0], []).append((ids, name))
        for found in self._triggers.values():
            found.sort(key=lambda trigger: -len(trigger[0]))

    def at(self, ids: Sequence[int], place: int) -> tuple[str, int] | None:
        """(name, how many tokens name it) where one is named at this place."""
        for trigger, name in self._triggers.get(ids[place], ()):
            if tuple(ids[place : place + len(trigger)]) == trigger:
                return name, len(trigger)
        return None


@dataclass(frozen=True)
class _Unit:
    """What is never cut: one token, or one textual inversion."""

    ids: tuple[int, ...]
    weight: float
    word: str
    key: tuple[int, int]  # the same for all tokens of a word
    name: str = ""


def chunked(
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
    dialect: Dialect = "a1111",
    *,
    backtrack: int = BACKTRACK,
    most: int | None = None,
    inversions: Inversions | None = None,
) -> tuple[Chunk, ...]:
    """The chunks of a prompt read in this dialect (`emphasis.pieces`), one or more.

    backtrack: how far back a comma ends a chunk, 0 not at all; a1111 only. most: chunks at most; what does not fit is left
    out, and the last one takes all it can hold: no comma is looked for, and words are cut.
    """
    room = tokenizer.length - 2
    if dialect == "comfyui":
        filled = _by_words(_words(pieces, tokenizer, inversions), room, most)
    elif dialect == "a1111-old":
        filled = _filled([[u for p in pieces for u in _bracketed(p.text, tokenizer, inversions)]], room, None, 0, 1)[:1]
    else:
        parts = [_units(p, i, tokenizer, inversions) for i, p in enumerate(pieces)]
        cuts = [i for i, p in enumerate(pieces) if p.breaks]
        sections = [[u for part in parts[a:b] for u in part] for a, b in zip([0, *cuts], [*cuts, len(parts)], strict=True)]
        filled = _filled(sections, room, tokenizer.id_of("," + SUFFIX), backtrack if dialect == "a1111" else 0, most)
    return tuple(_chunk(units, tokenizer) for units in filled[:most])


def empty(tokenizer: Tokenizer) -> Chunk:
    """The chunk of no text."""
    return _chunk([], tokenizer)


def _bracketed(text: str, tokenizer: Tokenizer, inversions: Inversions | None = None) -> list[_Unit]:
    """The old way: a token with brackets in it is left out and changes the weight of all that follows, "(" and "]" up by 1.1,
    ")" and "[" down; one in which they cancel out, such as "()", is text."""
    found, weight = [], 1.0
    for unit in _units(Piece(text), 0, tokenizer, inversions):
        factor = 1.0
        for letter in "" if unit.name else tokenizer.symbol_of(unit.ids[0]):
            factor *= STRONGER if letter in "(]" else 1.0
            factor /= STRONGER if letter in ")[" else 1.0
        if factor != 1:
            weight *= factor
        else:
            found.append(_Unit(unit.ids, weight, unit.word, unit.key, unit.name))
    return found


def _units(piece: Piece, number: int, tokenizer: Tokenizer, inversions: Inversions | None) -> list[_Unit]:
    ids, spans = tokenizer.split(piece.text)
    words = [(i, span.word) for i, span in enumerate(spans) for _ in range(span.start, span.end)]
    units, place = [], 0
    while place < len(ids):
        word, text = words[place]
        named = inversions.at(ids, place) if inversions else None
        if named and inversions:
            name, taken = named
            units.append(_Unit((0,) * len(inversions.vectors[name]), piece.weight, name, (number, word), name))
            place += taken
        else:
            units.append(_Unit((ids[place],), piece.weight, text, (number, word)))
            place += 1
    return units


def _filled(
    sections: Sequence[Sequence[_Unit]], room: int, comma: int | None, backtrack: int, most: int | None
) -> list[list[_Unit]]:
    """Units of each section packed into chunks of `room` tokens; a new section begins a new chunk."""
    done: list[list[_Unit]] = []
    for section in sections:
        here: list[_Unit] = []
        size, comma_at = 0, (-1, -math.inf)  # index of the last comma in the chunk, and its place
        for unit in section:
            last = most is not None and len(done) + 1 >= most
            if unit.ids == (comma,) and not unit.name:
                comma_at = len(here), size
            elif size == room and not last and size - comma_at[1] <= backtrack and backtrack:
                done.append(here[: comma_at[0] + 1])
                here = here[comma_at[0] + 1 :]
                size, comma_at = sum(len(u.ids) for u in here), (-1, -math.inf)
            if size + len(unit.ids) > room:
                done.append(here)
                here, size, comma_at = [], 0, (-1, -math.inf)
            here.append(unit)
            size += len(unit.ids)
        done.append(here)
    if len(done) > 1 and not done[-1]:
        done.pop()  # a last break with nothing behind it
    return done


def _words(pieces: Sequence[Piece], tokenizer: Tokenizer, inversions: Inversions | None) -> Iterator[list[_Unit]]:
    """ComfyUI's words, each tokenised alone."""
    number = 0
    for piece in pieces:
        for word in re.split("[ \n]+", piece.text):
            name = word.removeprefix(NAMED).rstrip(",") if word.startswith(NAMED) else ""
            if inversions and name in inversions.vectors:
                yield [_Unit((0,) * len(inversions.vectors[name]), piece.weight, name, (number, 0), name)]
                word = word.removeprefix(NAMED + name)
                number += 1
            units = _units(Piece(word, piece.weight), number, tokenizer, None)
            if units:
                yield units
                number += 1


def _by_words(words: Iterator[list[_Unit]], room: int, most: int | None) -> list[list[_Unit]]:
    done: list[list[_Unit]] = [[]]
    size = 0
    for word in words:
        cut = len(word) >= LONG or len(done) == most
        for units in [[u] for u in word] if cut else [word]:
            count = sum(len(u.ids) for u in units)
            if size + count > room:
                done.append([])
                size = 0
            done[-1] += units
            size += count
    return done


def _chunk(units: Sequence[_Unit], tokenizer: Tokenizer) -> Chunk:
    ids, weights = [tokenizer.start], [1.0]
    spans: list[WordSpan] = []
    placed = []
    before: tuple[int, int] | None = None
    for unit in units:
        start = len(ids)
        if unit.name:
            placed.append(Placed(unit.name, start))
        ids += unit.ids
        weights += [unit.weight] * len(unit.ids)
        if unit.key == before and not unit.name:
            spans[-1] = WordSpan(unit.word, spans[-1].start, len(ids))
        else:
            spans.append(WordSpan(unit.word, start, len(ids)))
        before = None if unit.name else unit.key
    used = len(ids) - 1
    rest = tokenizer.length - len(ids) - 1
    ids += [tokenizer.end, *[tokenizer.pad] * rest]
    return Chunk(tuple(ids), (*weights, *[1.0] * (rest + 1)), used, tuple(spans), tuple(placed))
