"""What --from and the flags about it mean: a picture to start from, its mask, a larger canvas. For `giverny paint`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from .voice import Voice

FILLS = ("original", "fill", "latent-noise", "latent-nothing", "noise")  # base.start.Fill, which is heavy to import
SIDES = ("left", "top", "right", "bottom")


def begun_from(
    origin: Path | None,
    over: dict[str, Any],
    begun: dict[str, Any],
    painter: Any,
    requests: list[Any],
    size: tuple[int, int] | None,
    voice: Voice,
    before: Any = None,
) -> list[Any]:
    """The requests, begun with a picture where one is named.

    over: what was said of it, by the names of the flags; begun: how another picture began; size: what --size says; before: the
    Start of that other picture, where it is one of ours.
    """
    from ..base.errors import InputError
    from ..pipelines.image2image import PADDING, extended, only_masked, others_than, start_from

    if origin is None:
        if over:
            flags = ", ".join("--" + name.replace("_", "-") for name in over)
            raise click.UsageError(f"{flags}: wants a picture with --from.")
        return requests
    told = {**begun, **({"mask": "alpha"} if before is not None and before.mask == "alpha" else {})}
    told |= {name.removeprefix("mask_"): value for name, value in over.items()}
    around, padding = told.pop("only_masked", False), told.pop("padding", PADDING)
    margins, overlap = told.pop("extend", None), told.pop("overlap", None)
    if told.get("mask", "alpha") != "alpha":
        told["mask"] = Path(told["mask"])
    start = start_from(origin, **told)
    others = others_than(start, before) if before is not None else []
    for other in others:
        voice.say(f"note: {other}")
    around = around and ("only_masked" in over or start.masked)  # a mask of a picture like this one is to be given again
    if margins is not None:
        if size and not around:
            raise InputError(
                "a size that follows from the picture and --extend", f"--size {size[0]}x{size[1]}", "Leave it out."
            )
        start, canvas = extended(start, margins, 1 if around else getattr(painter, "step", 1), overlap)
        say_canvas(canvas, margins, start.extend, voice)
        if not around:
            requests = [request.model_copy(update={"size": canvas}) for request in requests]
    elif overlap is not None:
        raise click.UsageError("--overlap: wants --extend.")
    if around and before is not None and before.box is not None and not others and not over.keys() & {"padding", "extend"}:
        start = start.model_copy(update={"box": before.box})
    elif around:
        start = only_masked(start, requests[0].size or painter.size, padding)
    return [request.model_copy(update={"start": start}) for request in requests]


def say_canvas(canvas: tuple[int, int], asked: Any, became: Any, voice: Voice) -> None:
    """How large an extended canvas is, and which sides had to grow more than was asked for."""
    voice.event("canvas", size=canvas, extend=dict(zip(SIDES, became, strict=True)))
    more = [f"{side} {now} for {was}" for side, was, now in zip(SIDES, asked, became, strict=True) if was != now]
    because = f"; the model's sizes made it {', '.join(more)}" if more else ""
    voice.say(f"canvas of {canvas[0]} x {canvas[1]}{because}")


def parse_margins(text: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of "left=64,right=32"; "all=32" is every side."""
    from ..base.errors import InputError, choose

    sides = dict.fromkeys(SIDES, 0)
    for part in filter(None, text.replace(" ", "").split(",")):
        side, _, pixels = part.partition("=")
        if not re.fullmatch(r"\d{1,5}", pixels, re.ASCII):
            raise InputError("sides and pixels such as left=64,right=32", repr(text))
        if choose(side, (*SIDES, "all"), "side to extend") == "all":
            sides = dict.fromkeys(SIDES, int(pixels))
        else:
            sides[side] = int(pixels)
    return sides["left"], sides["top"], sides["right"], sides["bottom"]
