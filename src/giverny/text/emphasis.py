"""Emphasis in prompts: brackets that say how much words count, in the dialects of two programs.

AUTOMATIC1111 (stable-diffusion-webui, modules/prompt_parser.py): `(word)` times 1.1, `[word]` divided by 1.1, `(word:1.3)`
times 1.3; nested brackets multiply, an unclosed one reaches to the end, a backslash makes a bracket a letter, and the word
BREAK begins a new chunk. ComfyUI (comfy/sd1_clip.py): round brackets alone; a number replaces what lies around it instead of
multiplying it, an unclosed bracket is a letter. What is not syntax is text: nothing here raises.

Ours: a number that is none, such as (word:1.2.3), is text, and so is one beyond LARGEST; BREAK inside brackets breaks as well
(the program's own reader then reads it as a word of negative weight).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Dialect = Literal["plain", "a1111", "a1111-old", "comfyui"]
Emphasis = Literal["auto", "original", "no-norm", "interpolate", "ignore", "none"]  # what is done with weights, or "none"

STRONGER = 1.1  # what one pair of brackets does
LARGEST = 1e6  # weights reach so far from 0, nested ones too

# an escape, a number that closes a bracket, a bracket, or the text up to the next of these
_TOKEN = re.compile(r"\\[()\[\]\\]?|:\s*(?P<number>[+-]?[.\d]+)\s*\)|[()\[\]]|[^\\()\[\]:]+|:")
_SIGN = re.compile(r"\\[()]|.", re.DOTALL)  # a letter, or an escaped bracket
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Piece:
    """A part of a prompt, as it is to be read, and how much it counts."""

    text: str
    weight: float = 1.0
    breaks: bool = False  # a new chunk begins before it


def pieces(prompt: str, dialect: Dialect) -> tuple[Piece, ...]:
    """A prompt's pieces in their order, one or more; neighbours of equal weight are one.

    "plain" has no syntax. "a1111-old" weighs by tokens, see `chunks`, so its text is left as it is here too.
    """
    if dialect == "a1111":
        return _a1111(prompt)
    if dialect == "comfyui":
        return _joined(_comfyui(prompt))
    return (Piece(prompt),)


def _a1111(prompt: str) -> tuple[Piece, ...]:
    found: list[Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # how many pieces lay before each open bracket

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        found[start:] = [replace(p, weight=_bounded(p.weight * factor)) for p in found[start:]]

    for token in _TOKEN.finditer(prompt):
        text = token[0]
        number = number_of(token["number"]) if token["number"] else None
        if text[0] == "\\":
            found.append(Piece(text[1:]))
        elif text in opened:
            opened[text].append(len(found))
        elif number is not None and opened["("]:
            close("(", number)
        elif text == ")" and opened["("]:
            close("(", STRONGER)
        elif text == "]" and opened["["]:
            close("[", 1 / STRONGER)
        elif token["number"] and opened["("]:  # a bracket closed behind what is no number
            found.append(Piece(text[:-1]))
            close("(", STRONGER)
        else:
            first, *others = _BREAK.split(text)
            found += [Piece(first), *(Piece(part, breaks=True) for part in others)]
    for bracket, factor in (("(", STRONGER), ("[", 1 / STRONGER)):
        while opened[bracket]:
            close(bracket, factor)
    return _joined(found)


def _comfyui(prompt: str) -> list[Piece]:
    found: list[Piece] = []
    waiting = [(_SIGN.findall(prompt), 1.0)]
    while waiting:  # a stack instead of calls: a prompt may nest as deeply as it is long
        signs, weight = waiting.pop()
        groups = _outermost(signs)
        if len(groups) == 1 and not _is_group(signs):
            found.append(Piece("".join(sign[-1] for sign in signs), weight))  # an escape is the bracket behind it
        else:
            waiting += [_opened(g, weight) if _is_group(g) else (g, weight) for g in reversed(groups)]
    return found


def _is_group(signs: list[str]) -> bool:
    return len(signs) >= 2 and signs[0] == "(" and signs[-1] == ")"


def _opened(group: list[str], weight: float) -> tuple[list[str], float]:
    """What stands inside a bracket, and its weight."""
    inside = group[1:-1]
    colon = max((i for i, sign in enumerate(inside) if sign == ":"), default=0)
    number = number_of("".join(inside[colon + 1 :])) if colon else None
    return (inside, _bounded(weight * STRONGER)) if number is None else (inside[:colon], number)


def _outermost(signs: list[str]) -> list[list[str]]:
    """Cut before each outermost opening bracket and behind its closing one; depths below 0 open nothing."""
    parts, start, depth = [], 0, 0
    for i, sign in enumerate(signs):
        if sign == "(":
            if depth == 0 and i > start:
                parts.append(signs[start:i])
                start = i
            depth += 1
        elif sign == ")":
            depth -= 1
            if depth == 0:
                parts.append(signs[start : i + 1])
                start = i + 1
    return [*parts, signs[start:]] if start < len(signs) else parts


def number_of(text: str) -> float | None:
    """The number a text is, or None where it is none that a weight can be."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) <= LARGEST else None


def _bounded(weight: float) -> float:
    return max(-LARGEST, min(LARGEST, weight))


def _joined(found: Iterable[Piece]) -> tuple[Piece, ...]:
    """Neighbours of equal weight become one piece, unless a new chunk begins between them."""
    joined: list[Piece] = []
    for piece in found:
        if joined and joined[-1].weight == piece.weight and not piece.breaks:
            joined[-1] = replace(joined[-1], text=joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return tuple(joined) or (Piece(""),)
