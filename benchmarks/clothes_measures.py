"""Painted clothes beside photographs: which pairs of garment and colour are asked for, and all that is measured of them.

No painter is asked for more than judges find in photographs. Those show few pairs often and others never, so that what
stands side by side is made alike:

- shares found: over pairs that test photographs show; each pair counts once, on either side, however many show it;
- spread: sets of four of a pair, drawn at random from pairs with four photographs or more, as many of painted pictures;
- KID, nearest training picture, sharpness, brightness: as many painted pictures of a pair as photographs. The floor of
  KID is the distance of one half of the photographs to the other; painted pictures of the one half's pairs are measured
  against the other half too.

The nearest training picture (recoloured and mirrored ones too) is taken at half the size, 32 x 32 pixels of RGB in [0, 1].
Whoever learns by heart paints nearer to what was shown than new photographs lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clothes_judges import UNKNOWN, WORDS, Photographs, Seen, kin, look
from giverny.base.contracts import Score
from giverny.base.errors import InputError, choose
from judges import Judge
from likeness import Reference, balanced, drawn_like, even_share, nearest_distance, share_ratio, sharpness, wilson
from scoring import DRAWS, Scores, floor_of, spreads_of

COMMON = 14  # garments with most photographs that are painted
BASIC = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
EXAMPLES = 30  # training pictures, recoloured ones among them, from which on a pair must be known
FOUR = 4  # seeds of a prompt that spread is taken over
NAMES = ("first", "second")  # judges

# ---------------------------------------------------------------------------------------------------------------------
# What is painted and what it is measured by


@dataclass(frozen=True)
class Pairs:
    """The P pairs that are painted, garment by garment."""

    garments: tuple[str, ...]
    colours: tuple[str, ...]
    unseen: np.ndarray  # bool (P,): held out of training
    examples: np.ndarray  # (P,) pictures of each that training shows

    @property
    def names(self) -> list[tuple[str, str]]:
        return [(garment, colour) for garment in self.garments for colour in self.colours]

    def told(self, kind: str, pair: np.ndarray) -> np.ndarray:
        """The right answers of a kind, numbers in WORDS[kind], for pairs by number (N,)."""
        index = list(WORDS).index(kind)
        return np.array([WORDS[kind].index(name[index]) for name in self.names])[pair]

    def number(self, photographs: Photographs) -> np.ndarray:
        """Which pair each photograph shows (N,), UNKNOWN where none of these."""
        known = {name: number for number, name in enumerate(self.names)}
        words = zip(*(photographs.words[kind].tolist() for kind in WORDS), strict=True)
        named = [(WORDS["garment"][g], WORDS["colour"][c] if c != UNKNOWN else "") for g, c in words]
        return np.array([known.get(name, UNKNOWN) for name in named])


def choose_pairs(card: Mapping[str, Any], train: Photographs, garments: Sequence[str], colours: Sequence[str]) -> Pairs:
    """Those named, or the common ones. Colours and held-out garments that the set does not know stay out."""
    counts = np.bincount(train.words["garment"][~train.recoloured], minlength=len(WORDS["garment"]))
    held = {tuple(pair) for pair in card["held_out_pairs"]}
    common = [WORDS["garment"][i] for i in np.argsort(-counts, kind="stable")[:COMMON] if counts[i]]
    rest = [g for g in WORDS["garment"] if g not in common and any(g == garment for garment, _ in held)]
    chosen = tuple(choose(g, WORDS["garment"], "garment") for g in garments) or (*common, *rest)
    tones = tuple(choose(c, WORDS["colour"], "colour") for c in colours) or BASIC
    names = [(garment, colour) for garment in chosen for colour in tones]
    examples = [card["pairs"].get(f"{garment}/{colour}", 0) for garment, colour in names]
    return Pairs(chosen, tones, np.array([name in held for name in names]), np.array(examples))


@dataclass(frozen=True)
class Yard:
    """All that is real and that pictures are measured by; made once. Of test photographs, those M that show a pair."""

    judges: list[Judge]
    pairs: Pairs
    pixels: np.ndarray  # uint8 (M, 64, 64, 3)
    pair: np.ndarray  # (M,) numbers in `pairs`
    seen: list[Seen]  # by each judge
    nearest: np.ndarray  # (M,) distance to the training set
    train: np.ndarray  # `small` of it
    kin: dict[str, np.ndarray]  # kind -> which words photographs do not tell apart, bool (words, words)
    accuracy: dict[str, list[float]]  # kind -> of each judge, over all test photographs

    def half(self, other: bool) -> Yard:
        """Of every pair each second photograph, or the other ones."""
        order = np.argsort(self.pair, kind="stable")
        rows = np.sort(order[int(other) :: 2])
        seen = [Seen({k: v[rows] for k, v in one.logits.items()}, one.features[rows]) for one in self.seen]
        return replace(self, pixels=self.pixels[rows], pair=self.pair[rows], seen=seen, nearest=self.nearest[rows])


def small(pixels: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> float32 (N, d) in [0, 1]: means of 2 x 2 pixels."""
    n, high, wide, layers = pixels.shape
    halves = pixels.reshape(n, high // 2, 2, wide // 2, 2, layers)
    return halves.mean((2, 4), dtype=np.float32).reshape(n, -1) / 255


def nearest_training(pixels: np.ndarray, train: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> (N,) distance to the closest training picture or its mirror image. train: `small` of them."""
    return np.minimum(*(nearest_distance(small(way), train) for way in (pixels, pixels[:, :, ::-1])))


def build_yard(train: Photographs, test: Photographs, pairs: Pairs, judges: list[Judge]) -> Yard:
    looked = [look(judge, test.pixels) for judge in judges]
    print_ceiling(looked, test)
    number = pairs.number(test)
    of, shown = number != UNKNOWN, small(train.pixels)
    return Yard(
        judges=judges,
        pairs=pairs,
        pixels=test.pixels[of],
        pair=number[of],
        seen=[Seen({k: v[of] for k, v in one.logits.items()}, one.features[of]) for one in looked],
        nearest=nearest_training(test.pixels[of], shown),
        train=shown,
        kin={kind: kin(looked, kind, test.words[kind]) for kind in WORDS},
        accuracy={kind: [float(hit[told != UNKNOWN].mean()) for hit in hits] for kind, told, hits in answers(looked, test)},
    )


def answers(looked: Sequence[Seen], of: Photographs) -> list[tuple[str, np.ndarray, list[np.ndarray]]]:
    """(kind, right answers (N,), whether each judge gives them)."""
    return [(kind, told, [one.right(kind, told) for one in looked]) for kind, told in of.words.items()]


def print_ceiling(looked: Sequence[Seen], test: Photographs) -> None:
    """What judges find in test photographs: the most that a painter can be asked for."""
    for kind, told, hits in answers(looked, test):
        known = told != UNKNOWN
        even = [even_share(hit[known], told[known])[0] for hit in hits]
        said = [f"{hit[known].mean():.1%} (words alike {e:.1%})" for hit, e in zip(hits, even, strict=True)]
        print(f"{kind} of {known.sum()} test photographs: first judge {said[0]}, second judge {said[1]}")
        for number in np.unique(told[known]):
            mine = told == number
            found = "".join(f"{hit[mine].mean():>8.0%}" for hit in hits)
            print(f"    {WORDS[kind][number]:<18}{mine.sum():>5}{found}")


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def measure(yard: Yard, pixels: np.ndarray, pair: np.ndarray, conditions: dict[str, Any]) -> Scores:
    """All scores of uint8 (n, 64, 64, 3) that show the pairs by number (n,)."""
    seen = [look(judge, pixels) for judge in yard.judges]
    scores = Scores({"pictures": len(pixels), "pairs": len(np.unique(pair)), **conditions})
    parts = {"": np.ones(len(yard.pairs.names), bool), ", unseen pairs": yard.pairs.unseen}
    parts[f", pairs of {EXAMPLES} examples"] = yard.pairs.examples >= EXAMPLES
    for part, taken in parts.items():
        if taken[pair].any():
            add_found(scores, yard, seen, pair, part, taken)
    add_spread(scores, yard, pixels, seen[0].features, pair)
    add_likeness(scores, yard, pixels, seen[0].features, pair)
    return scores


def hits_of(yard: Yard, seen: Seen, pair: np.ndarray, related: bool = False) -> dict[str, np.ndarray]:
    """Whether a judge finds what the pairs (N,) ask for: kind, or "both", -> bool (N,). related: kin counts too."""
    hits = {k: seen.right(k, yard.pairs.told(k, pair), yard.kin[k] if related else None) for k in WORDS}
    return {**hits, "both": np.logical_and(*hits.values())}


def add_found(scores: Scores, yard: Yard, seen: Sequence[Seen], pair: np.ndarray, part: str, taken: np.ndarray) -> None:
    """Shares found over the pairs that are `taken`, bool (P,), beside those in photographs of the same pairs."""
    mine, theirs = taken[pair], taken[yard.pair] & np.isin(yard.pair, pair)
    both = mine & np.isin(pair, yard.pair[theirs])  # painted pictures that photographs stand beside
    pairs = {"pairs_taken": len(np.unique(pair[mine])), "pairs_photographed": len(np.unique(yard.pair[theirs])),
             "photographs": int(theirs.sum())}  # fmt: skip
    for number, name in enumerate(NAMES):
        sides = (seen[number], pair), (yard.seen[number], yard.pair)
        hits, real_hits = (hits_of(yard, *side) for side in sides)
        kin_hits, real_kin_hits = (hits_of(yard, *side, related=True) for side in sides)
        for kind, hit in hits.items():
            share, count = even_share(hit[mine], pair[mine])
            more: dict[str, Any] = {}
            if kind in yard.accuracy:
                more["judge_accuracy"] = yard.accuracy[kind][number]
            elif not part:
                more["found_by_pair"] = by_pair(yard, seen[number], pair)
            if theirs.any():
                real = even_share(real_hits[kind][theirs], yard.pair[theirs])
                painted = even_share(hit[both], pair[both])
                ratio, interval = share_ratio(painted, real)
                more |= {"real": real[0], "of_real": ratio}
                if not part:
                    scores.add(f"{kind} found / real, {name} judge", ratio, interval, real=real[0], painted_of_those=painted[0],
                               interval_by="logarithms, with Kish's number of pictures", **pairs)  # fmt: skip
                if words := kin_words(yard, kind):
                    real_kin = even_share(real_kin_hits[kind][theirs], yard.pair[theirs])[0]
                    more |= {
                        "kin": words,
                        "with_kin": even_share(kin_hits[kind][mine], pair[mine])[0],
                        "real_with_kin": real_kin,
                    }
            scores.add(f"{kind} found{part}, {name} judge", share, wilson(share * count, count), interval_by="Wilson",
                       **pairs, **more)  # fmt: skip


def kin_words(yard: Yard, kind: str) -> list[str]:
    """'flats = heels': words that count as one in what is told as found with kin."""
    kinds = WORDS if kind == "both" else (kind,)
    return [f"{WORDS[k][a]} = {WORDS[k][b]}" for k in kinds for a, b in np.argwhere(np.triu(yard.kin[k], 1))]


def by_pair(yard: Yard, seen: Seen, pair: np.ndarray) -> dict[str, dict[str, tuple[float, float]]]:
    """garment -> colour -> shares of garments and of colours that one judge finds."""
    hits, table = hits_of(yard, seen, pair), {}
    for number, (garment, colour) in enumerate(yard.pairs.names):
        mine = pair == number
        if mine.any():
            table.setdefault(garment, {})[colour] = tuple(round(float(hits[kind][mine].mean()), 4) for kind in WORDS)
    return table


def add_spread(scores: Scores, yard: Yard, pixels: np.ndarray, features: np.ndarray, pair: np.ndarray) -> None:
    """Spread over four pictures of a pair, on either side the mean over many draws of four."""
    often = [p for p in np.unique(pair) if min((pair == p).sum(), (yard.pair == p).sum()) >= FOUR]
    if not often:
        raise InputError(f"a pair that {FOUR} test photographs show", "none such", "name others with --garments, --colours")

    def drawn(shown: np.ndarray, below: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
        picks = [balanced(numbers, FOUR * len(often), draw, often) for draw in range(DRAWS)]
        rows = [spreads_of(shown[p], below[p], numbers[p]) for p in picks]
        return {kind: np.array([row[kind] for row in rows]) for kind in rows[0]}

    painted = {kind: float(values.mean()) for kind, values in drawn(pixels, features, pair).items()}
    real = drawn(yard.pixels, yard.seen[0].features, yard.pair)
    scores.add_spreads(painted, real, f"{FOUR} photographs of each of {len(often)} pairs")


def add_likeness(scores: Scores, yard: Yard, pixels: np.ndarray, features: np.ndarray, pair: np.ndarray) -> None:
    """Distances between sets in which each pair is shown equally often."""
    real = drawn_like(yard.pair, pair, seed=0)
    mine, known = drawn_like(pair, yard.pair[real], seed=0), yard.seen[0].features
    halves = [np.array_split(np.random.default_rng(draw).permutation(real), 2) for draw in range(DRAWS)]
    kids, floor, lengths = [], [], []
    for draw, (a, b) in enumerate(halves):
        reference = Reference(known[a])
        floor.append(reference.distance(known[b])[0])
        kids.append(reference.distance(features[drawn_like(pair, yard.pair[b], draw)])[0])
        lengths.append(yard.nearest[b].mean() / yard.nearest[a].mean())
    value, error, told = float(np.mean(kids)), float(np.std(kids, ddof=1)), floor_of(np.array(floor))
    scores.add("kid", value, (value - 1.96 * error, value + 1.96 * error), **told, draws=DRAWS, kernel="(x . y / d + 1)^3",
               estimator="unbiased", features=f"first judge, the {features.shape[1]} numbers below its logits",
               interval_by=f"as far as {DRAWS} halves differ", against=f"{len(halves[0][0])} test photographs")  # fmt: skip
    scores.add("kid / floor", value / told["floor_high"], floor="95th percentile of real halves")
    scores.add("sharpness / real", sharpness(pixels[mine] / 255) / sharpness(yard.pixels[real] / 255))
    scores.add("brightness / real", pixels[mine].mean() / yard.pixels[real].mean())
    near, known_near = nearest_training(pixels[mine], yard.train), yard.nearest[real]
    ratio, slack = float(near.mean() / known_near.mean()), 1.96 * float(np.std(lengths, ddof=1))
    scores.add("nearest training picture / real", ratio, (ratio * (1 - slack), ratio * (1 + slack)), least=float(near.min()),
               real=float(known_near.mean()), interval_by=f"as far as {DRAWS} halves of the photographs differ",
               near_as_5_percent_of_real=float((near < np.percentile(known_near, 5)).mean()),
               pictures_taken=len(mine), training_pictures=len(yard.train))  # fmt: skip


def rule(scores: Mapping[str, Score]) -> dict[str, bool]:
    """What a model on the shelf must hold. Each judge is asked, beside what it says of photographs."""
    least = {k: min(scores[f"{k} found / real, {name} judge"].value for name in NAMES) for k in WORDS}
    near, known = scores["nearest training picture / real"], f"pairs of {EXAMPLES} examples"
    held = {f"{kind}s found 95 % as often as in photographs": share >= 0.95 for kind, share in least.items()}
    for kind in WORDS:
        for name in NAMES:
            score = scores.get(f"{kind} found, {known}, {name} judge")
            if score is not None and "of_real" in score.conditions:
                share = score.conditions["of_real"]
                held[f"{kind}s found 80 % as often, {known}, {name} judge"] = share >= 0.8
    for kind in ("pixels", "features"):
        held[f"spread of {kind} 0.7 of the real one"] = scores[f"spread of {kind} / real"].value >= 0.7
    assert near.interval is not None
    held["no nearer to training pictures than photographs are, as far as those differ"] = near.interval[1] >= 1
    return {**held, "KID 3 x floor at most (a wish)": scores["kid / floor"].value <= 3}
