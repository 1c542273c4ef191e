"""Which setting of AUTOMATIC1111's infotext is which knob, and how its words are read: for `like`.

A reader raises ValueError or KeyError for words that are none of its setting's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..base.infotext import read_size


def whole(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,20}", text, re.ASCII):
        raise ValueError("it is no whole number")
    return int(text)


def number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("it is no number")
    return value


def _size(text: str) -> str:
    """ "512x768" however it is spaced; "" of "-1x-1" and "0x0", which is how none was written."""
    size = read_size(text.replace("-1", "0"))
    if size is None:
        raise ValueError("it is no size")
    return f"{size[0]}x{size[1]}" if all(size) else ""


def _yes(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _enlarged_in(text: str) -> str:
    return "latents" if text.lower().startswith("latent") else "pixels"


def _source(text: str) -> str:
    return {"cpu": "cpu", "nv": "nv", "gpu": "nv"}[text.lower()]


class Rule(NamedTuple):
    """A setting and the knob it is."""

    knob: str
    read: Callable[[str], Any]


FOLLOWED: Mapping[str, Rule] = {
    "Steps": Rule("steps", whole),
    "CFG scale": Rule("guidance", number),
    "Denoising strength": Rule("strength", number),  # of a picture painted over; with a second pass see `_second_pass`
    "Clip skip": Rule("clip_skip", whole),
    "ENSD": Rule("ensd", whole),
    "Seed resize from": Rule("seed_resize_from", _size),
    "Seeds": Rule("seeding", str.lower),  # ours
    "RNG": Rule("noise", _source),
    "NGMS": Rule("s_min_uncond", number),
    "Tiling": Rule("tiling", lambda text: text == "True"),
    "Hires upscale": Rule("upscale", number),
    "Hires steps": Rule("upscale_steps", whole),
    "Hires upscaler": Rule("upscale_in", _enlarged_in),
    "Emphasis": Rule("emphasis", lambda text: text.lower().replace(" ", "-")),
    "Eta": Rule("eta_ancestral", number),
    "Eta DDIM": Rule("eta", number),
    "Sigma churn": Rule("s_churn", number),
    "Sigma tmin": Rule("s_tmin", number),
    "Sigma tmax": Rule("s_tmax", number),
    "Sigma noise": Rule("s_noise", number),
    "Schedule rho": Rule("rho", number),
    "Schedule min sigma": Rule("sigma_min", number),
    "Schedule max sigma": Rule("sigma_max", number),
    "Discard penultimate sigma": Rule("discard_penultimate", _yes),
    "UniPC order": Rule("order", whole),
    "Order": Rule("order", whole),  # ours, of LMS
    "UniPC lower order final": Rule("lower_order_final", _yes),
    "Old prompt editing timelines": Rule("old_timelines", _yes),
    "Comma backtrack": Rule("comma_backtrack", whole),  # ours
    "Latent consistency": Rule("latent_consistency", _yes),  # ours
    "VAE": Rule("vae", str),
}
# Not for a painter: what was painted with, said for the record, or read elsewhere in this file.
APART = frozenset({
    "Sampler", "Schedule type", "Seed", "Size", "Model", "Model hash", "VAE hash", "Version", "User", "App", "Variation seed",
    "Variation seed strength", "Hires resize", "First pass size", "Toward", "Toward share", "Hashes", "Batch size", "Batch pos",
    "UniPC variant", "UniPC skip type",
})  # fmt: skip
