"""The judges of clothes: two networks of different build, each of which says garment and colour of a picture.

They are fitted to real training photographs, never to recoloured ones, and are kept under their fingerprint. A
seller's few orange jackets must count beside a thousand black shirts, so that rare words weigh more in the loss. Pictures
are shifted and mirrored. No judge has seen a held-out pair, a red jacket for one, and could learn that what is red is no
jacket: so half of the pictures have their colour channels shuffled, and of these only the garment is learnt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import judges
from giverny.base.errors import InputError
from giverny.base.files import fingerprint
from giverny.data.catalog import open_named
from giverny.data.clothes.words import COLOURS, GARMENTS
from giverny.data.folders import FolderSource
from giverny.data.tables import read_jsonl
from judges import Judge, Residual, conv_block, kept_or_trained, read, train_judge, untrained

WORDS = {"garment": tuple(GARMENTS), "colour": tuple(COLOURS)}
SIDE = 64  # of a picture, in pixels
UNKNOWN = -1  # the number of a colour that nobody named
EPOCHS = (20, 20)  # of the first and the second judge: about five minutes and one on two idle cores
SHIFT, WHITE = 4, 255  # pixels; things lie on white
SWAPPED = 0.5  # share of pictures that only the garment is learnt from, in colours changed at random
RARE = 0.5  # a word that n photographs show weighs n ** -RARE: 0 counts photographs alike, 1 words
BUILD = 1  # raise it when a network or its training changes: kept judges are then trained anew

# ---------------------------------------------------------------------------------------------------------------------
# Photographs


@dataclass(frozen=True)
class Photographs:
    """One part of a prepared set. words: kind -> numbers (N,) in WORDS[kind], UNKNOWN where nobody named it."""

    pixels: np.ndarray  # uint8 (N, H, W, 3)
    words: dict[str, np.ndarray]
    recoloured: np.ndarray  # bool (N,)

    def __len__(self) -> int:
        return len(self.pixels)


def open_photographs(data: Path, split: str) -> Photographs:
    """A prepared set of clothes with what its own table says of every picture."""
    source = open_named(data, split)
    if not isinstance(source, FolderSource) or "metadata.jsonl" not in source.tree.names():
        raise InputError("a set made by `giverny data prepare`", str(data), "name its folder with --data")
    columns = ("file_name", "recoloured", *WORDS)
    table = read_jsonl(source.tree.read_bytes("metadata.jsonl"), "metadata.jsonl", columns)
    told = {row["file_name"]: row for row in table}
    rows = [told[entry.name] for entry in source.entries]
    pictures = [source.read(index).pixels for index in range(len(source))]
    if any(picture.shape != (SIDE, SIDE, 3) for picture in pictures):
        raise InputError(f"pictures of {SIDE} x {SIDE}, as the judges take them", f"others in {data}", "prepare it so")
    return Photographs(
        np.stack(pictures),
        {kind: np.array([words.index(row[kind]) if row[kind] else UNKNOWN for row in rows]) for kind, words in WORDS.items()},
        np.array([row["recoloured"] for row in rows]),
    )


def card_of(data: Path) -> dict[str, Any]:
    """What a prepared set says of itself: "held_out_pairs" [[garment, colour]], "pairs" {"garment/colour": pictures}."""
    try:
        found: dict[str, Any] = json.loads((data / "card.json").read_text("utf-8"))
    except OSError as error:
        raise InputError("a prepared set with its card.json", f"{data} ({error})", "giverny data prepare makes it") from error
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def first_judge() -> Judge:
    """Residual blocks, averaged over places at the end."""
    low = (conv_block(3, 32, 3, 2), Residual(32), conv_block(32, 64, 3, 2), Residual(64))
    high = (conv_block(64, 128, 3, 2), Residual(128), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Judge(nn.Sequential(*low, *high), 128, sum(map(len, WORDS.values())))


def second_judge() -> Judge:
    """Another build (large steps, every place weighed by itself), so that it errs on other pictures."""
    high = (nn.Flatten(), nn.Linear(96 * 64, 192), nn.BatchNorm1d(192), nn.ReLU())
    return Judge(nn.Sequential(conv_block(3, 48, 7, 4), conv_block(48, 96, 5, 2), *high), 192, sum(map(len, WORDS.values())))


def open_judges(cache: Path, train: Photographs) -> list[Judge]:
    """Both judges, fitted to the photographs of `train` that are as they were taken, or as kept in the cache."""
    real = ~train.recoloured
    pixels = train.pixels[real]
    told = {kind: torch.from_numpy(numbers[real]) for kind, numbers in train.words.items()}
    learnt = hashlib.sha256(b"".join(part.tobytes() for part in (pixels, *(t.numpy() for t in told.values())))).hexdigest()
    settings = [judges.SEED, judges.BATCH, judges.RATE, judges.DECAY, EPOCHS, SHIFT, SWAPPED, RARE, BUILD, WORDS, learnt]
    nets = untrained(first_judge, second_judge)
    weight = {kind: weights(told[kind].numpy(), len(words)) for kind, words in WORDS.items()}

    def loss(logits: Tensor, rows: Tensor, plain: Tensor) -> Tensor:
        parts = dict(by_kind(logits))
        words = {"garment": told["garment"][rows], "colour": told["colour"][rows].where(plain, UNKNOWN)}
        each = [cross_entropy(parts[k], words[k], weight[k], ignore_index=UNKNOWN, reduction="sum") for k in WORDS]
        return (each[0] + each[1]) / len(rows)

    def fit(number: int) -> Judge:
        own = dict(shift=SHIFT, ground=WHITE, mirror=True, swapped=SWAPPED)
        return train_judge(nets[number], pixels, loss, EPOCHS[number], **own)

    return kept_or_trained(cache / f"clothes-{fingerprint(settings)}.safetensors", nets, fit)


def weights(numbers: np.ndarray, words: int) -> Tensor:
    """What each word counts in the loss, 1 on average over the photographs that name one: (words,)."""
    counts = np.bincount(numbers[numbers != UNKNOWN], minlength=words)
    each = np.maximum(counts, 1) ** -RARE
    return torch.tensor(each * counts.sum() / max(1e-9, (each * counts).sum()), dtype=torch.float32)


def by_kind(logits: Any) -> Iterator[tuple[str, Any]]:
    """(kind, its part of the logits (B, words))."""
    first = 0
    for kind, words in WORDS.items():
        yield kind, logits[:, first : first + len(words)]
        first += len(words)


# ---------------------------------------------------------------------------------------------------------------------
# What judges say


@dataclass(frozen=True)
class Seen:
    """What one judge says of N pictures. logits: kind -> (N, words); features (N, d) in float64."""

    logits: dict[str, np.ndarray]
    features: np.ndarray

    def right(self, kind: str, told: np.ndarray, kin: np.ndarray | None = None) -> np.ndarray:
        """bool (N,): whether the word found is the one told; kin (words, words): or one that counts as the same."""
        found = self.logits[kind].argmax(1)
        return found == told if kin is None else kin[told, found]


def look(net: Judge, pixels: np.ndarray) -> Seen:
    logits, features = read(net, pixels)
    return Seen(dict(by_kind(logits)), features)


def kin(seen: Sequence[Seen], kind: str, told: np.ndarray, share: float = 0.75, least: int = 8) -> np.ndarray:
    """Which words photographs themselves do not tell apart: bool (words, words), symmetric, true on the diagonal.

    Two words are kin where each judge, left with the choice between just these two, is right in less than `share` of
    the photographs (half of that is luck; both words count alike), and `least` photographs show either.
    """
    words = len(WORDS[kind])
    same = np.eye(words, dtype=bool)
    shown = {word: told == word for word in range(words) if (told == word).sum() >= least}
    for a, b in combinations(shown, 2):
        apart = [one.logits[kind][:, a] > one.logits[kind][:, b] for one in seen]
        if all((first[shown[a]].mean() + (~first[shown[b]]).mean()) / 2 < share for first in apart):
            same[a, b] = same[b, a] = True
    return same
