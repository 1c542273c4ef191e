"""Prompts that change while they are painted: AUTOMATIC1111's editing, alternation and AND (modules/prompt_parser.py).

`[from:to:when]`, `[to:when]`, `[from::when]` change the text at a step; `[a|b]` alternates from step to step; either may stand
in the other. `one :1.2 AND two :0.8` are two prompts at once (Liu et al. 2022, arXiv 2206.01714). Emphasis is left as it is.

That program reads all this with a grammar, and takes a prompt that does not fit it as it stands. Here one pass over the
brackets says the same: a bracket is well formed when all in it is, and where one is not, it and all around it is text. A "|"
that stands as text makes the whole prompt text. Ours: so do brackets nested deeper than DEPTH. Its grammar is ambiguous: among
brackets without a partner the two may read an edit differently (6 of 24,000 random rows of brackets and numbers).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from .emphasis import number_of

DEPTH = 64
_TOKEN = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|]")
_WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*", re.ASCII)
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


@dataclass(frozen=True)
class Segment:
    """A text, and the last step (from 1) it is in force."""

    end: int
    text: str


@dataclass(frozen=True)
class Timeline:
    """How the numbers of `[a:b:when]` are read.

    steps: of this run. before: None in a first run; in a second one the steps of the first, since numbers then count on
    from there (fractions from 1 to 2, steps from `before`). old: as before version 1.6 of that program, where a number below
    1 is a fraction of the steps and any other a step, in both runs alike; since then a decimal point makes the difference.
    """

    steps: int
    before: int | None = None
    old: bool = False

    def step(self, when: str) -> int:
        """The last step of what stands before a number; below 1 where it is over before the run begins."""
        value = float(when)
        if self.old:
            place = value * self.steps if value < 1 else value
        elif "." in when:
            place = (value - (self.before is not None)) * self.steps
        else:
            place = value - (self.before or 0)
        return int(max(-1.0, min(float(self.steps), place)))


def parts(prompt: str) -> tuple[tuple[str, float], ...]:
    """(text, weight) of each prompt that AND joins, in order; white space at their ends is gone. One of weight 1 without."""
    found = []
    for text in _AND.split(prompt):
        head, colon, tail = text.rpartition(":")
        weight = number_of(tail) if colon and _WEIGHT.fullmatch(tail.strip()) else None
        found.append((text.rstrip(), 1.0) if weight is None else (head.rstrip(), weight))
    return tuple(found)


def schedule(prompt: str, timeline: Timeline) -> tuple[Segment, ...]:
    """The texts in force one after the other, the last one to the end of the run.

    Neighbours may have the same text: there is a segment for every number in the prompt, and one for every step where there
    is alternation, as that program makes them (its emphasis averages over them, see `weighting.weighted`).
    """
    nodes = _parse(prompt)
    if nodes is None:
        return (Segment(timeline.steps, prompt),)
    ends = {timeline.steps, *_ends(nodes, timeline)}
    return tuple(Segment(end, "".join(_texts(nodes, end, timeline))) for end in sorted(ends))


def at_call(segments: tuple[Segment, ...], call: int) -> int:
    """Which segment is in force at the call-th asking of the network, from 0.

    Since that program compares a count from 0 with steps from 1, the first segment lasts one call longer than it says.
    """
    return min(bisect_left(segments, call, key=lambda segment: segment.end), len(segments) - 1)


@dataclass(frozen=True)
class _Edit:
    before: list[_Node]
    after: list[_Node]
    when: str


@dataclass(frozen=True)
class _Turns:
    options: list[list[_Node]]


_Node = str | _Edit | _Turns


@dataclass
class _Bracket:
    """An open bracket and what has been read in it, cut at each ":" and "|"."""

    opener: str
    fields: list[list[_Node]] = field(default_factory=lambda: [[]])
    marks: str = ""  # what cut them

    def literal(self) -> list[_Node]:
        """All of it as text, but for the editing inside, which stays."""
        nodes: list[_Node] = [self.opener, *self.fields[0]]
        for mark, more in zip(self.marks, self.fields[1:], strict=True):
            nodes += [mark, *more]
        return nodes

    def closed(self, bracket: str) -> list[_Node] | None:
        """What it means, closed by this bracket; None where it is not well formed."""
        if self.opener + bracket == "()" and self.marks in ("", ":"):
            return [*self.literal(), bracket]
        if self.opener + bracket != "[]":
            return None
        if not self.marks:
            return [*self.literal(), bracket]
        if not self.marks.strip("|"):
            return [_Turns(self.fields)]
        when = _WHEN.fullmatch("".join(n for n in self.fields[-1] if isinstance(n, str)))
        if self.marks in (":", "::") and when and not any(isinstance(n, _Edit | _Turns) for n in self.fields[-1]):
            before = self.fields[0] if self.marks == "::" else []
            return [_Edit(before, self.fields[-2], when[1])]
        return None


def _parse(prompt: str) -> list[_Node] | None:
    """None where the whole prompt is to be taken as it stands."""
    root: list[_Node] = []
    opened: list[_Bracket] = []
    position = 0
    while position < len(prompt):
        token = _TOKEN.match(prompt, position)
        if token is None:  # a backslash with nothing behind it
            return None
        position, text = token.end(), token[0]
        here = opened[-1].fields[-1] if opened else root
        if text in "[(":
            opened.append(_Bracket(text))
            if len(opened) > DEPTH:
                return None
        elif text in ":|" and opened:
            opened[-1].marks += text
            opened[-1].fields.append([])
        elif text == "|":
            return None
        elif text in "])":
            meaning = opened[-1].closed(text) if opened else None
            if meaning is None:
                if not _spill(opened, root):
                    return None
                root.append(text)
            else:
                opened.pop()
                (opened[-1].fields[-1] if opened else root).extend(meaning)
        else:
            here.append(text)
    return root if _spill(opened, root) else None


def _spill(opened: list[_Bracket], root: list[_Node]) -> bool:
    """Every open bracket becomes text; False where a "|" would."""
    for bracket in opened:
        if "|" in bracket.marks:
            return False
        root += bracket.literal()
    opened.clear()
    return True


def _ends(nodes: list[_Node], timeline: Timeline) -> Iterator[int]:
    """The steps after which something changes."""
    for node in nodes:
        if isinstance(node, _Edit):
            end = timeline.step(node.when)
            if end >= 1:
                yield end
            yield from _ends([*node.before, *node.after], timeline)
        elif isinstance(node, _Turns):
            yield from range(1, timeline.steps + 1)


def _texts(nodes: list[_Node], step: int, timeline: Timeline) -> Iterator[str]:
    """What is read at a step, from 1."""
    for node in nodes:
        if isinstance(node, _Edit):
            yield from _texts(node.before if step <= timeline.step(node.when) else node.after, step, timeline)
        elif isinstance(node, _Turns):
            yield from _texts(node.options[(step - 1) % len(node.options)], step, timeline)
        else:
            yield node
