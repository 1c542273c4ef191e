"""Plans of prompts to the vectors a denoiser attends to: every distinct chunk goes through the text tower once.

Chunks are put one behind the other along the tokens. How prompts of unequal length meet follows AUTOMATIC1111: texts that take
turns get empty chunks (modules/sd_hijack_clip.py), prompts joined by AND repeat their last vector (modules/prompt_parser.py),
and prompt and negative prompt do what `PromptSettings.padding` says (modules/sd_samplers_cfg_denoiser.py). There "separate"
means two askings of the network; here a mask hides what one of them lacks, which comes to the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.contracts import Condition, WordSpan
from .chunks import Chunk, Inversions, empty
from .clip import ClipTextEncoder
from .prompting import Line, PromptPlan
from .towers import Insert
from .weighting import weighted

BATCH = 256  # chunks encoded together


@dataclass(frozen=True, eq=False)
class Reading:
    """One text as vectors; N tokens in whole chunks."""

    vectors: Tensor  # (N, C)
    words: Tensor  # (N,) bool, True for each chunk's start, text and first end
    seen: Tensor  # (N,) bool, False for what is only there to make lengths equal
    pooled: Tensor  # (P,) of the first chunk, from the last layer whatever the clip skip
    spans: tuple[WordSpan, ...]  # of its words, among the N tokens

    def longer(self, vectors: Tensor, seen: bool) -> Reading:
        """With these vectors (M, C) behind it."""
        more = torch.full((len(vectors),), seen, device=self.words.device)
        words = torch.cat([self.words, torch.zeros_like(more)])
        return Reading(torch.cat([self.vectors, vectors]), words, torch.cat([self.seen, more]), self.pooled, self.spans)

    def cut(self, count: int) -> Reading:
        spans = tuple(span for span in self.spans if span.end <= count)
        return Reading(self.vectors[:count], self.words[:count], self.seen[:count], self.pooled, spans)


@dataclass(frozen=True, eq=False)
class EncodedPlan:
    """A plan and its readings: of each segment of each positive line, and of the negative line."""

    plan: PromptPlan
    positive: tuple[tuple[Reading, ...], ...]
    negative: tuple[Reading, ...]
    nothing: Tensor  # (L, C), the empty chunk's vectors

    def at(self, call: int) -> tuple[tuple[Reading, ...], Reading]:
        """Of each positive line, all of one length, and of the negative one, at the call-th asking from 0."""
        told = [readings[line.index(call)] for line, readings in zip(self.plan.positive, self.positive, strict=True)]
        against = self.negative[self.plan.negative.index(call)]
        most = max(len(r.vectors) for r in told)
        told = [_repeated(r, most) for r in told]
        missing = most - len(against.vectors)
        padding = self.plan.settings.padding
        if padding == "repeat":
            against = _repeated(against, most).cut(most)
        elif padding == "empty" and missing:
            filler = self.nothing.repeat(abs(missing) // len(self.nothing), 1)
            if missing > 0:
                against = against.longer(filler, True)
            else:
                told = [r.longer(filler, True) for r in told]
        return tuple(told), against


def encode(
    plans: Sequence[PromptPlan], encoder: ClipTextEncoder, inversions: Inversions | None = None
) -> tuple[EncodedPlan, ...]:
    """Readings of these plans, which were made with the encoder's tokenizer and these inversions; all of one clip skip."""
    nothing = empty(encoder.tokenizer)
    lines = [*(line for plan in plans for line in plan.positive), *(plan.negative for plan in plans)]
    chunks = [c for line in lines for read in line.chunks for c in read]
    if not all(chunk.plain for chunk in chunks) or any(_uneven(plan) for plan in plans):
        chunks.append(nothing)
    skips = {plan.settings.clip_skip for plan in plans}
    if len(skips) > 1:
        raise ValueError(f"plans of one clip skip are encoded together, given {sorted(skips)}")
    known = _towers(chunks, encoder, inversions, *skips)
    blank = known.get(_key(nothing), (torch.empty(0), torch.empty(0)))[0]
    return tuple(
        EncodedPlan(
            plan,
            tuple(_line(line, plan, known, nothing, encoder.widths) for line in plan.positive),
            _line(plan.negative, plan, known, nothing, encoder.widths),
            blank,
        )
        for plan in plans
    )


def conditions(
    moments: Sequence[tuple[tuple[Reading, ...], Reading]], hide_padding: bool, cross: bool = True, additive: bool = False
) -> tuple[tuple[Condition, ...], Condition]:
    """The conditions of B pictures: one for each positive line, and the negative one; all of one length.

    moments: `EncodedPlan.at` of each picture; all have as many lines. hide_padding: attend to words alone, for models taught
    so. cross, additive: which parts the denoiser takes.
    """
    columns = [*zip(*(told for told, _ in moments), strict=True), tuple(against for _, against in moments)]
    most = max(len(r.vectors) for column in columns for r in column)
    columns = [tuple(_hidden(r, most) for r in column) for column in columns]
    masked = hide_padding or not all(bool(r.seen.all()) for column in columns for r in column)

    def condition(column: Sequence[Reading]) -> Condition:
        return Condition(
            vectors=torch.stack([r.vectors for r in column]) if cross else None,
            mask=torch.stack([r.words if hide_padding else r.seen for r in column]) if cross and masked else None,
            pooled=torch.stack([r.pooled for r in column]) if additive else None,
        )

    *positive, negative = (condition(column) for column in columns)
    return tuple(positive), negative


_Key = tuple[tuple[int, ...], object]
_Known = dict[_Key, tuple[Tensor, Tensor]]


def _key(chunk: Chunk) -> _Key:
    return chunk.ids, chunk.placed


def _uneven(plan: PromptPlan) -> bool:
    """Whether some text of it has fewer chunks than another."""
    return len({len(read) for line in plan.lines for read in line.chunks}) > 1


@torch.no_grad()
def _towers(chunks: Sequence[Chunk], encoder: ClipTextEncoder, inversions: Inversions | None, skip: int) -> _Known:
    """(vectors (L, C), pooled (P,)) of each distinct chunk."""
    distinct = list({_key(chunk): chunk for chunk in chunks}.values())
    known: _Known = {}
    for first in range(0, len(distinct), BATCH):
        part = distinct[first : first + BATCH]
        inserts = [
            Insert(row, place.start, inversions.vectors[place.name])
            for row, chunk in enumerate(part)
            for place in chunk.placed
            if inversions
        ]
        ids = torch.tensor([chunk.ids for chunk in part], device=next(encoder.tower.parameters()).device)
        vectors, pooled = encoder.read(ids, skip, inserts)
        known |= {_key(chunk): (vectors[i], pooled[i]) for i, chunk in enumerate(part)}
    return known


def _line(line: Line, plan: PromptPlan, known: _Known, nothing: Chunk, widths: Sequence[int]) -> tuple[Reading, ...]:
    """The readings of a line's segments, of one length each; equal texts share one. widths: of the towers' parts of vectors,
    each of which is weighted by itself."""
    texts = list(dict.fromkeys(line.chunks))
    counts = [line.chunks.count(text) for text in texts]
    most = max(len(text) for text in texts)
    columns = []
    for i in range(most):
        column = [text[i] if i < len(text) else nothing for text in texts]
        vectors = torch.stack([known[_key(chunk)][0] for chunk in column])
        if any(not chunk.plain for chunk in column):
            weights, how = torch.tensor([chunk.weights for chunk in column]), plan.settings.weighting
            parts = (x.split(list(widths), -1) for x in (vectors, known[_key(nothing)][0]))
            vectors = torch.cat([weighted(part, weights, how, blank, counts) for part, blank in zip(*parts, strict=True)], -1)
        columns.append(vectors)
    joined = torch.cat(columns, dim=1)  # (texts, N, C)
    made = {text: _reading(text, joined[i], known, nothing) for i, text in enumerate(texts)}
    return tuple(made[text] for text in line.chunks)


def _reading(text: tuple[Chunk, ...], vectors: Tensor, known: _Known, nothing: Chunk) -> Reading:
    length = len(nothing.ids)
    chunks = [*text, *[nothing] * (len(vectors) // length - len(text))]
    words = torch.tensor([i < chunk.used + 2 for chunk in chunks for i in range(length)], device=vectors.device)
    spans = tuple(
        WordSpan(span.word, span.start + i * length, span.end + i * length)
        for i, chunk in enumerate(chunks)
        for span in chunk.spans
    )
    return Reading(vectors, words, torch.ones_like(words), known[_key(text[0])][1], spans)


def _repeated(reading: Reading, count: int) -> Reading:
    """Its last vector again until there are so many."""
    missing = count - len(reading.vectors)
    return reading if missing <= 0 else reading.longer(reading.vectors[-1:].expand(missing, -1), True)


def _hidden(reading: Reading, count: int) -> Reading:
    """With hidden zeros behind it until there are so many vectors."""
    missing = count - len(reading.vectors)
    return reading if missing <= 0 else reading.longer(F.pad(reading.vectors[:0], (0, 0, 0, missing)), False)
