"""Which sampler and which level spacing a picture's settings mean, by the version of the program that wrote them.

Up to A1111's 1.8 one name carries both, and without a schedule in it the spacing is even; from 1.9 on "Schedule type" says it,
and "Automatic" is what that program takes for the sampler (modules/sd_samplers_kdiffusion.py). Samplers of timesteps have a
spacing of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..base.infotext import folded, split_sampler
from ..sampling.samplers import sampler_name

_AUTOMATIC = {
    **dict.fromkeys(("dpmpp2m", "dpmppsde", "dpmpp2sa", "dpm2", "dpm2a", "restart"), ("karras",)),
    **dict.fromkeys(("dpmpp2msde", "dpmpp2msdeheun", "dpmpp3msde"), ("exponential",)),
}
_OWN = {"ddim": ("timesteps", "ddim"), "plms": ("timesteps", "ddim"), "unipc": ("time_uniform",), "lcm": ("lcm_webui",)}
_SKIP_TYPES = {"time_uniform": "time_uniform", "time_quadratic": "time_quadratic", "logsnr": "log_snr"}  # of UniPC
_SPACINGS = {"uniform": ("normal",), "normal": ("normal",), "ddim": ("ddim",)}


class Meant(NamedTuple):
    """sampler: by its name here. spacings: which the setting `key` means, the first that a painter has."""

    sampler: str
    spacings: tuple[str, ...]
    key: str


def sampler_meant(said: Mapping[str, str]) -> Meant:
    """What settings with a "Sampler" mean. Raises InputError where there is no such sampler here."""
    label, schedule = split_sampler(said["Sampler"])
    plain = sampler_name(label)
    if plain == "unipc" and said.get("UniPC variant") == "bh2":
        plain = "unipc_bh2"
    told = said.get("Schedule type") or schedule
    wanted = told or ("Automatic" if version(said.get("Version", "")) >= (1, 9) else "Uniform")
    key = "Schedule type" if "Schedule type" in said else "Sampler"
    if folded(label) in _OWN and folded(told or "Automatic") == "automatic":
        skip = said.get("UniPC skip type")
        return Meant(plain, (_SKIP_TYPES.get(skip.lower(), skip),) if skip else _OWN[folded(label)], key)
    if folded(wanted) == "automatic":
        return Meant(plain, _AUTOMATIC.get(folded(label), ("normal",)), key)
    return Meant(plain, _SPACINGS.get(folded(wanted), (wanted.lower().replace(" ", "_"),)), key)


def version(text: str) -> tuple[int, ...]:
    """(1, 9, 3) of "v1.9.3", of Forge's "f2.0.1v1.10.1" A1111's part; (0,) where none is said or it is another program's."""
    found = re.search(r"(?:^|v)(\d{1,6}(?:\.\d{1,6})+)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else (0,)
