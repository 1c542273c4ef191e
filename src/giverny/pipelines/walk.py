"""Walks: the pictures between prompts, between seeds, or between both at once.

A walk passes stations, each a prompt and a seed. A frame is an ordinary request that lies part of the way to the next
station, so its file alone is enough to paint it again. A place on the walk is a number: 0 the first station, 1 the second,
1.5 halfway from there to the third. The measures of smoothness and the re-spacing by length of path are ours.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from ..base.contracts import Event, Failed, Frozen, Painter, Picture, Request, Toward, Variation
from ..base.errors import InputError
from ..base.sheet import grid

# ---------------------------------------------------------------------------------------------------------------------
# The way


class Station(Frozen):
    """Where a walk comes by: a picture painted of this prompt from this seed."""

    prompt: str
    seed: int = Field(ge=0, lt=2**63)


def stations_for(prompts: Sequence[str], seeds: Sequence[int]) -> list[Station]:
    """One seed serves every prompt, one prompt every seed; otherwise each prompt has its own seed.

    Raises InputError where the numbers do not match, and where nothing would change on the way.
    """
    count = max(len(prompts), len(seeds))
    if not {len(prompts), len(seeds)} <= {1, count}:
        given = f"{len(prompts)} prompts and {len(seeds)} seeds"
        raise InputError("one seed, or as many seeds as prompts", given, "one prompt may also have many seeds")
    pairs = zip(itertools.cycle(prompts), itertools.cycle(seeds), strict=False)
    stations = [Station(prompt=prompt, seed=seed) for prompt, seed in itertools.islice(pairs, count)]
    if len(set(stations)) == 1:
        remedy = "name another prompt, or several seeds"
        raise InputError("two stations that differ", f"only {stations[0].prompt!r} with seed {stations[0].seed}", remedy)
    return stations


def read_seeds(text: str) -> list[int]:
    """Whole numbers from 0 to 2^63 - 1, with commas or spaces between them."""
    words = re.split(r"[,\s]+", text.strip())
    if not all(re.fullmatch(r"\d{1,19}", word) and int(word) < 2**63 for word in words):
        raise InputError("seeds from 0 to 2^63 - 1 such as 1,7,42", repr(text))
    return [int(word) for word in words]


def legs_of(stations: Sequence[Station], loop: bool) -> int:
    """Ways from one station to the next; a loop has one more, from the last back to the first."""
    return len(stations) if loop else len(stations) - 1


def places_for(stations: Sequence[Station], frames: int, loop: bool = False) -> list[float]:
    """Places of the frames, from station to station in equal parts; every station is a frame of its own.

    Legs differ by one frame where the frames do not divide evenly. A loop stops one frame short of its start, which follows
    when it is shown again. Raises InputError for fewer frames than stations.
    """
    legs, steps = legs_of(stations, loop), frames if loop else frames - 1
    if frames < len(stations):
        raise InputError(f"a frame or more for each of {len(stations)} stations", str(frames))
    stops = [leg * steps // legs for leg in range(legs + 1)]
    return [float(place) for place in np.interp(range(frames), stops, range(legs + 1))]


def requests_along(
    stations: Sequence[Station],
    places: Sequence[float],
    way: Literal["linear", "spherical"] = "linear",
    negative: str = "",
    size: tuple[int, int] | None = None,
    knobs: dict[str, Any] | None = None,
) -> list[Request]:
    """One request per place; ids are "0", "1", ... in that order. At a station it is that of an ordinary picture.

    way: how text vectors are mixed, see `Toward`.
    """
    requests = []
    for i, place in enumerate(places):
        leg, share = int(place), place % 1
        here, there = (stations[k % len(stations)] for k in (leg, leg + 1))
        toward = Toward(prompt=there.prompt, share=share, way=way) if share and there.prompt != here.prompt else None
        variation = Variation(seed=there.seed, strength=share) if share and there.seed != here.seed else None
        requests.append(
            Request(
                prompt=here.prompt,
                negative=negative,
                seed=here.seed,
                size=size,
                knobs=knobs or {},
                id=str(i),
                toward=toward,
                variation=variation,
            )
        )
    return requests


def able(
    painter: Painter, requests: Sequence[Request], previews: bool = False, trace: bool = False
) -> Generator[Event, None, None]:
    """Paint. A request that asks for more than the painter follows fails, and is not painted as if it asked for less."""
    can: frozenset[str] = getattr(painter, "can", frozenset())
    for request in requests:
        if not request.asks <= can:
            lacking = " and ".join(sorted(request.asks - can))
            error = InputError(f"a family that follows {lacking!r} of a request", f"{painter.family}, which does not")
            yield Failed(request.id, str(error))
    yield from painter.paint([request for request in requests if request.asks <= can], previews, trace)


# ---------------------------------------------------------------------------------------------------------------------
# Smoothness


class Smoothness(Frozen):
    """How evenly a walk's pictures change: root mean square distances of pixels in 0..1, and what they were measured under."""

    frames: int
    mean_step: float = Field(description="between neighbouring frames, the step that closes a loop included")
    max_step: float
    unevenness: float | None = Field(description="largest step over mean step: 1 is perfectly even; None: nothing changes")
    path: float = Field(description="all steps together")
    ends: float = Field(description="first frame to last, or for a loop the first to the one farthest from it")
    detour: float | None = Field(description="path over ends (for a loop over twice that): 1 is straight; None: ends are equal")
    conditions: dict[str, Any]


def distance(one: Picture, other: Picture) -> float:
    """Root mean square difference of pixels in 0..1."""
    return float(np.sqrt(np.mean(((one.pixels.astype(np.float64) - other.pixels) / 255) ** 2)))


def steps_of(pictures: Sequence[Picture], loop: bool) -> list[float]:
    """Distances between neighbours; in a loop also from the last to the first."""
    return [distance(a, b) for a, b in itertools.pairwise([*pictures, pictures[0]] if loop else pictures)]


def smoothness(pictures: Sequence[Picture], loop: bool, **conditions: Any) -> Smoothness:
    """Measure a walk. conditions: kept beside the numbers, with what the pictures themselves tell."""
    steps = steps_of(pictures, loop)
    mean, path = float(np.mean(steps)), float(np.sum(steps))
    ends = max(distance(pictures[0], p) for p in pictures) if loop else distance(pictures[0], pictures[-1])
    told = pictures[0].provenance
    named = {"model", "fingerprint", "knobs", "device", "precision", "backend", "batch", "versions"}
    return Smoothness(
        frames=len(pictures),
        mean_step=mean,
        max_step=max(steps),
        unevenness=max(steps) / mean if mean else None,
        path=path,
        ends=ends,
        detour=path / (2 * ends if loop else ends) if ends else None,
        conditions={"size": pictures[0].size, "loop": loop, **(told.model_dump(include=named) if told else {}), **conditions},
    )


def respaced(seen: Mapping[float, Picture], frames: int, loop: bool, legs: int) -> list[float]:
    """Places of so many frames at equal lengths of the path, as far as the pictures painted so far show it.

    seen: pictures by place, the first station's (place 0) among them, and in an open walk the last one's. Between two of them
    the path is taken as straight: with what is painted at the new places, asking again comes closer. The ends stay; stations
    in between are passed, not painted themselves.
    """
    places = sorted(seen)
    travelled = np.cumsum([0.0, *steps_of([seen[place] for place in places], loop)])
    even = np.linspace(0, travelled[-1], frames + loop)[1:frames]
    moved = np.interp(even, travelled, [*places, float(legs)] if loop else places)
    return [places[0], *(float(place) for place in moved)]  # the start stays even where the first steps change nothing


# ---------------------------------------------------------------------------------------------------------------------
# Showing


def walk_sheet(pictures: Sequence[Picture], stations: Sequence[Station], places: Sequence[float]) -> Picture:
    """All frames in reading order, each above its place on the walk; the title names the stations at the whole numbers."""
    title = ", ".join(f"{i}: {s.prompt or '(no words)'} · {s.seed}" for i, s in enumerate(stations))
    return Picture(grid([p.pixels for p in pictures], labels=[f"{place:.3f}" for place in places], title=title, scale=None))


def film(pictures: Sequence[Picture]) -> list[np.ndarray]:
    """Frames for a GIF, uint8 (H, W, 3): small ones enlarged, in at most 256 colours that all of them share.

    With a palette of its own for every frame, colours that stand still would flicker.
    """
    strip = np.concatenate([grid([p.pixels], gap=0, scale=None) for p in pictures])
    return np.split(np.array(Image.fromarray(strip).quantize(256).convert("RGB")), len(pictures))
