"""Byte-pair tokenizer with CLIP's conventions (Radford et al. 2021), on the `tokenizers` library.

Lower-cased, byte-level, words end in `</w>`, one start and one end token around the text. The whole tokenizer is one
`tokenizer.json`, so a model folder is enough to read words as the model was taught them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.contracts import WordSpan
from ..base.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"
MARKS = {START: (END, END), "[CLS]": ("[SEP]", "[PAD]")}  # start -> end and padding: CLIP's, BERT's
SUFFIX = "</w>"  # of a symbol that ends a word
LEAST = 514  # 256 bytes, the same ending a word, and the two marks
# CLIP's own splitting rule: contractions, runs of letters, single digits, runs of anything else that is not space.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokens:
    """B texts of at most `length` tokens each, start and end included."""

    ids: Tensor  # (B, L) int64
    mask: Tensor  # (B, L) bool, True for start, text and the first end
    spans: tuple[tuple[WordSpan, ...], ...]
    dropped: tuple[str, ...]  # per text, what did not fit; '' where all did


class Tokenizer:
    """Texts -> token ids of a fixed length, between CLIP's marks or BERT's. CLIP's padding is the end token, as in Stable
    Diffusion 1.x, or another (`pad`): its number 0 in Stable Diffusion 2.x. A tokenizer.json says which by its own padding."""

    def __init__(self, inner: Any, length: int = 77, pad: int | None = None) -> None:
        self._inner = inner
        self.length = length
        for start, (end, padding) in MARKS.items():
            numbers = [inner.token_to_id(mark) for mark in (start, end, padding)]
            if None not in numbers:
                self.start, self.end, usual = map(int, numbers)
                self.pad = usual if pad is None else pad
                return
        known = " or ".join(f"{start} and {end}" for start, (end, _) in MARKS.items())
        raise InputError(f"a tokenizer with {known}", "one without", "Use a tokenizer.json as CLIP or BERT have it.")

    @staticmethod
    def train(texts: Iterable[str], vocabulary: int, length: int = 77) -> Tokenizer:
        """Learn merges from texts; the same texts give the same tokenizer. vocabulary: most tokens in all, at least 514."""
        import json

        from tokenizers import trainers

        letters = sorted(_alphabet())
        first = [
            *letters,
            *(letter + SUFFIX for letter in letters),
        ]  # CLIP's order: bytes, bytes that end a word, merges, marks
        learner = _clip_shape()
        # Named as special tokens, the first symbols get fixed numbers; otherwise the learner's numbering, and with it the
        # order of equally frequent merges, would change from run to run.
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocabulary, LEAST) - 2, special_tokens=first, end_of_word_suffix=SUFFIX, show_progress=False
        )
        learner.train_from_iterator(sorted(set(texts)), trainer)
        merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
        symbols = dict.fromkeys([*first, *(a + b for a, b in merges), START, END])
        return Tokenizer(_clip_shape({symbol: i for i, symbol in enumerate(symbols)}, merges), length)

    @staticmethod
    def whole(texts: Iterable[str], length: int = 77) -> Tokenizer:
        """Every text is one token, upper and lower case alike; texts that are not among them read as nothing. What it knows of
        a class is its number."""
        from tokenizers import Tokenizer as Inner
        from tokenizers import models, normalizers

        known = sorted({text.lower() for text in texts})
        symbols = {text: i for i, text in enumerate(dict.fromkeys([*known, START, END]))}
        inner = Inner(models.WordLevel(symbols, unk_token=END))
        inner.add_special_tokens([START, END])
        inner.normalizer = normalizers.Lowercase()
        return Tokenizer(inner, length)

    @staticmethod
    def read(path: str | Path, length: int = 77, pad: int | None = None) -> Tokenizer:
        from tokenizers import Tokenizer as Inner

        try:
            inner = Inner.from_file(str(path))
            pad = None if inner.padding is None else int(inner.padding["pad_id"])
            inner.no_padding()  # published ones may pad and cut by themselves, to lengths of their own
            inner.no_truncation()
            return Tokenizer(inner, length, pad)
        except InputError:
            raise
        except Exception as error:  # the library raises bare Exception for a missing or a damaged file
            raise InputError("a readable tokenizer.json", f"{path} ({error})") from error

    @staticmethod
    def of(
        vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], length: int = 77, pad: int | None = None
    ) -> Tokenizer:
        """From symbols with their numbers, and merges, most frequent first: CLIP's vocab.json and merges.txt."""
        try:
            return Tokenizer(_clip_shape(dict(vocabulary), list(merges)), length, pad)
        except InputError:
            raise
        except Exception as error:  # the library raises bare Exception for merges of symbols that are not there
            raise InputError("merges of symbols that the vocabulary has", str(error)) from error

    def to_json(self) -> str:
        if self.pad == self.end:
            return self._inner.to_str()
        from tokenizers import Tokenizer as Inner

        padded = Inner.from_str(self._inner.to_str())
        padded.enable_padding(pad_id=self.pad, pad_token=padded.id_to_token(self.pad), length=self.length)
        return padded.to_str()

    def symbols(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """(symbols with their numbers, merges): what CLIP's vocab.json and merges.txt hold."""
        import json

        model = json.loads(self._inner.to_str())["model"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return dict(self._inner.get_vocab()), [(left, right) for left, right in pairs]

    def number(self, symbol: str) -> int | None:
        """Of a symbol, or None where there is no such."""
        found = self._inner.token_to_id(symbol)
        return None if found is None else int(found)

    @property
    def vocabulary(self) -> int:
        return int(self._inner.get_vocab_size())

    def __call__(self, texts: Sequence[str]) -> Tokens:
        rows, masks, spans, dropped = [], [], [], []
        room = self.length - 2
        for text in texts:
            found = self._inner.encode(text, add_special_tokens=False)
            ids = [self.start, *found.ids[:room], self.end]
            masks.append([i < len(ids) for i in range(self.length)])
            rows.append(ids + [self.pad] * (self.length - len(ids)))
            spans.append(_spans(text, found.word_ids[:room], found.offsets[:room], 1))
            dropped.append(text[found.offsets[room][0] :] if len(found.ids) > room else "")
        return Tokens(torch.tensor(rows), torch.tensor(masks), tuple(spans), tuple(dropped))

    def split(self, text: str) -> tuple[tuple[int, ...], tuple[WordSpan, ...]]:
        """All tokens of a text, however long, without start and end; and its words, counted from the first token as 0."""
        found = self._inner.encode(text, add_special_tokens=False)
        return tuple(found.ids), _spans(text, found.word_ids, found.offsets, 0)

    def id_of(self, symbol: str) -> int | None:
        """The token with this symbol, such as ",</w>" for a comma; None where there is none."""
        found = self._inner.token_to_id(symbol)
        return None if found is None else int(found)

    def symbol_of(self, token: int) -> str:
        return str(self._inner.id_to_token(token))


def _spans(text: str, words: Sequence[int], offsets: Sequence[tuple[int, int]], first: int) -> tuple[WordSpan, ...]:
    """Neighbouring tokens of one word joined. words, offsets: of each token; first: the place of the first token."""
    spans: list[WordSpan] = []
    begins: list[int] = []  # where in the text each word begins
    for i, (word, (begin, end)) in enumerate(zip(words, offsets, strict=True)):
        if spans and word == words[i - 1]:
            spans[-1] = WordSpan(text[begins[-1] : end], spans[-1].start, first + i + 1)
        else:
            spans.append(WordSpan(text[begin:end], first + i, first + i + 1))
            begins.append(begin)
    return tuple(spans)


def _alphabet() -> set[str]:
    from tokenizers import pre_tokenizers

    return set(pre_tokenizers.ByteLevel.alphabet())


def _clip_shape(vocabulary: dict[str, int] | None = None, merges: Sequence[tuple[str, ...]] | None = None) -> Any:
    """An untrained tokenizer of CLIP's kind, or one with these symbols and merges."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    known: dict[str, Any] = {"vocab": vocabulary, "merges": merges} if vocabulary is not None else {}
    inner = Inner(models.BPE(**known, continuing_subword_prefix="", end_of_word_suffix=SUFFIX, unk_token=END))
    if vocabulary is not None:
        inner.add_special_tokens([START, END])
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    return inner
