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
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from giverny.base.contracts import Score
from giverny.base.errors import InputError
from giverny.base.files import atomic_write
from giverny.base.images import grid, png_bytes
from giverny.data.arrays import ArraySource
from giverny.data.catalog import open_named
from judges import Judge, look, open_judges
from likeness import Reference, balanced, nearest_distance, sharpness, wilson
from scoring import (
    DRAWS,
    Scores,
    check_one_setting,
    flat,
    floor_of,
    high_floor,
    paint,
    parser_of,
    print_scores,
    run,
    spreads_of,
)

PROMPTS = ("a t-shirt", "trousers", "a pullover", "a dress", "a coat",
           "a sandal", "a shirt", "a sneaker", "a bag", "an ankle boot")  # fmt: skip

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


def measure(yard: Yard, pixels: np.ndarray, conditions: dict[str, Any]) -> Scores:
    """All scores of uint8 (n, 28, 28), class by class, equally many."""
    labels = np.repeat(np.arange(10), len(pixels) // 10)
    (first, features), (second, _) = (look(judge, pixels) for judge in yard.judges)
    hit, n = first == labels, len(pixels)
    scores = Scores({"pictures": n, **conditions})
    add = scores.add
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
    scores.add_spreads(spreads_of(pixels, features, labels), yard.spreads, f"{n} test pictures")
    value, error = yard.reference.distance(features, halves=50)
    floor = floor_of(yard.floor)
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


def rule(scores: Mapping[str, Score]) -> dict[str, bool]:
    """What a model on the shelf must hold."""
    return {
        "class found in 93 %": scores["class found"].value >= 0.93,
        "spread 0.75 of the real one": scores["spread of pixels / real"].value >= 0.75,
        "KID 3 x floor at most": scores["kid / floor"].value <= 3,
    }


# ---------------------------------------------------------------------------------------------------------------------
# The script


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    soft = [Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)) for picture in pixels]
    return np.stack([np.asarray(picture) for picture in soft])


def report(scores: Scores) -> None:
    """One setting at length."""
    found = scores["class found"].conditions
    print(f"{'class':<16}{'found':>8}{'95 % interval':>18}{'real':>8}")
    for prompt, (share, low, high, real) in found["classes_found_low_high_real"].items():
        print(f"{prompt:<16}{share:>8.1%}{f'{low:.1%} - {high:.1%}':>18}{real:>8.1%}")
    print()
    print_scores(scores, SHOWN)


# conditions worth a place beside their number
SHOWN = ("real", "judge_accuracy", "agreement", "floor_mean", "floor_sd", "floor_high", "least")
COLUMNS = {"found": "class found", "2nd": "class found by a second judge", "pixels": "spread of pixels / real",
           "features": "spread of features / real", "pairs": "distance of pairs / real", "kid": "kid",
           "kid/fl": "kid / floor", "sharp": "sharpness / real", "bright": "brightness / real",
           "near": "nearest training picture / real"}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = parser_of(str(__doc__), "fashion-mnist")
    add = parser.add_argument
    add("--count", type=int, default=500, help="pictures to paint, a multiple of 20")
    add("--real", action="store_true", help="judge real pictures of odd index instead")
    add("--blur", type=float, nargs="?", const=1.0, metavar="RADIUS", help="judge those, blurred")
    add("--montage", type=Path, metavar="FILE.png", help="for each class six real and six painted pictures")
    args = parser.parse_args()
    if args.count < 40 or args.count % 20:
        raise InputError("--count of 40 or more, divisible by 20", str(args.count))
    check_one_setting(args, args.real or args.blur is not None)
    return args


def main() -> None:
    args = parse()
    yard = build_yard(args.cache, args.count)
    print(f"judges find {yard.accuracy[0]:.2%} and {yard.accuracy[1]:.2%} of {len(yard.test)} test pictures")
    high = high_floor(yard.floor)
    print(f"floor of KID: mean {yard.floor.mean():.2e}, sd {yard.floor.std(ddof=1):.2e}, 95 % below {high:.2e}")

    def pictures(settings: list[str], seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        if args.blur is not None:
            return blurred(yard.spare, args.blur), {}
        if args.real:
            return yard.spare, {}
        painted, conditions = paint(args.model, np.repeat(PROMPTS, args.count // 10).tolist(), seed, settings, 28)
        return painted.mean(3).round().astype(np.uint8), conditions

    pixels = run(args, pictures, lambda *painted: measure(yard, *painted), rule, report, COLUMNS)
    if args.montage:
        sides = (yard.test[yard.sample], pixels)
        cells = [side[c * args.count // 10 + i] for c in range(10) for side in sides for i in range(6)]
        atomic_write(args.montage, png_bytes(grid(cells, columns=12, row_labels=PROMPTS, scale=3)))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
