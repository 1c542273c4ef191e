"""A prompt read in a program's dialect: which texts are in force when, in which chunks, and how strongly each counts.

Order as in AUTOMATIC1111 (modules/processing.py): adapters are taken out, AND parts the prompt (never the negative one),
editing and alternation give each part its texts over time, brackets give each text its weights, and chunks are cut. ComfyUI's
prompts know brackets and chunks alone. `prompt_plan` wants a tokenizer and no network; `encoding.encode` makes vectors of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from ..base.knobs import Frozen
from .calls import AdapterCall, extract
from .chunks import BACKTRACK, Chunk, Inversions, chunked
from .emphasis import Dialect, Emphasis, Piece, pieces
from .schedule import Segment, Timeline, at_call, parts, schedule
from .tokenizer import Tokenizer
from .weighting import Weighting


class PromptSettings(Frozen):
    """How prompts are read; the numbers' defaults are AUTOMATIC1111's."""

    dialect: Dialect = Field("plain", description="whose syntax a prompt may have; plain: none")
    emphasis: Emphasis = Field(
        "auto", description="how weights act on vectors: auto as the dialect's program does; none: brackets are text"
    )
    clip_skip: int = Field(1, ge=1, description="which layer of the text tower is read, counted from the end: 1 is the last")
    backtrack: int = Field(BACKTRACK, ge=0, description="tokens from a chunk's end in which a comma may end it: 0 is none")
    windows: int | None = Field(None, ge=1, description="chunks read at most, what is beyond is left out; None: all")
    old_timelines: bool = Field(False, description="read the numbers of prompt editing as AUTOMATIC1111 before 1.6 did")
    padding: Literal["separate", "empty", "repeat"] = Field(
        "separate",
        description="prompt and negative prompt of unequal length: each keeps its own, the shorter gets empty chunks, or the "
        "negative one is cut or its last vector repeated",
    )

    @property
    def weighting(self) -> Weighting:
        if self.emphasis == "auto":
            return "interpolate" if self.dialect == "comfyui" else "original"
        return "ignore" if self.emphasis == "none" else self.emphasis

    @property
    def limit(self) -> int | None:
        """Chunks at most; a plain prompt has one, as its model was taught."""
        return 1 if self.dialect == "plain" else self.windows


@dataclass(frozen=True)
class Line:
    """One prompt over time: segment i is read as chunks[i]."""

    weight: float
    segments: tuple[Segment, ...]
    chunks: tuple[tuple[Chunk, ...], ...]

    def index(self, call: int) -> int:
        """Of the segment in force at the call-th asking of the network, from 0."""
        return at_call(self.segments, call)


@dataclass(frozen=True)
class PromptPlan:
    """What to tell a denoiser over a run. Lines of `positive` are added with their weights; `negative` is what they leave."""

    positive: tuple[Line, ...]
    negative: Line
    calls: tuple[AdapterCall, ...]  # of the positive prompt; those in the negative one are taken out and do nothing
    settings: PromptSettings
    words: str  # what the prompt says at the end of the run, without syntax
    plain: bool  # both prompts are as without any syntax: one text each, in one chunk, all words at their usual weight

    @property
    def lines(self) -> tuple[Line, ...]:
        return (*self.positive, self.negative)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(line.weight for line in self.positive)

    def at(self, call: int) -> tuple[tuple[tuple[float, tuple[Chunk, ...]], ...], tuple[Chunk, ...]]:
        """((weight, chunks) of each positive line, chunks of the negative one) at the call-th asking, from 0."""
        told = tuple((line.weight, line.chunks[line.index(call)]) for line in self.positive)
        return told, self.negative.chunks[self.negative.index(call)]

    def stretches(self, total: int) -> tuple[int, ...]:
        """The calls, from 0, at which something changes within a run of so many; the first is 0."""
        heads = [tuple(line.chunks[line.index(call)] for line in self.lines) for call in range(total)]
        return tuple(call for call in range(total) if call == 0 or heads[call] != heads[call - 1])


def prompt_plan(
    prompt: str,
    negative: str,
    settings: PromptSettings,
    tokenizer: Tokenizer,
    steps: int,
    before: int | None = None,
    inversions: Inversions | None = None,
) -> PromptPlan:
    """steps: askings of the network in this run (a sampler that asks twice a step has twice as many); before: of the first run,
    where this is a second one over the same pictures. Never raises for what a prompt says."""
    timeline = Timeline(steps, before, settings.old_timelines)
    changing = settings.dialect in ("a1111", "a1111-old")
    (told, calls), (against, _) = (extract(text) if changing else (text, ()) for text in (prompt, negative))

    def line(text: str, weight: float) -> Line:
        segments = schedule(text, timeline) if changing else (Segment(steps, text),)
        read = {s.text: _read(s.text, settings, tokenizer, inversions) for s in segments}
        return Line(weight, segments, tuple(read[s.text] for s in segments))

    positive = tuple(line(text, weight) for text, weight in (parts(told) if changing else ((told, 1.0),)))
    other = line(against, 1.0)
    usual = [chunked((Piece(text),), tokenizer, "plain", most=1) for text in (prompt, negative)]
    same = [{*positive[0].chunks} == {usual[0]}, {*other.chunks} == {usual[1]}]
    plain = len(positive) == 1 and positive[0].weight == 1 and all(same) and settings.clip_skip == 1 and not calls
    words = "".join(piece.text for piece in _pieces(positive[0].segments[-1].text, settings))
    return PromptPlan(positive, other, calls, settings, words, plain)


def _pieces(text: str, settings: PromptSettings) -> tuple[Piece, ...]:
    return pieces(text, "plain" if settings.emphasis == "none" else settings.dialect)


def _read(text: str, settings: PromptSettings, tokenizer: Tokenizer, inversions: Inversions | None) -> tuple[Chunk, ...]:
    dialect: Dialect = settings.dialect
    if settings.emphasis == "none" and dialect == "a1111-old":
        dialect = "a1111"  # whose brackets are text by now
    return chunked(
        _pieces(text, settings),
        tokenizer,
        dialect,
        backtrack=settings.backtrack,
        most=settings.limit,
        inversions=inversions,
    )
