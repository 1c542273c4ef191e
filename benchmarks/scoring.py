"""What every benchmark of a painter's quality does alike: paint, gather scores with their conditions, sweep, report."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from giverny.base.contracts import Done, Failed, Request, Score
from giverny.base.errors import InputError
from giverny.base.files import atomic_write
from giverny.base.recipe import override
from giverny.checkpoints.native import read_card, write_card
from likeness import feature_spread, pair_distance, spread

DRAWS = 20  # sets of real pictures, for the floor and for the real spread
SWEEP_SEED = 1_000_000  # settings are chosen on other pictures than those they are reported with


class Scores(dict[str, Score]):
    """Scores by name. conditions: what all of them were measured under."""

    def __init__(self, conditions: Mapping[str, Any]) -> None:
        super().__init__()
        self.conditions = conditions

    def add(self, name: str, value: float, interval: tuple[float, float] | None = None, **more: Any) -> None:
        self[name] = Score(name=name, value=float(value), interval=interval, conditions={**self.conditions, **more})

    def add_spreads(self, painted: Mapping[str, float], real: Mapping[str, np.ndarray], drawn: str) -> None:
        """Painted spreads against those of several sets of photographs; `drawn` says what such a set is."""
        for kind, value in painted.items():
            sets = real[kind]
            ratio, slack = value / sets.mean(), 1.96 * sets.std(ddof=1) / sets.mean()
            self.add(f"{kind} / real", ratio, (ratio * (1 - slack), ratio * (1 + slack)), real=float(sets.mean()),
                     interval_by=f"as far as {len(sets)} sets of {drawn} differ")  # fmt: skip


def flat(pixels: np.ndarray) -> np.ndarray:
    """uint8 (N, ...) -> float32 (N, d) in [0, 1]."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255


def spreads_of(pixels: np.ndarray, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    values = flat(pixels)
    return {
        "spread of pixels": spread(values, labels),
        "spread of features": feature_spread(features, labels),
        "distance of pairs": pair_distance(values, labels),
    }


def floor_of(distances: np.ndarray) -> dict[str, float]:
    """What the distances of real sets come to, for the conditions of a score."""
    return {
        "floor_mean": float(distances.mean()),
        "floor_sd": float(distances.std(ddof=1)),
        "floor_high": high_floor(distances),
    }


def high_floor(floor: np.ndarray) -> float:
    """What 1 in 20 real sets exceeds. An unbiased distance is 0 on average where nothing differs, so that its mean
    is no yardstick: how far real sets stray is one."""
    return float(np.percentile(floor, 95))


# ---------------------------------------------------------------------------------------------------------------------
# Painting


def paint(
    model: str, prompts: Sequence[str], seed: int, settings: Sequence[str], side: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """A picture for each prompt, seeds counted up from `seed` -> uint8 (N, side, side, 3) and what they were painted under."""
    from giverny.assembly import open_painter

    painter, knobs, count = open_painter(model), override({}, settings), len(prompts)
    asked = [Request(prompt=str(p), seed=seed + i, knobs=knobs, id=str(i)) for i, p in enumerate(prompts)]
    began, done = time.perf_counter(), {}
    for event in painter.paint(asked):
        if isinstance(event, Failed):
            raise InputError("a picture", event.reason)
        if isinstance(event, Done):
            done[event.id] = event.artifact
    seconds = (time.perf_counter() - began) / count
    pictures = [done[request.id] for request in asked]
    if pictures[0].pixels.shape[:2] != (side, side):
        raise InputError(f"pictures of {side} x {side}, as the judge knows them", f"{pictures[0].size}", "name another model")
    origin = pictures[0].provenance
    assert origin is not None  # a painter always says
    conditions = {"seeds": [seed, seed + count - 1], "knobs": origin.knobs, "model": origin.fingerprint,
                  "seconds_each": round(seconds, 4), **origin.versions}  # fmt: skip
    return np.stack([p.pixels for p in pictures]), conditions


def put_on_card(model: str, scores: Sequence[Score]) -> None:
    """Scores of these names are replaced, others stay."""
    from giverny.assembly import find_model

    folder = find_model(model)
    card, names = read_card(folder), {score.name for score in scores}
    others = [score for score in card.scores if score.name not in names]
    write_card(folder, card.model_copy(update={"scores": (*others, *scores)}))


# ---------------------------------------------------------------------------------------------------------------------
# The script


def parser_of(about: str, model: str) -> argparse.ArgumentParser:
    """The options that all have. model: the one judged where none is named."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", default=model, help="a model's name or folder")
    add("--set", action="append", default=[], metavar="KNOB=VALUE", help="a setting other than the model's own")
    add("--sweep", action="append", default=[], metavar="KNOB=A,B,C", help="a row per value; twice: per pair of values")
    add("--seed", type=int, help=f"of the first picture (default: 0, for a sweep {SWEEP_SEED})")
    add("--cache", type=Path, default=Path("runs/judge"), help="where the judges are kept")
    add("--json", type=Path, metavar="FILE", help="write all numbers with their conditions")
    add("--card", action="store_true", help="put the scores on the model's card")
    return parser


def check_one_setting(args: argparse.Namespace, borrowed: bool) -> None:
    """borrowed: real pictures are judged, not a model's."""
    if (args.sweep and (args.card or args.montage or borrowed)) or (borrowed and args.card):
        raise InputError("one setting of a model for --card and --montage", "a sweep or real pictures")


def run(
    args: argparse.Namespace,
    pictures: Callable[[list[str], int], tuple[np.ndarray, dict[str, Any]]],  # (settings, seed) -> pixels, conditions
    measure: Callable[[np.ndarray, dict[str, Any]], Scores],
    rule: Callable[[Mapping[str, Score]], dict[str, bool]],  # what a model on the shelf must hold
    report: Callable[[Scores], None],  # one setting at length
    columns: Mapping[str, str],  # of a sweep: heading -> name of a score
    also: Mapping[str, Any] | None = None,  # into the JSON file
) -> np.ndarray:
    """Measure every setting that is asked for and write what is; returns the pictures of the last one."""
    parts = [sweep.partition("=") for sweep in args.sweep]
    settings = list(itertools.product(*([f"{knob}={value}" for value in values.split(",")] for knob, _, values in parts)))
    if args.sweep:
        print(f"{'setting':<28}" + "".join(f"{name:>10}" for name in columns) + "   holds")
    rows: list[dict[str, Any]] = []
    for chosen in settings:
        seed = args.seed if args.seed is not None else SWEEP_SEED if args.sweep else 0
        pixels, conditions = pictures([*args.set, *chosen], seed)
        scores = measure(pixels, conditions)
        held = rule(scores)
        rows.append({"setting": chosen, "holds": held, "scores": [s.model_dump(mode="json") for s in scores.values()]})
        if args.sweep:
            values = "".join(f"{scores[name].value:>10.4f}" for name in columns.values())
            print(f"{' '.join(chosen):<28}{values}   {'yes' if all(held.values()) else 'no'}", flush=True)
        else:
            report(scores)
            print("\n" + "\n".join(f"{'holds' if kept else 'FAILS':<7}{what}" for what, kept in held.items()))
    if args.json:
        said = {"threads": torch.get_num_threads(), "rows": rows, **(also or {})}
        atomic_write(args.json, json.dumps(said, indent=2) + "\n")
    if args.card:
        put_on_card(args.model, list(scores.values()))
    return pixels


def print_scores(scores: Mapping[str, Score], shown: Sequence[str], wide: int = 34) -> None:
    """A line each. shown: conditions worth a place beside their number."""
    for name, score in scores.items():
        words = "" if score.interval is None else "{:.4f} to {:.4f}".format(*score.interval)
        said = ", ".join(f"{k} {score.conditions[k]:.4f}" for k in shown if k in score.conditions)
        print(f"{name:<{wide}}{score.value:>9.4f}   {words:<20}  {said}")
