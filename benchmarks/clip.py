"""How well words and pictures of clothes find each other in a CLIP, on pictures that it has not learnt from.

    python benchmarks/clip.py wardrobe --data runs/data/wardrobe
    python benchmarks/clip.py some/published-clip --data runs/data/wardrobe     # a folder in transformers' layout

Retrieval: captions are composed from what is known of a picture (garment, colour, shade, wearer), so many pictures have
the same ones. Answers are therefore distinct combinations; the vector of one is the mean over its captions. Where a
picture says less than it shows (home photographs name no wearer, some no colour), the plainer words count as right and
better ones as wrong: no model comes to 100 %.

Naming, without ever having been taught classes (Radford et al. 2021, section 3.1): the nearest of all garments, each the
mean of its captions; the nearest of all colours, each the mean over all garments of the captions that name it. Beside the
colours stands what a histogram finds: the nearest of the colours' mean histograms over the training photographs, the white
ground left out. Home photographs had their colours named by a model that looks at histograms, so there it has an advantage.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from giverny.assembly import open_clip
from giverny.base.contracts import Score, Source
from giverny.base.errors import InputError
from giverny.base.files import atomic_write, fingerprint_tensors
from giverny.data.catalog import open_named
from giverny.data.clothes.colours import colour_counts
from giverny.data.clothes.words import COLOURS, GARMENTS, captions
from giverny.data.folders import FolderSource
from giverny.text.space import SharedSpace
from likeness import wilson
from scoring import put_on_card

TABLE = "metadata.jsonl"
LEVELS = {"all words": ("garment", "colour", "shade", "wearer"), "garment and colour": ("garment", "colour")}
AMONG = (1, 5, 10)  # how many of the nearest count as found
PLACES = ("shop", "home")
GROUND = 250  # a pixel as light as this in every channel is the white that things lie on
Row = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------------------
# Counting


def ranks(similar: Tensor, right: Tensor) -> np.ndarray:
    """Place, from 1, at which each query's first right answer comes; behind wrong ones that are as near. (Q, A) both -> (Q,)"""
    best = similar.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return (1 + ((similar >= best) & ~right).sum(1)).numpy()


def chance(right: Tensor, among: int) -> float:
    """Share of queries with a right answer among so many that are drawn blindly. right: (Q, A) bool."""
    of, good = right.shape[1], right.sum(1).double().numpy()
    missed = np.prod([(of - good - i).clip(0) / (of - i) for i in range(min(among, of))], axis=0)
    return float(1 - missed.mean())


def shares(name: str, similar: Tensor, right: Tensor, among: Sequence[int], **conditions: Any) -> list[Score]:
    """Share of queries with a right answer among the nearest 1, 5, ..., each with its interval and what chance would find."""
    found, scores = ranks(similar, right), []
    for k in among:
        hit = int((found <= k).sum())
        told = {"questions": len(found), "answers": similar.shape[1], "among": k, "chance": chance(right, k), **conditions}
        scores.append(Score(name=f"{name}, {k}", value=hit / len(found), interval=wilson(hit, len(found)), conditions=told))
    return scores


# ---------------------------------------------------------------------------------------------------------------------
# What is asked


def read_rows(source: Source) -> list[Row]:
    """What a prepared set says of each of its pictures, in the source's order."""
    if isinstance(source, FolderSource) and TABLE in source.tree.names():
        said = {row["file_name"]: row for row in map(json.loads, source.tree.read_bytes(TABLE).splitlines())}
        rows = [said[entry.name] for entry in source.entries]
        if all({*LEVELS["all words"], "from", "recoloured"} <= row.keys() for row in rows):
            return rows
    raise InputError("a prepared set of clothes, as `giverny data prepare wardrobe` makes it", source.name)


def combination(row: Row, parts: Sequence[str]) -> tuple[str, ...]:
    """The part of what is known that captions can tell: a shade that is the colour itself is no further word."""
    return tuple("" if part == "shade" and row["shade"] == row["colour"] else row[part] for part in parts)


def meanings(space: SharedSpace, groups: Sequence[Sequence[str]]) -> Tensor:
    """Where each group of texts points on average: (G, d), rows of length 1."""
    texts = list(dict.fromkeys(text for group in groups for text in group))
    place, vectors = {text: i for i, text in enumerate(texts)}, space.texts(texts).cpu()
    return F.normalize(torch.stack([vectors[[place[text] for text in group]].mean(0) for group in groups]), dim=-1)


def retrieval(space: SharedSpace, pictures: Tensor, rows: Sequence[Row], level: str) -> list[Score]:
    """Combinations for each picture, and pictures for each combination. pictures: (N, d), their vectors."""
    own = [combination(row, LEVELS[level]) for row in rows]
    answers = list(dict.fromkeys(own))
    right = F.one_hot(torch.tensor([answers.index(said) for said in own]), len(answers)).bool()
    similar = pictures @ meanings(space, [captions(*said) for said in answers]).T
    told = {"text": "mean over captions of " + ", ".join(LEVELS[level])}
    to_words = shares(f"clip: {level} of a picture", similar, right, AMONG, **told)
    return to_words + shares(f"clip: picture of {level}", similar.T, right.T, AMONG, **told)


def naming(what: str, similar: Tensor, told: Sequence[str], names: Sequence[str], rows: Sequence[Row]) -> list[Score]:
    """How often the right name is nearest, or among five: of all pictures, of shop and home apart. similar: (N, names)."""
    right = torch.tensor([[name == said for name in names] for said in told])
    first, labels = similar.argmax(1).numpy(), right.int().argmax(1).numpy()
    scores: list[Score] = []
    for place in ("", *PLACES):
        mine = np.array([place in ("", row["from"]) for row in rows])
        if mine.any():
            by_class = [float((first == labels)[mine & (labels == c)].mean()) for c in np.unique(labels[mine])]
            ending = f" ({place})" if place else ""
            scores += shares(
                f"{what}{ending}", similar[mine], right[mine], AMONG[:2], mean_over_classes=float(np.mean(by_class))
            )
    return scores


def colour_prompts() -> list[list[str]]:
    """For each colour, every caption of every garment that names it."""
    return [[text for g in GARMENTS for text in captions(g, colour) if text not in captions(g)] for colour in COLOURS]


def histograms(source: Source, indices: Sequence[int]) -> np.ndarray:
    """Colours of pictures, ground left out: (n, 4096), rows summing to 1."""
    pixels = (source.read(i).pixels for i in indices)
    return np.stack([colour_counts(p, p.min(-1) < GROUND) for p in pixels])


def by_histogram(learnt: np.ndarray, of: np.ndarray, asked: np.ndarray, names: Sequence[str]) -> Tensor:
    """Minus the squared distance of each histogram asked about (n, D) to each name's mean one: (n, names).

    learnt: (m, D); of: (m,) their names.
    """
    near = torch.full((len(asked), len(names)), -torch.inf)
    for c, name in enumerate(names):
        if (of == name).any():
            near[:, c] = torch.from_numpy(-((asked - learnt[of == name].mean(0)) ** 2).sum(1))
    return near


# ---------------------------------------------------------------------------------------------------------------------
# The script


def table(names: Sequence[str], told: Sequence[str], ways: dict[str, Tensor]) -> list[Row]:
    """Per name: how many pictures bear it, how often each way finds it, and what the first way mostly says instead."""
    told_at = np.array([names.index(said) for said in told])
    said = {way: similar.argmax(1).numpy() for way, similar in ways.items()}
    lines: list[Row] = []
    for c, name in enumerate(names):
        mine = told_at == c
        if mine.any():
            found = next(iter(said.values()))[mine]
            wrong = Counter(names[i] for i in found[found != c].tolist()).most_common(3)
            lines.append({"name": name, "pictures": int(mine.sum())}
                         | {way: float((answers[mine] == c).mean()) for way, answers in said.items()}
                         | {"instead": ", ".join(f"{n} {k}" for n, k in wrong)})  # fmt: skip
    return lines


def measure(space: SharedSpace, data: str | Path) -> tuple[list[Score], dict[str, list[Row]]]:
    """All scores, and per class what was found, on the test part of a prepared set."""
    test, train = (open_named(data, split) for split in ("test", "train"))
    rows, learnt = read_rows(test), read_rows(train)
    pictures = space.pictures([test.read(i).pixels for i in range(len(test))]).cpu()
    known = [i for i, row in enumerate(rows) if row["colour"]]
    coloured, shades = [rows[i] for i in known], [rows[i]["colour"] for i in known]
    scores = retrieval(space, pictures, rows, "all words")
    scores += retrieval(space, pictures[known], coloured, "garment and colour")

    garments, colours = list(GARMENTS), list(COLOURS)
    kinds = [row["garment"] for row in rows]
    similar = pictures @ meanings(space, [captions(g) for g in garments]).T
    scores += naming("clip: garment named", similar, kinds, garments, rows)
    tables = {"garment": table(garments, kinds, {"clip": similar})}

    similar = pictures[known] @ meanings(space, colour_prompts()).T
    photographs = [i for i, row in enumerate(learnt) if row["colour"] and not row["recoloured"]]
    of = np.array([learnt[i]["colour"] for i in photographs])
    baseline = by_histogram(histograms(train, photographs), of, histograms(test, known), colours)
    scores += naming("clip: colour named", similar, shades, colours, coloured)
    scores += naming("histogram: colour named", baseline, shades, colours, coloured)
    tables["colour"] = table(colours, shades, {"clip": similar, "histogram": baseline})
    common = {"clip": fingerprint_tensors(space.clip.state_dict()), "data": test.fingerprint, "interval_by": "Wilson"}
    return [s.model_copy(update={"conditions": s.conditions | common}) for s in scores], tables


def report(scores: Sequence[Score], tables: dict[str, list[Row]]) -> None:
    print(f"{'what, among so many':<44}{'found':>8}{'95 % interval':>18}{'chance':>8}{'asked':>8}{'answers':>9}")
    for score in scores:
        low, high = score.interval or (0.0, 0.0)
        told = score.conditions
        print(f"{score.name:<44}{score.value:>8.1%}{f'{low:.1%} - {high:.1%}':>18}{told['chance']:>8.1%}", end="")
        print(f"{told['questions']:>8}{told['answers']:>9}")
    for what, lines in tables.items():
        ways = [way for way in lines[0] if way not in ("name", "pictures", "instead")]
        print(f"\n{what:<18}{'pictures':>9}" + "".join(f"{way:>11}" for way in ways) + "  clip says instead")
        for line in lines:
            found = "".join(f"{line[way]:>11.1%}" for way in ways)
            print(f"{line['name']:<18}{line['pictures']:>9}{found}  {line['instead']}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", help="a model's name or folder, or a published CLIP's folder")
    add("--data", type=Path, required=True, metavar="FOLDER", help="a prepared set, with train.zip and test.zip")
    add("--json", type=Path, metavar="FILE", help="write all numbers with their conditions")
    add("--card", action="store_true", help="put the scores on the model's card")
    args = parser.parse_args(arguments)
    scores, tables = measure(open_clip(args.model), args.data)
    report(scores, tables)
    if args.json:
        told = {"model": args.model, "scores": [s.model_dump(mode="json") for s in scores], "classes": tables}
        atomic_write(args.json, json.dumps(told, indent=2) + "\n")
    if args.card:
        put_on_card(args.model, scores)


if __name__ == "__main__":
    main()
