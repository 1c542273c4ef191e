"""Words become pictures: the story behind `giverny paint`, for any painter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..base.contracts import BatchRow, Done, Event, Failed, Painter, Picture, Request
from ..base.errors import InputError
from ..base.sheet import grid
from ..sampling.webui import batch_seeds


def requests_for(
    prompts: Sequence[str],
    count: int = 1,  # pictures per prompt
    seed: int = 0,  # of the first picture of each prompt; for the others see `several`
    negative: str = "",
    size: tuple[int, int] | None = None,
    knobs: dict[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,  # optional ones of every request, by name
) -> list[Request]:
    """One request per picture, prompt by prompt; ids are "0", "1", ... in that order."""
    told = {"negative": negative, "seed": seed, "size": size, "knobs": knobs or {}, **(parts or {})}
    made = [one for prompt in prompts for one in several(Request(prompt=prompt, **told), count)]
    return [one.model_copy(update={"id": str(i)}) for i, one in enumerate(made)]


def several(asked: Request, count: int) -> list[Request]:
    """`count` pictures of one request, numbered as the program does whose seeds it has (knob `seeding`).

    Picture k has seed + k. Of AUTOMATIC1111 those with a variation have all one seed, and variation seed + k; of ComfyUI all
    are rows of one draw. One picture is the request itself.
    """
    if count < 1:
        raise InputError("at least one picture per prompt", str(count))
    program, variation = asked.knobs.get("seeding"), asked.variation
    parts: list[dict[str, Any]]
    if program == "comfyui" and count > 1:
        together = max(count, asked.batch.of if asked.batch else 1)
        parts = [{"batch": BatchRow(row=k, of=together)} for k in range(count)]
    elif program == "a1111" and variation is not None:
        seeds = batch_seeds(asked.seed, count, variation.seed, variation.strength)
        others = (variation.model_copy(update={"seed": one.variation % 2**63}) for one in seeds)
        parts = [{"seed": one.seed % 2**63, "variation": other} for one, other in zip(seeds, others, strict=True)]
    else:
        parts = [{"seed": (asked.seed + k) % 2**63} for k in range(count)]
    return [asked.model_copy(update=part) for part in parts]


def paint(
    painter: Painter,
    *prompts: str,
    n: int = 1,
    seed: int = 0,
    negative: str = "",
    size: tuple[int, int] | None = None,
    **knobs: Any,
) -> list[Picture]:
    """Paint and wait: n pictures of each prompt, in order. Raises InputError where a request cannot be painted.

    >>> pictures = paint(open_painter(), "a red dress", "a black t-shirt", n=4, guidance=2.0)
    """
    wanted = requests_for(prompts, n, seed, negative, size, knobs)
    return list(collect(painter.paint(wanted), wanted))


def collect(events: Iterator[Event], requests: Sequence[Request]) -> list[Picture]:
    """The pictures of a stream of events, in the order of their requests."""
    done: dict[str, Picture] = {}
    for event in events:
        if isinstance(event, Failed):
            raise InputError("a request that can be painted", f"one that cannot: {event.reason}")
        if isinstance(event, Done):
            done[event.id] = event.artifact
    return [done[r.id] for r in requests]


def contact_sheet(pictures: Sequence[Picture], columns: int | None = None) -> Picture:
    """Pictures side by side, each under its prompt and seed."""
    labels = [
        f"{p.provenance.request.prompt or '(no words)'} · {p.provenance.request.seed}" if p.provenance else "" for p in pictures
    ]
    return Picture(grid([p.pixels for p in pictures], columns=columns, labels=labels, scale=None))


def evolution(pictures: Sequence[Picture], most: int = 10) -> Picture:
    """One row per traced picture: from noise on the left to the picture on the right, at most `most` moments each."""
    rows = []
    for picture in pictures:
        steps = picture.trace
        chosen = sorted({round(i * (len(steps) - 1) / max(1, most - 1)) for i in range(most)}) if steps else []
        rows.append([steps[i] for i in chosen])
    if not rows or not all(rows):
        raise InputError("pictures painted with their trace", "pictures without one", "Use --trace.")
    prompts = [p.provenance.request.prompt if p.provenance else "" for p in pictures]
    return Picture(grid([cell for row in rows for cell in row], columns=len(rows[0]), row_labels=prompts, scale=None))
