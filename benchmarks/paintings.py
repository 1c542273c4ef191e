"""Do photographs become paintings? Translators beside cheap tricks: photographs recoloured, with noise, blurred, in few tones.

    python benchmarks/paintings.py monet --size 128 -o paintings.json      # any number of models, or none: the tricks alone

The test photographs, crops of whole ones that no model or judge has learnt from, are brought to --size, translated, and held
against the paintings of the train part (which were learnt from) and of the test part (which were not). What real paintings
score is the last row: test paintings against the train part. Crops of one photograph are no independent pictures: intervals
leave out whole photographs (the jackknife, Tukey 1958), of differences in both rows at once. "formless" are the test paintings
with the phases of their waves drawn anew: colours and roughness of paintings, and nothing to be seen.

KID, FID and MiFID take the features of what looks: the judge monet-a, small pixels, and Inception where its weights are on
this machine. FID and MiFID of so few pictures say something only beside rows of as many, and MiFID's threshold is Inception's.
"painting" is the share that the judge monet-b takes for paintings, by an architecture of its own; "nearest" the distance to
the closest painting, over that of real ones among themselves; "copies" how many are one.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from giverny.assembly import open_judge, open_painter
from giverny.assembly.instruments import INCEPTION, open_instrument
from giverny.base.contracts import Done, Instrument, Request, Score, Source, Start
from giverny.base.errors import InputError
from giverny.base.files import atomic_write
from giverny.base.images import fit, png_bytes
from giverny.base.runtime import describe_machine
from giverny.base.sheet import grid
from giverny.base.start import enclosed_pixels
from giverny.compare.statistics import t_quantile
from giverny.data.catalog import open_named
from giverny.data.crops import CROP, photographs_of
from giverny.data.tricks import blurred, formless, matched, median, noisy, posterised
from giverny.data.weights import at_hand
from giverny.metrics import frechet, kernel
from giverny.metrics.checkerboard import corner_energy
from giverny.metrics.gather import gathered
from giverny.metrics.memorization import memorization_distance, mifid
from giverny.metrics.moments import Moments
from giverny.metrics.pairs import UNTOUCHED, change, edge_correlation, nearest, structural
from giverny.metrics.scores import Sides, closeness
from giverny.pipelines.image2image import paint_over

PAINTINGS, PHOTOGRAPHS = "monet-paintings", "landscape-photos"
REAL, UNTOUCHED_ROW, MATCHED, NOISY = "test paintings", "untouched", "matched", "noisy"
NOISE = 16.0  # its spread, of 255
TONES = 4  # of a channel of posterised photographs

# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@dataclass(frozen=True)
class Row:
    """Pictures to be measured, uint8 (N, S, S, 3), several times where chance decides: numbers are then means over these."""

    name: str
    draws: tuple[np.ndarray, ...]
    groups: np.ndarray  # (N,) which pictures are left out together
    facts: dict[str, Any]
    seconds: float | None = None  # for a picture
    paired: bool = True  # the N-th picture is of the N-th photograph


def pictures_of(source: Source, size: int) -> np.ndarray:
    return np.stack([fit(source.read(i).pixels, (size, size), "crop") for i in range(len(source))])


def numbered(names: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(names), return_inverse=True)[1]


def translated(model: str, photographs: np.ndarray, device: str) -> tuple[np.ndarray, float, dict[str, Any]]:
    """What a model makes of photographs, the seconds for one after the first, and what they were translated under."""
    painter, size = open_painter(model, device), photographs.shape[2:0:-1]
    found, began = [], time.perf_counter()
    for number, pixels in enumerate(photographs):
        start = Start(picture=enclosed_pixels(pixels, f"{number}.png"), strength=1.0)
        request = Request(id=str(number), start=start, size=size)
        done = [event for event in paint_over(painter, [request]) if isinstance(event, Done)]
        if not done:
            raise InputError("a model that translates pictures", model)
        found.append(done[0].artifact)
        if not number:
            began = time.perf_counter()
    seconds = (time.perf_counter() - began) / max(1, len(photographs) - 1)
    origin = found[0].provenance
    told = {} if origin is None else {"model": origin.model, "fingerprint": origin.fingerprint, "knobs": origin.knobs}
    return np.stack([picture.pixels for picture in found]), seconds, told


# ---------------------------------------------------------------------------------------------------------------------
# Numbers that leave out whole photographs


@dataclass(frozen=True)
class Left:
    """A statistic of all pictures, and the same where each photograph is left out (G,)."""

    value: float
    without: np.ndarray

    def __sub__(self, other: Left) -> Left:
        """Of the difference, where both are of the same photographs."""
        return Left(self.value - other.value, self.without - other.without)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by Student's t with a degree of freedom less than there are photographs."""
        count = len(self.without)
        error = math.sqrt((count - 1) / count * float(np.square(self.without - self.without.mean()).sum()))
        reach = t_quantile(0.05, count - 1) * error
        return self.value - reach, self.value + reach

    @classmethod
    def mean(cls, parts: Sequence[Left]) -> Left:
        return cls(float(np.mean([p.value for p in parts])), np.mean([p.without for p in parts], axis=0))


def kid_of(draws: Sequence[Tensor], groups: np.ndarray, target: kernel.Target) -> Left:
    """Features (N, d) of each draw -> KID, mean over draws."""
    found = [target.without_each(rows, torch.from_numpy(groups)) for rows in draws]
    return Left.mean([Left(value, np.array(without)) for value, without in found])


def mean_of(values: np.ndarray, groups: np.ndarray) -> Left:
    """A mean over pictures (N,)."""
    return Left(float(values.mean()), np.array([values[groups != g].mean() for g in range(groups.max() + 1)]))


def against(draws: Sequence[Tensor], real: Tensor) -> dict[str, float]:
    """Means over draws of what is no mean over pairs of pictures: FID and what asks for copies."""
    target, moments = frechet.Target(Moments.of(real)), gathered(real)
    rows = []
    for features in draws:
        fid, distance = target.distance(Moments.of(features)).value, memorization_distance(features, real)
        close = closeness(Sides(gathered(features), moments, {}))[0].value
        apart = nearest(features, real)[0]
        copies = float((apart < 1e-6 * float(torch.cdist(real, real).mean())).sum())
        rows.append({"FID": fid, "MiFID": mifid(fid, distance), "memorization distance": distance,
                     "nearest / real": close, "copies": copies})  # fmt: skip
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True)
class Yard:
    """All that rows are measured by. references: uint8 (M, S, S, 3) by name."""

    photographs: np.ndarray
    references: dict[str, np.ndarray]
    eyes: list[Instrument]
    second: Any  # the judge that says which are paintings
    conditions: dict[str, Any]

    def pictured(self, row: Row) -> Iterator[Score]:
        """What is seen of the pictures themselves, and of each beside its photograph."""
        found: dict[str, list[Left]] = {}
        share = self.second.attributes["class"].index("painting")
        for pixels in row.draws:
            taken = self.second.look(pixels).probabilities["class"].argmax(1) == share
            values: dict[str, np.ndarray] = {"painting": taken.astype(np.float64)}
            values["checkerboard energy"] = corner_energy(_tensor(pixels)).numpy()
            if row.paired:
                ours, theirs = _tensor(pixels), _tensor(self.photographs)
                values["SSIM"] = structural(ours, theirs, 1.0).numpy()
                values["edge correlation"] = edge_correlation(ours, theirs).numpy()
                values["change"] = change(ours, theirs, 1.0).numpy()
                values["untouched"] = (values["change"] <= UNTOUCHED).astype(np.float64)
            for name, each in values.items():
                found.setdefault(name, []).append(mean_of(each, row.groups))
        for name, parts in found.items():
            more = {"judge": self.second.conditions()} if name == "painting" else {}
            yield self._score(row, name, Left.mean(parts), **more)
        if row.seconds is not None:
            yield Score(name="seconds", value=row.seconds, conditions={**self.conditions, **row.facts})

    def compared(self, row: Row, eye: Instrument, reference: str) -> Iterator[tuple[Score, Left | None]]:
        """What is seen of the set beside a set of real paintings; and, of KID, what it is without each photograph."""
        draws, real = [eye(pixels) for pixels in row.draws], eye(self.references[reference])
        kid = kid_of(draws, row.groups, kernel.Target(real))
        more = {"reference": reference, "n_reference": len(real), **eye.conditions()}
        yield self._score(row, "KID", kid, **more), kid
        for name, value in against(draws, real).items():
            told = {**self.conditions, **row.facts, "n": len(row.groups), "draws": len(row.draws), **more}
            yield Score(name=name, value=value, conditions=told), None

    def _score(self, row: Row, name: str, found: Left, **more: Any) -> Score:
        told = {**self.conditions, **row.facts, "n": len(row.groups), "draws": len(row.draws), **more}
        by = f"leaving out each of {len(found.without)} photographs" if row.paired else "leaving out each painting"
        return Score(name=name, value=found.value, interval=found.interval, conditions={**told, "interval_by": by})


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).movedim(-1, 1).double() / 255


def verdict(name: str, kid: Left, others: dict[str, Left]) -> str:
    """One sentence: whether a model's KID is below that of each cheap row by more than the interval of the difference."""
    said, beaten = [], []
    for other, theirs in others.items():
        difference = kid - theirs
        low, high = difference.interval
        beaten.append(high < 0)
        said.append(f"{other}: difference {difference.value:.3g}, {low:.3g} to {high:.3g}")
    if all(beaten):
        what = f"beats {' and '.join(others)}"
    elif any(beaten):
        won = [other for other, beats in zip(others, beaten, strict=True) if beats]
        lost = [other for other in others if other not in won]
        what = f"beats {' and '.join(won)}, but not {' and '.join(lost)},"
    else:
        what = f"beats neither {' nor '.join(others)}"
    return f"{name} {what} on KID by more than the interval ({'; '.join(said)})."


def sheet_of(photographs: np.ndarray, made: np.ndarray, names: Sequence[str], pattern: str, columns: int = 8) -> np.ndarray:
    """Photographs above what became of them, uint8 (H, W, 3): the first two crops of each photograph that matches."""
    seen: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if re.search(pattern, name):
            seen.setdefault(re.sub(CROP, r"\1", name), []).append(index)
    chosen = [index for crops in seen.values() for index in crops[:2]]
    if not chosen:
        raise InputError("a pattern that some test photographs match", repr(pattern))
    columns = math.ceil(len(chosen) / math.ceil(len(chosen) / columns))  # rows of about as many
    blank = np.full_like(photographs[0], 255)
    rows = [chosen[i : i + columns] for i in range(0, len(chosen), columns)]
    pictures = [
        picture
        for row in rows
        for side in (photographs, made)
        for picture in [*(side[i] for i in row), *[blank] * (columns - len(row))]
    ]
    return grid(pictures, columns=columns, scale=1)


# ---------------------------------------------------------------------------------------------------------------------
# The script


def rows_of(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[list[Row], dict[str, np.ndarray]]:
    """The rows, the photographs untouched first, and the paintings by part."""
    source = open_named(PHOTOGRAPHS, "test")
    photographs, groups = pictures_of(source, args.size), numbered(photographs_of(source))
    paintings = {part: pictures_of(open_named(PAINTINGS, part), args.size) for part in ("train", "test")}
    chance = np.random.default_rng(args.seed)
    drawn = chance.integers(len(paintings["train"]), size=(args.draws, len(photographs)))
    alike = tuple(
        np.stack([matched(p, paintings["train"][i]) for p, i in zip(photographs, of, strict=True)]) for of in drawn.tolist()
    )
    rough = tuple(np.stack([noisy(p, NOISE, 1, chance) for p in draw]) for draw in alike)
    radius, side = args.size / 64, 2 * (args.size // 48) + 1  # of the blur; of the square that medians are taken of
    rows = [
        Row(UNTOUCHED_ROW, (photographs,), groups, {}),
        Row(MATCHED, alike, groups, {"like": "a painting of the train part, drawn at random", "seed": args.seed}),
        Row(NOISY, rough, groups, {"like": "a painting of the train part, drawn at random", "seed": args.seed, "noise": NOISE}),
        Row("blurred", (np.stack([blurred(p, radius) for p in photographs]),), groups, {"radius": radius}),
        Row("median", (np.stack([median(p, side) for p in photographs]),), groups, {"side": side}),
        Row("posterised", (posterised(photographs, TONES),), groups, {"tones": TONES}),
    ]
    for model in args.models:
        tell(f"translating {len(photographs)} photographs with {model}")
        made, seconds, facts = translated(model, photographs, args.device)
        rows.append(Row(model, (made,), groups, facts, seconds))
    test = paintings["test"]
    lost = tuple(np.stack([formless(p, chance) for p in test]) for _ in range(args.draws))
    each = np.arange(len(test))
    rows += [Row("formless", lost, each, {"seed": args.seed}, paired=False), Row(REAL, (test,), each, {}, paired=False)]
    return rows, paintings


def eyes_of(judge: str, device: str) -> list[Instrument]:
    others = ["pixels", *(["inception"] if at_hand(INCEPTION) else [])]
    return [open_judge(judge, device), *(open_instrument(name, device=device) for name in others)]


def shown(score: Score, digits: int = 3) -> str:
    if score.interval is None:
        return f"{score.value:.{digits}g}"
    low, high = score.interval
    return f"{score.value:.{digits}g} ± {(high - low) / 2:.2g}"


def table_of(title: str, rows: dict[str, dict[str, Score]]) -> Table:
    """A line for each row; a column for each score that any has."""
    columns = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for row, scores in rows.items():
        table.add_row(row, *(shown(scores[name]) if name in scores else "" for name in columns))
    return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="translators: names from `giverny models`, or folders")
    add("--size", type=int, default=128, help="side that all pictures are brought to, in pixels")
    add("--draws", type=int, default=5, help="times that photographs are matched to paintings, and noise and phases drawn")
    add("--seed", type=int, default=0, help="of these draws")
    add("--judge", default="monet-a", help="the judge whose features are compared")
    add("--second", default="monet-b", help="the judge that says which pictures are paintings")
    add("--device", default="auto")
    add("--sheet", type=Path, metavar="FILE.png", help="draw photographs, and below each what the first model makes of it")
    add("--only", default="", metavar="PATTERN", help="on the sheet only photographs whose file names match")
    add("-o", "--out", type=Path, metavar="FILE.json", help="write all scores with their conditions")
    args = parser.parse_args(arguments)
    if args.draws < 1 or args.size < 32:
        raise InputError("--draws of 1 or more and --size of 32 or more", f"{args.draws} and {args.size}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args, console = parse(arguments), Console()
    eyes, second = eyes_of(args.judge, args.device), open_judge(args.second, args.device)
    rows, paintings = rows_of(args, console.print)
    machine = {k: v for k, v in describe_machine().items() if k in ("giverny", "torch", "threads", "cpu_capability")}
    facts = {"photographs": PHOTOGRAPHS, "paintings": PAINTINGS, "part": "test", "size": args.size, **machine}
    yard = Yard(rows[0].draws[0], paintings, eyes, second, facts)
    kept: list[dict[str, Any]] = []
    seen = {row.name: {score.name: score for score in yard.pictured(row)} for row in rows}
    kept += [{"row": row, **score.model_dump(mode="json")} for row, scores in seen.items() for score in scores.values()]
    console.print(table_of(f"The pictures, at {args.size} x {args.size}; painting: by {args.second}", seen))
    sentences = []
    for reference in paintings:
        for eye in eyes:
            told: dict[str, dict[str, Score]] = {}
            kids: dict[str, Left] = {}
            for row in rows:
                if row.name == REAL and reference == "test":
                    continue  # beside themselves
                told[row.name] = {}
                for score, kid in yard.compared(row, eye, reference):
                    told[row.name][score.name] = score
                    kids |= {row.name: kid} if kid is not None else {}
            kept += [{"row": row, **score.model_dump(mode="json")} for row, found in told.items() for score in found.values()]
            where = f"{len(paintings[reference])} paintings of the {reference} part, as {eye.name} sees them"
            console.print(table_of(f"Against {where}", told))
            cheap = {name: kids[name] for name in (UNTOUCHED_ROW, MATCHED, NOISY)}
            sentences += [f"Against {where}: {verdict(model, kids[model], cheap)}" for model in args.models]
    for sentence in sentences:
        console.print(sentence, soft_wrap=True)
    if args.sheet is not None:
        named = [entry.name for entry in open_named(PHOTOGRAPHS, "test").entries]  # type: ignore[attr-defined]
        made = next((row for row in rows if row.seconds is not None), rows[0])
        atomic_write(args.sheet, png_bytes(sheet_of(rows[0].draws[0], made.draws[0], named, args.only)))
    if args.out is not None:
        kept_all = {"conditions": facts, "scores": kept, "verdicts": sentences}
        atomic_write(args.out, json.dumps(kept_all, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
