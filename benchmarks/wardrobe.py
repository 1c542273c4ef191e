"""How good a painter of clothes is: do judges see the garment and the colour asked for, and do pictures vary and look real?

    python benchmarks/wardrobe.py runs/wardrobe/model                    # at the model's own settings
    python benchmarks/wardrobe.py runs/wardrobe/model --sweep guidance=2,3,4 --count-per-pair 4
    python benchmarks/wardrobe.py --real         # half of the test photographs by the other half: what that fails by, is chance

It paints every pair of the 14 garments with most photographs, and of those of which a pair was held out, with the eleven
basic colours of Berlin and Kay (1969). Judges are two networks that learnt from photographs (clothes_judges.py); what is
measured, and how photographs are made comparable, stands in clothes_measures.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clothes_judges import SIDE, card_of, open_judges, open_photographs
from clothes_measures import (
    EXAMPLES,
    FOUR,
    Pairs,
    Yard,
    build_yard,
    by_pair,
    choose_pairs,
    kin_words,
    measure,
    rule,
)
from giverny.base.errors import InputError
from giverny.base.files import atomic_write
from giverny.base.images import grid, png_bytes
from giverny.data.clothes.words import caption
from scoring import Scores, check_one_setting, paint, parser_of, print_scores, run

RED = (220, 0, 0)  # frames what was never shown
# conditions worth a place beside their number, and the columns of a sweep
SHOWN = ("real", "of_real", "with_kin", "real_with_kin", "floor_mean", "floor_sd", "floor_high", "least",
         "near_as_5_percent_of_real")  # fmt: skip
COLUMNS = {"garment": "garment found, first judge", "g/real": "garment found / real, first judge",
           "g/real 2": "garment found / real, second judge", "colour": "colour found, first judge",
           "c/real": "colour found / real, first judge", "c/real 2": "colour found / real, second judge",
           "pixels": "spread of pixels / real", "features": "spread of features / real", "kid": "kid", "kid/fl": "kid / floor",
           "sharp": "sharpness / real", "bright": "brightness / real", "near": "nearest training picture / real"}  # fmt: skip


def report(yard: Yard, scores: Scores) -> None:
    """One setting at length: garments by colours as the first judge finds them, then all scores."""
    found, real = scores["both found, first judge"].conditions["found_by_pair"], by_pair(yard, yard.seen[0], yard.pair)
    tones, unseen = yard.pairs.colours, {yard.pairs.names[number] for number in np.flatnonzero(yard.pairs.unseen)}

    def cell(shares: Sequence[tuple[float, float]], mark: str = "") -> str:
        """Percent of garments and of colours, each pair alike."""
        means = "/".join(f"{share:.0f}" for share in np.mean(shares, axis=0) * 100) if shares else "-"
        return f"{means + mark:>10}"

    print(
        "\nfirst judge, % of garments / % of colours found; * never shown in training; real: photographs, pairs counting alike"
    )
    print(f"{'':<18}" + "".join(f"{word:>10}" for word in (*tones, "all", "real")))
    for garment, row in found.items():
        cells = [cell([row[t]] if t in row else [], "*" * ((garment, t) in unseen)) for t in tones]
        print(f"{garment:<18}{''.join(cells)}{cell([*row.values()])}{cell([*real.get(garment, {}).values()])}")
    for name, table in (("all", found), ("real", real)):
        print(f"{name:<18}" + "".join(cell([row[t] for row in table.values() if t in row]) for t in tones))
    print(f"\nwords that photographs do not tell apart: {', '.join(kin_words(yard, 'both')) or 'none'}\n")
    print_scores(scores, SHOWN, wide=52)


def montage(pairs: Pairs, pictures: np.ndarray) -> np.ndarray:
    """A sheet uint8 (H, W, 3), a row per garment, of uint8 (P, 64, 64, 3); what training never showed is framed."""
    cells = pictures.copy()
    for edge in (np.s_[:, :2], np.s_[:, -2:], np.s_[:, :, :2], np.s_[:, :, -2:]):
        cells[edge][pairs.unseen] = RED
    words = [f"{colour} (unseen)" if held else colour for (_, colour), held in zip(pairs.names, pairs.unseen, strict=True)]
    return grid(list(cells), len(pairs.colours), words, pairs.garments, "framed: pairs that training never showed", scale=2)


def parse() -> argparse.Namespace:
    parser = parser_of(str(__doc__), "wardrobe")
    add = parser.add_argument
    add("--data", type=Path, default=Path("runs/data/wardrobe"), help="the prepared set it was trained on")
    add("--count-per-pair", type=int, default=20, metavar="N", help="pictures of each pair, four or more (default: 20)")
    add("--garments", type=words_of, default=(), metavar="A,B", help="those painted (default: the common ones)")
    add("--colours", type=words_of, default=(), metavar="A,B", help="those painted (default: the eleven basic ones)")
    add("--real", action="store_true", help="judge half of the test photographs by the other half instead")
    add("--montage", type=Path, metavar="FILE.png", help="one picture of each pair, a row per garment")
    args = parser.parse_args()
    if args.count_per_pair < FOUR:
        raise InputError(f"--count-per-pair of {FOUR} or more", str(args.count_per_pair))
    if args.real and args.montage:
        raise InputError("a model's pictures for --montage", "--real")
    check_one_setting(args, args.real)
    return args


def words_of(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def main() -> None:
    args, began = parse(), time.perf_counter()
    card, train, test = card_of(args.data), open_photographs(args.data, "train"), open_photographs(args.data, "test")
    pairs = choose_pairs(card, train, args.garments, args.colours)
    yard = build_yard(train, test, pairs, open_judges(args.cache, train))
    pair = np.repeat(np.arange(len(pairs.names)), args.count_per_pair)
    shown = f"{len(pairs.names)} pairs ({pairs.unseen.sum()} never shown, {(pairs.examples >= EXAMPLES).sum()} with {EXAMPLES})"
    print(f"\n{shown}; {len(yard.pair)} test photographs show {len(np.unique(yard.pair))} of them")
    borrowed = yard.half(other=True)
    if args.real:
        yard, pair = yard.half(other=False), borrowed.pair

    def pictures(settings: list[str], seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        if args.real:
            return borrowed.pixels, {}
        prompts = [caption(*pairs.names[number]) for number in pair]
        return paint(args.model, prompts, seed, settings, SIDE)

    def measured(pixels: np.ndarray, conditions: dict[str, Any]) -> Scores:
        return measure(yard, pixels, pair, conditions)

    pixels = run(args, pictures, measured, rule, lambda scores: report(yard, scores), COLUMNS)
    if args.montage:
        atomic_write(args.montage, png_bytes(montage(pairs, pixels[:: args.count_per_pair])))
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
