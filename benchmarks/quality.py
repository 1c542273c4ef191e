"""How good a Fashion-MNIST painter is: does the judge find the class asked for, do pictures vary, do they look real?

    python benchmarks/quality.py fashion-mnist                       # 500 pictures at the model's own settings
    python benchmarks/quality.py fashion-mnist --sweep guidance=1,1.5,2,2.5,3
    python benchmarks/quality.py --real      # real pictures instead: spread and KID hold, the class as often as real
    python benchmarks/quality.py --blur      # real pictures, blurred: KID fails

The judge is a small network trained here (minutes, once) on the pictures of even index of the training set, so that the
pictures of odd index are as new to it as the test set is. The kernel distance (KID, Binkowski et al. 2018, arXiv
1801.01401) takes the judge's features of 500 pictures against all 10,000 test pictures; its floor is what real pictures
of odd index get in the same way. One picture counts as much as another and every class has equally many.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from giverny.base.contracts import Done, Failed, Request, Score
from giverny.base.errors import InputError
from giverny.base.files import atomic_write
from giverny.base.images import grid, png_bytes
from giverny.base.recipe import override
from giverny.checkpoints.native import read_card, write_card
from giverny.data.arrays import ArraySource
from giverny.data.catalog import open_named
from judges import Judge, look, open_judges
from likeness import (
    Reference,
    balanced,
    feature_spread,
    nearest_distance,
    pair_distance,
    sharpness,
    spread,
    wilson,
)  # fmt: skip

PROMPTS = ("a t-shirt", "trousers", "a pullover", "a dress", "a coat",
           "a sandal", "a shirt", "a sneaker", "a bag", "an ankle boot")  # fmt: skip
DRAWS = 20  # sets of real pictures, for the floor and for the real spread
SWEEP_SEED = 1_000_000  # settings are chosen on other pictures than those they are reported with

# ---------------------------------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True)
class Yard:
    """All that is real and that pictures are measured by; made once, used for every setting."""

    judges: list[Judge]
    accuracy: list[float]  # of each judge on the whole test set
    train: np.ndarray  # uint8 (60000, 28, 28)
    test: np.ndarray  # uint8 (10000, 28, 28)
    labels: np.ndarray  # of the test set
    reference: Reference
    floor: np.ndarray  # (DRAWS,) distances of real pictures
    spreads: dict[str, np.ndarray]  # per kind (DRAWS,), of test pictures
    sample: np.ndarray  # indices of as many test pictures as are painted, to stand beside them
    found: np.ndarray  # (2, n) whether each judge finds the class of those
    nearest: float  # their mean distance to the training set
    spare: np.ndarray  # uint8 (n, 28, 28), real ones from the odd half, for --real


def flat(pixels: np.ndarray) -> np.ndarray:
    """uint8 (N, 28, 28) -> float32 (N, 784) in [0, 1]."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255


def spreads_of(pixels: np.ndarray, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    grey = flat(pixels)
    return {
        "spread of pixels": spread(grey, labels),
        "spread of features": feature_spread(features, labels),
        "distance of pairs": pair_distance(grey, labels),
    }


def build_yard(cache: Path, count: int) -> Yard:
    train, test = (open_named("fashion-mnist", split) for split in ("train", "test"))
    assert isinstance(train, ArraySource) and isinstance(test, ArraySource)
    pixels, tested = np.asarray(train.pixels[..., 0]), np.asarray(test.pixels[..., 0])
    judges = open_judges(cache, pixels, train.labels, train.fingerprint)
    seen = [look(judge, tested) for judge in judges]
    features, reference = seen[0][1], Reference(seen[0][1][np.argsort(test.labels, kind="stable")], 10)
    odd, odd_labels = pixels[1::2], train.labels[1::2]
    draws = [odd[balanced(odd_labels, count, seed)] for seed in range(DRAWS + 1)]  # the first is for --real
    picks = [balanced(test.labels, count, seed) for seed in range(DRAWS)]
    rows = [spreads_of(tested[p], features[p], test.labels[p]) for p in picks]
    return Yard(
        judges=judges,
        accuracy=[float((found == test.labels).mean()) for found, _ in seen],
        train=pixels,
        test=tested,
        labels=test.labels,
        reference=reference,
        floor=np.array([reference.distance(look(judges[0], draw)[1])[0] for draw in draws[1:]]),
        spreads={kind: np.array([row[kind] for row in rows]) for kind in rows[0]},
        sample=picks[0],
        found=np.stack([found[picks[0]] == test.labels[picks[0]] for found, _ in seen]),
        nearest=float(nearest_distance(flat(tested[picks[0]]), flat(pixels)).mean()),
        spare=draws[0],
    )


def measure(yard: Yard, pixels: np.ndarray, conditions: dict[str, Any]) -> dict[str, Score]:
    """All scores of uint8 (n, 28, 28), class by class, equally many."""
    labels = np.repeat(np.arange(10), len(pixels) // 10)
    (first, features), (second, _) = (look(judge, pixels) for judge in yard.judges)
    hit, n = first == labels, len(pixels)
    scores: dict[str, Score] = {}

    def add(name: str, value: float, interval: tuple[float, float] | None = None, **more: Any) -> None:
        scores[name] = Score(name=name, value=float(value), interval=interval, conditions={**conditions, **more})

    classes = {
        prompt: [float(hit[labels == c].mean()), *wilson(int(hit[labels == c].sum()), n // 10), float(real)]
        for c, prompt in enumerate(PROMPTS)
        for real in [yard.found[0][labels == c].mean()]
    }
    real = [float(found.mean()) for found in yard.found]
    add("class found", hit.mean(), wilson(int(hit.sum()), n), judge_accuracy=yard.accuracy[0], real=real[0],
        interval_by="Wilson", classes_found_low_high_real=classes)  # fmt: skip
    agreed = float((first == second).mean())
    add("class found by a second judge", (second == labels).mean(), wilson(int((second == labels).sum()), n),
        judge_accuracy=yard.accuracy[1], real=real[1], agreement=agreed)  # fmt: skip
    for kind, value in spreads_of(pixels, features, labels).items():
        drawn = yard.spreads[kind]
        ratio, slack = value / drawn.mean(), 1.96 * drawn.std(ddof=1) / drawn.mean()
        add(f"{kind} / real", ratio, (ratio * (1 - slack), ratio * (1 + slack)), real=float(drawn.mean()),
            interval_by=f"as far as {DRAWS} sets of {n} test pictures differ")  # fmt: skip
    value, error = yard.reference.distance(features, halves=50)
    floor = {"floor_mean": float(yard.floor.mean()), "floor_sd": float(yard.floor.std(ddof=1)), "floor_high": high_floor(yard)}
    add("kid", value, (value - 1.96 * error, value + 1.96 * error), **floor, draws=DRAWS,
        estimator="unbiased, for sets with equally many of each class", kernel="(x . y / d + 1)^3",
        features=f"first judge, the {features.shape[1]} numbers below its logits",
        interval_by="50 half-samples, test side fixed", against=f"{len(yard.test)} test pictures")  # fmt: skip
    add("kid / floor", value / floor["floor_high"], floor="95th percentile of real sets")
    grey, sharp = pixels / 255, sharpness(yard.test / 255)
    add("sharpness / real", sharpness(grey) / sharp)
    add("brightness / real", grey.mean() / (yard.test.mean() / 255))
    near = nearest_distance(flat(pixels), flat(yard.train))
    add("nearest training picture / real", near.mean() / yard.nearest, least=float(near.min()), real=yard.nearest)
    return scores


def high_floor(yard: Yard) -> float:
    """What 1 in 20 real sets exceeds. An unbiased distance is 0 on average where nothing differs, so that its mean
    is no yardstick: how far real sets stray is one."""
    return float(np.percentile(yard.floor, 95))


def rule(scores: dict[str, Score]) -> dict[str, bool]:
    """What a model on the shelf must hold."""
    return {
        "class found in 93 %": scores["class found"].value >= 0.93,
        "spread 0.75 of the real one": scores["spread of pixels / real"].value >= 0.75,
        "KID 3 x floor at most": scores["kid / floor"].value <= 3,
    }


# ---------------------------------------------------------------------------------------------------------------------
# The script


def paint(model: str, count: int, seed: int, settings: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """`count` pictures, class by class -> uint8 (count, 28, 28) and the conditions they were painted under."""
    from giverny.assembly import open_painter

    painter, knobs = open_painter(model), override({}, settings)
    prompts = np.repeat(PROMPTS, count // 10)
    asked = [Request(prompt=str(p), seed=seed + i, knobs=knobs, id=str(i)) for i, p in enumerate(prompts)]
    began, done = time.perf_counter(), {}
    for event in painter.paint(asked):
        if isinstance(event, Failed):
            raise InputError("a picture", event.reason)
        if isinstance(event, Done):
            done[event.id] = event.artifact
    seconds = (time.perf_counter() - began) / count
    pictures = [done[request.id] for request in asked]
    if pictures[0].pixels.shape[:2] != (28, 28):
        raise InputError("pictures of 28 x 28, as the judge knows them", f"{pictures[0].size}", "name another model")
    origin = pictures[0].provenance
    assert origin is not None  # a painter always says
    conditions = {"seeds": [seed, seed + count - 1], "knobs": origin.knobs, "model": origin.fingerprint,
                  "seconds_each": round(seconds, 4), **origin.versions}  # fmt: skip
    return np.stack([p.pixels.mean(2).round().astype(np.uint8) for p in pictures]), conditions


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    soft = [Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)) for picture in pixels]
    return np.stack([np.asarray(picture) for picture in soft])


def report(scores: dict[str, Score]) -> None:
    """One setting at length."""
    found = scores["class found"].conditions
    print(f"{'class':<16}{'found':>8}{'95 % interval':>18}{'real':>8}")
    for prompt, (share, low, high, real) in found["classes_found_low_high_real"].items():
        print(f"{prompt:<16}{share:>8.1%}{f'{low:.1%} - {high:.1%}':>18}{real:>8.1%}")
    print()
    for name, score in scores.items():
        words = "" if score.interval is None else "{:.4f} to {:.4f}".format(*score.interval)
        said = ", ".join(f"{k} {score.conditions[k]:.4f}" for k in SHOWN if k in score.conditions)
        print(f"{name:<34}{score.value:>9.4f}   {words:<20}  {said}")
    print("\n" + "\n".join(f"{'holds' if held else 'FAILS':<7}{what}" for what, held in rule(scores).items()))


SHOWN = (
    "real",
    "judge_accuracy",
    "agreement",
    "floor_mean",
    "floor_sd",
    "floor_high",
    "least",
)  # conditions worth a place beside their number
COLUMNS = {"found": "class found", "2nd": "class found by a second judge", "pixels": "spread of pixels / real",
           "features": "spread of features / real", "pairs": "distance of pairs / real", "kid": "kid",
           "kid/fl": "kid / floor", "sharp": "sharpness / real", "bright": "brightness / real",
           "near": "nearest training picture / real"}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", default="fashion-mnist", help="a model's name or folder")
    add("--set", action="append", default=[], metavar="KNOB=VALUE", help="a setting other than the model's own")
    add("--sweep", action="append", default=[], metavar="KNOB=A,B,C", help="a row per value; twice: per pair of values")
    add("--count", type=int, default=500, help="pictures to paint, a multiple of 20")
    add("--seed", type=int, help=f"of the first picture (default: 0, for a sweep {SWEEP_SEED})")
    add("--real", action="store_true", help="judge real pictures of odd index instead")
    add("--blur", type=float, nargs="?", const=1.0, metavar="RADIUS", help="judge those, blurred")
    add("--cache", type=Path, default=Path("runs/judge"), help="where the judges are kept")
    add("--json", type=Path, metavar="FILE", help="write all numbers with their conditions")
    add("--montage", type=Path, metavar="FILE.png", help="for each class six real and six painted pictures")
    add("--card", action="store_true", help="put the scores on the model's card")
    args = parser.parse_args()
    args.borrowed = args.real or args.blur is not None
    if args.count < 40 or args.count % 20:
        raise InputError("--count of 40 or more, divisible by 20", str(args.count))
    if (args.sweep and (args.card or args.montage or args.borrowed)) or (args.borrowed and args.card):
        raise InputError("one setting of a model for --card and --montage", "a sweep or real pictures")
    return args


def put_on_card(model: str, scores: Sequence[Score]) -> None:
    """Scores of these names are replaced, others stay."""
    from giverny.assembly import find_model

    folder = find_model(model)
    card, names = read_card(folder), {score.name for score in scores}
    others = [score for score in card.scores if score.name not in names]
    write_card(folder, card.model_copy(update={"scores": (*others, *scores)}))


def main() -> None:
    args = parse()
    yard = build_yard(args.cache, args.count)
    print(f"judges find {yard.accuracy[0]:.2%} and {yard.accuracy[1]:.2%} of {len(yard.test)} test pictures")
    print(f"floor of KID: mean {yard.floor.mean():.2e}, sd {yard.floor.std(ddof=1):.2e}, 95 % below {high_floor(yard):.2e}")
    parts = [sweep.partition("=") for sweep in args.sweep]
    settings = list(itertools.product(*([f"{knob}={value}" for value in values.split(",")] for knob, _, values in parts)))
    if args.sweep:
        print(f"{'setting':<28}" + "".join(f"{name:>10}" for name in COLUMNS) + "   holds")
    rows: list[dict[str, Any]] = []
    for chosen in settings:
        conditions: dict[str, Any] = {}
        if args.borrowed:
            pixels = yard.spare if args.blur is None else blurred(yard.spare, args.blur)
        else:
            seed = args.seed if args.seed is not None else SWEEP_SEED if args.sweep else 0
            pixels, conditions = paint(args.model, args.count, seed, [*args.set, *chosen])
        scores = measure(yard, pixels, {"pictures": args.count, **conditions})
        held = rule(scores)
        rows.append({"setting": chosen, "holds": held, "scores": [s.model_dump(mode="json") for s in scores.values()]})
        if args.sweep:
            values = "".join(f"{scores[name].value:>10.4f}" for name in COLUMNS.values())
            print(f"{' '.join(chosen):<28}{values}   {'yes' if all(held.values()) else 'no'}", flush=True)
        else:
            report(scores)
    if args.json:
        atomic_write(args.json, json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=2) + "\n")
    if args.montage:
        sides = (yard.test[yard.sample], pixels)
        cells = [side[c * args.count // 10 + i] for c in range(10) for side in sides for i in range(6)]
        atomic_write(args.montage, png_bytes(grid(cells, columns=12, row_labels=PROMPTS, scale=3)))
    if args.card:
        put_on_card(args.model, list(scores.values()))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
