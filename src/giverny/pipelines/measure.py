"""How good pictures are: painted or read, looked at by an instrument, scored against real ones. Works on any painter.

Pictures stream: only the features of a sample and sums over all are held (metrics/gather.py), and what a reference looked
like is kept on disk by what it depends on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..base.contracts import Done, Failed, Instrument, Painter, Request, Score, Source, Start
from ..base.errors import InputError, choose
from ..base.files import atomic_write, fingerprint
from ..base.start import enclosed_pixels
from ..metrics.checkerboard import CornerEye, checkerboard
from ..metrics.gather import KEEP, Gathered, key_of, pack, unpack
from ..metrics.intervals import of_mean, of_share
from ..metrics.scores import KINDS, Sides
from ..metrics.scores import measure as scores_of
from ..metrics.words import cosines, r_precision
from .pairs import Pairing, Told, quiet

PATTERN = "checkerboard"  # the measure of that name
AHEAD = 64  # pictures that are read or painted before they are looked at together


@dataclass(frozen=True)
class Shown:
    """A picture to be judged: pixels uint8 (H, W, 1 or 3), and what it was to show."""

    pixels: np.ndarray
    prompt: str | None = None
    category: str = ""
    number: int = 0  # where it stands among all


# ---------------------------------------------------------------------------------------------------------------------
# Where pictures come from


def from_source(source: Source, most: int | None = None, workers: int = 2) -> Iterator[Shown]:
    """The pictures of a source, the first `most` of them, read ahead by several threads."""
    order = range(len(source) if most is None else min(most, len(source)))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        numbers = iter(order)
        ahead = [(i, pool.submit(source.read, i)) for i in islice(numbers, AHEAD)]
        while ahead:
            number, reading = ahead.pop(0)
            sample = reading.result()
            following = next(numbers, None)
            if following is not None:
                ahead.append((following, pool.submit(source.read, following)))
            yield Shown(sample.pixels, sample.captions[0] if sample.captions else None, number=number)


def start_of(given: Source, number: int, strength: float = 1.0) -> Start:
    """What the `number`-th picture begins from, where these are given; they are taken in turn."""
    sample = given.read(number % len(given))
    return Start(picture=enclosed_pixels(sample.pixels, sample.name or str(number)), strength=strength)


@dataclass
class Painted:
    """What a painter makes of prompts, as it comes. `conditions` are there once a picture is."""

    painter: Painter
    prompts: Sequence[tuple[str, str]]  # (prompt, category)
    seed: int = 0  # of the first picture; the k-th has seed + k
    knobs: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None  # None: the model's own, or the given picture's
    given: Source | None = None  # pictures to begin from, in turn; None: from nothing
    strength: float = 1.0  # of beginning from them
    conditions: dict[str, Any] = field(default_factory=dict)

    def start(self, number: int) -> Start | None:
        """What the `number`-th picture begins from."""
        return None if self.given is None else start_of(self.given, number, self.strength)

    def __iter__(self) -> Iterator[Shown]:
        asked = [
            Request(prompt=prompt, seed=self.seed + i, size=self.size, knobs=dict(self.knobs), id=str(i), start=self.start(i))
            for i, (prompt, _) in enumerate(self.prompts)
        ]
        with closing(self.painter.paint(asked)) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Failed):
                    raise InputError("a picture", event.reason)
                if isinstance(event, Done):
                    self._note(event.artifact.provenance)
                    number = int(event.id)
                    yield Shown(event.artifact.pixels, *self.prompts[number], number)

    def _note(self, origin: Any) -> None:
        if origin is not None and not self.conditions:
            self.conditions |= {
                "model": origin.model, "fingerprint": origin.fingerprint, "knobs": origin.knobs,
                "seeds": [self.seed, self.seed + len(self.prompts) - 1], "device": origin.device, "precision": origin.precision,
            }  # fmt: skip
            if self.given is not None:
                self.conditions |= {"given": self.given.name, "given_fingerprint": self.given.fingerprint}
                self.conditions |= {"strength": self.strength, "size": origin.request.size}


def prompts_of(source: Source, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(first caption, "") of pictures drawn at random without replacement, again from the start where there are too few; the
    empty prompt of each where no picture has a caption. Raises InputError where some have one and some have none."""
    chance = np.random.default_rng(seed)
    order = np.concatenate([chance.permutation(len(source)) for _ in range(-(-count // len(source)))])[:count]
    found = [source.captions_of(int(i)) for i in order]
    if not any(found):
        found = [source.captions_of(i) for i in range(len(source))]
    if not any(found):
        return [("", "")] * count
    if not all(found):
        raise InputError("a caption for every picture of the reference", "pictures without", "Name a file with --prompts.")
    return [(captions[0], "") for captions in found]


# ---------------------------------------------------------------------------------------------------------------------
# Looking


class Looking(Protocol):
    """What sees a stream of pictures go by, in batches of one size."""

    def look(self, pixels: np.ndarray, shown: Sequence[Shown]) -> None: ...


def pass_by(pictures: Iterable[Shown], lookers: Sequence[Looking], told: Callable[[int], None] = quiet) -> int:
    """Show every picture to all; returns how many there were. Pictures of different sizes wait for others of theirs."""
    waiting: dict[tuple[int, ...], list[Shown]] = {}
    count = 0

    def hand_over(group: list[Shown]) -> None:
        pixels = np.stack([shown.pixels for shown in group])
        for looker in lookers:
            looker.look(pixels, group)

    for shown in pictures:
        group = waiting.setdefault(shown.pixels.shape, [])
        group.append(shown)
        count += 1
        if len(group) >= AHEAD:
            hand_over(waiting.pop(shown.pixels.shape))
        told(count)
    for group in waiting.values():
        hand_over(group)
    return count


class Changing:
    """How far pictures are from those they were begun from."""

    def __init__(self, given: Source) -> None:
        self.given, self.pairing = given, Pairing()

    def look(self, pixels: np.ndarray, shown: Sequence[Shown]) -> None:
        for picture, one in zip(pixels, shown, strict=True):
            self.pairing.begun(start_of(self.given, one.number), picture)


class Gathering:
    """Features of all that goes by."""

    def __init__(self, instrument: Instrument, keep: int = KEEP, moments: bool = True) -> None:
        self.instrument, self.found = instrument, Gathered(instrument.width, keep, moments)

    def look(self, pixels: np.ndarray, shown: Sequence[Shown]) -> None:
        self.found.add(self.instrument(pixels), [key_of(p) for p in pixels], [s.number for s in shown])


def reference_of(
    source: Source, instrument: Instrument, cache: Path | None, most: int | None = None, told: Told = quiet, workers: int = 2
) -> Gathered:
    """The real side, looked at now or read from the cache."""
    conditions = [source.fingerprint, most, instrument.conditions(), KEEP]
    file = cache / f"{fingerprint(conditions)}.safetensors" if cache is not None else None
    if file is not None and file.is_file():
        try:
            return unpack(load_file(str(file)))
        except (OSError, SafetensorError, KeyError):
            file.unlink()  # cut short: it is made again
    gathering, total = Gathering(instrument), len(source) if most is None else min(most, len(source))
    pass_by(from_source(source, most, workers), [gathering], lambda done: told("looking at the reference", done, total))
    if file is not None:
        atomic_write(file, save(pack(gathering.found)))
    return gathering.found


# ---------------------------------------------------------------------------------------------------------------------
# Words


class Space(Protocol):
    """What puts words and pictures into one space (text.space.SharedSpace)."""

    def texts(self, texts: Sequence[str]) -> Tensor: ...
    def pictures(self, pictures: np.ndarray) -> Tensor: ...


class Answering:
    """How well pictures answer their prompts, by a CLIP."""

    def __init__(self, space: Space, conditions: Mapping[str, Any]) -> None:
        self.space, self.conditions = space, conditions
        self._pictures: list[Tensor] = []
        self._shown: list[tuple[int, str, str]] = []

    def look(self, pixels: np.ndarray, shown: Sequence[Shown]) -> None:
        told = [i for i, s in enumerate(shown) if s.prompt is not None]
        if told:
            self._pictures.append(self.space.pictures(pixels[told]).double().cpu())
            self._shown += [(shown[i].number, shown[i].prompt or "", shown[i].category) for i in told]

    def scores(self, among: int = 100, seed: int = 0) -> tuple[list[Score], list[dict[str, Any]]]:
        """(scores, rows of a table by category)."""
        if not self._shown:
            raise InputError("pictures with prompts", "none", "Measure a model, or a folder with captions.")
        order = sorted(range(len(self._shown)), key=lambda i: self._shown[i])  # not as they came
        prompts = [self._shown[i][1] for i in order]
        pictures = torch.cat(self._pictures)[order]
        different = sorted(set(prompts))
        vectors = self.space.texts(different).double().cpu()
        texts = vectors[[different.index(p) for p in prompts]]
        cos = cosines(pictures, texts)
        told = {"n": len(prompts), **self.conditions, "interval_by": "the spread from picture to picture"}
        low, high = of_mean(cos)
        forms = (
            ("CLIP cosine", cos, "mean cosine, as DF-GAN and GALIP print it"),
            ("CLIPScore", 2.5 * cos.clamp(min=0), "2.5 max(cos, 0) of each pair (Hessel et al. 2021)"),
        )
        scores = [
            Score(name=name, value=float(values.mean()), interval=of_mean(values), conditions={**told, "definition": what})
            for name, values, what in forms
        ]
        percent = {**told, "definition": "100 mean cos, then not below 0, as torchmetrics has it"}
        bounds = (max(100 * low, 0.0), max(100 * high, 0.0))
        scores.append(Score(name="CLIP percent", value=max(100 * float(cos.mean()), 0.0), interval=bounds, conditions=percent))
        among = min(among, len(different))
        if among > 1:
            right = r_precision(pictures, texts, prompts, among, seed).double()
            more = {**told, "among": among, "seed": seed, "by_chance": 1 / among}
            value, share = float(right.mean()), of_share(float(right.sum()), len(right))
            scores.append(Score(name="R-precision", value=value, interval=share, conditions=more))
        categories = np.array([self._shown[i][2] for i in order])
        rows = [
            {"category": c or "(none)", "pictures": int((categories == c).sum()),
             "CLIP cosine": round(float(cos[torch.from_numpy(categories == c)].mean()), 4)}
            for c in sorted(set(categories.tolist()))
        ]  # fmt: skip
        return scores, rows


class Judging:
    """Whether pictures show what their prompts name, by a judge that knows attributes and their values."""

    def __init__(self, judge: Any) -> None:
        self.judge = judge
        self._hits: dict[str, list[bool]] = {name: [] for name in judge.attributes}
        self._both: list[bool] = []
        self._by: dict[str, list[bool]] = {}

    def look(self, pixels: np.ndarray, shown: Sequence[Shown]) -> None:
        found = self.judge.look(pixels).probabilities
        for row, one in enumerate(shown):
            wanted = asked_for(one.prompt or "", self.judge.attributes)
            right = []
            for attribute, value in wanted.items():
                seen = self.judge.attributes[attribute][int(found[attribute][row].argmax())]
                self._hits[attribute].append(seen == value)
                right.append(seen == value)
            if right:
                self._both.append(all(right))
                self._by.setdefault(one.category, []).append(all(right))

    def scores(self) -> list[Score]:
        told = {**self.judge.conditions(), "interval_by": "Wilson's, over pictures"}
        groups = {f"judged {name}": hits for name, hits in self._hits.items() if hits}
        if len(groups) > 1:
            groups["judged all"] = self._both
        return [
            Score(
                name=name,
                value=float(np.mean(hits)),
                interval=of_share(sum(hits), len(hits)),
                conditions={"n": len(hits), **told},
            )
            for name, hits in groups.items()
        ]

    def by_category(self) -> dict[str, float]:
        return {category or "(none)": round(float(np.mean(hits)), 4) for category, hits in self._by.items()}


def asked_for(prompt: str, attributes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The values of attributes that a prompt names as whole words: of overlapping ones the longest ("navy blue", not "blue");
    of an attribute that is named twice, none, since it is not clear what is asked."""
    text, taken, found = prompt.lower(), [False] * len(prompt.lower()), dict[str, list[str]]()
    values = sorted(((v, a) for a, vs in attributes.items() for v in vs), key=lambda pair: (-len(pair[0]), pair))
    for value, attribute in values:
        for match in re.finditer(rf"(?<![\w-]){re.escape(value.lower())}(?![\w-])", text):
            if not any(taken[match.start() : match.end()]):
                taken[match.start() : match.end()] = [True] * len(match[0])
                found.setdefault(attribute, []).append(value)
    return {attribute: named[0] for attribute, named in found.items() if len(set(named)) == 1}


# ---------------------------------------------------------------------------------------------------------------------
# All together


@dataclass(frozen=True)
class Measured:
    """Scores, a table by category of prompts (empty where there are none), and which reference picture is the nearest to
    each of the sample's painted ones: (number of the painted, number of the real, distance), closest first."""

    scores: tuple[Score, ...]
    categories: tuple[dict[str, Any], ...] = ()
    nearest: tuple[tuple[int, int, float], ...] = ()


def measure(
    pictures: Painted | Iterable[Shown],
    reference: Source,
    instrument: Instrument,
    kinds: Sequence[str],
    *,
    space: tuple[Space, Mapping[str, Any]] | None = None,  # a CLIP, and what is said of it
    judge: Any = None,
    cache: Path | None = None,
    most: int | None = None,  # pictures of the reference
    count: int | None = None,  # pictures to come, for those who watch
    conditions: Mapping[str, Any] | None = None,
    seed: int = 0,
    told: Told = quiet,
) -> Measured:
    """Look at all pictures, then score them against the reference. kinds: of metrics.scores.KINDS, and "checkerboard", which
    looks at pictures with an eye of its own. Pictures that were begun from others are compared with these as well."""
    from ..metrics.pairs import nearest

    for kind in kinds:
        choose(kind, (*KINDS, PATTERN), "measure")
    eye = Gathering(CornerEye()) if PATTERN in kinds else None
    real = reference_of(reference, instrument, cache, most, told)
    gathering = Gathering(instrument)
    answering = Answering(*space) if space is not None else None
    judging = Judging(judge) if judge is not None else None
    changing = Changing(pictures.given) if isinstance(pictures, Painted) and pictures.given is not None else None
    lookers = [looker for looker in (gathering, eye, answering, judging, changing) if looker is not None]
    what = "painting" if isinstance(pictures, Painted) else "looking at pictures"
    pass_by(pictures, lookers, lambda done: told(what, done, count))
    source = {"reference": reference.name, "reference_fingerprint": reference.fingerprint}
    facts = {**(conditions or {}), **(pictures.conditions if isinstance(pictures, Painted) else {})}
    sides = Sides(gathering.found, real, {**source, **instrument.conditions(), **facts}, seed)
    scores, rows = scores_of(sides, [kind for kind in kinds if kind != PATTERN]), list[dict[str, Any]]()
    if eye is not None:
        seen = reference_of(reference, eye.instrument, cache, most, told)
        scores += checkerboard(Sides(eye.found, seen, {**source, **eye.instrument.conditions(), **facts}, seed))
    if changing is not None:
        scores += [s.model_copy(update={"conditions": {**s.conditions, **facts}}) for s in changing.pairing.scores()]
    if answering is not None:
        worded, rows = answering.scores(seed=seed)
        scores += [s.model_copy(update={"conditions": {**s.conditions, **facts}}) for s in worded]
    if judging is not None:
        scores += [s.model_copy(update={"conditions": {**s.conditions, **facts}}) for s in judging.scores()]
        known = judging.by_category()
        rows = rows or [{"category": category} for category in sorted(known)]
        rows = [{**row, "judged right": known.get(row["category"])} for row in rows]
    ours, theirs = sides.some()
    distance, which = nearest(ours, theirs)
    pairs = [(int(gathering.found.tags[i]), int(real.tags[int(which[i])]), float(distance[i])) for i in range(len(ours))]
    return Measured(tuple(scores), tuple(rows), tuple(sorted(pairs, key=lambda pair: pair[2])))
