"""How a picture began that began with another one, as its file says it: for `like`. The other picture itself no file names.

Keys and words are those of AUTOMATIC1111's infotext; what they become are arguments of `image2image.start_from`, and
only_masked, padding, extend and overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from ..base.contracts import Start
from ..base.start import Fill


def _within(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # nor is what is no number
            raise ValueError(f"it is not within {low:g} and {high:g}")
        return value

    return read


def _fill(text: str) -> str:
    name = text.lower().replace(" ", "-")
    if name not in get_args(Fill):
        raise ValueError("there is no such fill")
    return name


BEGUN: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Denoising strength": ("strength", _within(0, 1)),
    "Mask blur": ("blur", _within(0, 256)),
    "Masked content": ("fill", _fill),
    "Mask mode": ("invert", lambda text: text == "Inpaint not masked"),
    "Inpaint area": ("only_masked", lambda text: text == "Only masked"),
    "Masked area padding": ("padding", lambda text: int(_within(0, 8192)(text))),
}


def begun(said: Mapping[str, str], dialect: str) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """(arguments, {setting: what it became}, {setting: why it could not be taken})"""
    start: dict[str, Any] = {"program": "webui"} if dialect == "a1111" else {}
    became, wrong = {}, {}
    for key, (name, read) in BEGUN.items():
        try:
            if key in said:
                start[name] = read(said[key])
                became[key] = f"{name.replace('_', ' ')} = {start[name]}"
        except ValueError as error:
            wrong[key] = str(error)
    return start, became, wrong


def begun_as(start: Start) -> dict[str, Any]:
    """The arguments that a start was made with, but for its files."""
    told = {name: getattr(start, name) for name in ("strength", "fill", "fit", "program")}
    if start.masked:
        told |= {"blur": start.blur, "invert": start.invert, "only_masked": start.box is not None}
    return told if start.extend is None else {**told, "extend": start.extend, "overlap": start.overlap}
