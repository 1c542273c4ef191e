"""Names of samplers and level spacings, in every spelling people type. Free of torch, for the command line.

Labels and facts are those of AUTOMATIC1111's web interface (modules/sd_samplers_kdiffusion.py, sd_samplers_timesteps.py and
sd_schedulers.py of 1.8 to 1.10); aliases are its old combined names and their short forms ("DPM++ 2M Karras", "k_dpmpp_2m_ka"),
ComfyUI's ("dpmpp_2s_ancestral", "uni_pc_bh2"), InvokeAI's ("dpmpp_2m_k") and diffusers' classes ("PNDMScheduler").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, NamedTuple, get_args

from ..base.errors import InputError, nearest
from ..base.infotext import SAMPLER_LABELS

Spacing = Literal[
    "normal",
    "karras",
    "exponential",
    "polyexponential",
    "sgm_uniform",
    "simple",
    "ddim",
    "trailing",
    "leading",
    "beta",
    "beta_times",
    "align_your_steps",
    "align_your_steps_sdxl",
    "kl_optimal",
    "kl_optimal_clean",
    "timesteps",
    "time_uniform",
    "time_quadratic",
    "log_snr",
    "lcm",
    "lcm_webui",
]
SPACINGS: tuple[str, ...] = get_args(Spacing)
AUTOMATIC = "automatic"  # the spacing that a sampler is usually combined with
# Spacings that stop at a noisy level, where the timestep samplers of CompVis and AUTOMATIC1111 stop. All but kl_optimal also
# begin, there, with noise of unit size instead of sigma times it: `PictureNoise.initial(level, full=True)`.
UNIT_START: frozenset[str] = frozenset({"timesteps", "time_uniform", "time_quadratic", "log_snr"})
NOT_CLEAN: frozenset[str] = UNIT_START | {"kl_optimal"}


@dataclass(frozen=True)
class SamplerFacts:
    """What a sampler is."""

    name: str
    calls: int = 1  # estimates asked for in one step; the last step may ask once less, PLMS's first asks once more
    draws: Literal["none", "fresh", "tree"] = "none"  # noise with default options: a new draw each time, or a Brownian tree's
    usual: Spacing = "normal"  # the spacing it is usually combined with: "Automatic" since 1.9
    pace: Literal["levels", "fixed", "adaptive"] = "levels"  # its steps: a run's levels, its own, or its own and unforeseen
    discard: bool = False  # whether the original programs leave out the last level but one
    options: tuple[str, ...] = ()  # keywords its function takes
    aliases: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """As AUTOMATIC1111 writes it."""
        return SAMPLER_LABELS[self.name]


_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
_FRESH = ("eta", "s_noise")
_UNIPC = ("order", "lower_order_final")
FACTS: Mapping[str, SamplerFacts] = {
    facts.name: facts
    for facts in (
        SamplerFacts("ddpm", draws="fresh", aliases=("DDPMScheduler",)),
        SamplerFacts("ddim", usual="timesteps", options=("eta",), aliases=("DDIMScheduler",)),
        SamplerFacts("euler", options=_CHURN, aliases=("EulerDiscreteScheduler",)),
        SamplerFacts("euler_a", draws="fresh", options=_FRESH, aliases=("EulerAncestralDiscreteScheduler",)),
        SamplerFacts("heun", calls=2, options=_CHURN, aliases=("HeunDiscreteScheduler",)),
        SamplerFacts("lms", options=("order",), aliases=("LMSDiscreteScheduler",)),
        SamplerFacts("dpm2", calls=2, usual="karras", discard=True, options=_CHURN, aliases=("KDPM2DiscreteScheduler",)),
        SamplerFacts(
            "dpm2_a",
            calls=2,
            draws="fresh",
            usual="karras",
            discard=True,
            options=_FRESH,
            aliases=("KDPM2AncestralDiscreteScheduler",),
        ),
        SamplerFacts("dpmpp_2s_a", calls=2, draws="fresh", usual="karras", options=_FRESH),
        SamplerFacts("dpmpp_2m", usual="karras", aliases=("DPMSolverMultistepScheduler",)),
        SamplerFacts(
            "dpmpp_sde",
            calls=2,
            draws="tree",
            usual="karras",
            options=_FRESH,
            aliases=("dpmpp_sde_gpu", "DPMSolverSDEScheduler"),
        ),
        SamplerFacts(
            "dpmpp_2m_sde",
            draws="tree",
            usual="exponential",
            options=_FRESH,
            aliases=("dpmpp_2m_sde_gpu", "DPM++ 2M SDE midpoint"),
        ),
        SamplerFacts(
            "dpmpp_2m_sde_heun",
            draws="tree",
            usual="exponential",
            options=_FRESH,
            aliases=("dpmpp_2m_sde_heun_gpu",),
        ),
        SamplerFacts(
            "dpmpp_3m_sde",
            draws="tree",
            usual="exponential",
            discard=True,
            options=_FRESH,
            aliases=("dpmpp_3m_sde_gpu",),
        ),
        SamplerFacts("dpm_fast", draws="fresh", pace="fixed", options=_FRESH),
        SamplerFacts("dpm_adaptive", draws="fresh", pace="adaptive", options=_FRESH, aliases=("dpm_ad",)),
        SamplerFacts("restart", calls=2, draws="fresh", usual="karras", options=("s_noise",)),
        SamplerFacts("plms", usual="timesteps", aliases=("pndm", "PNDMScheduler")),
        SamplerFacts("unipc", usual="time_uniform", options=_UNIPC, aliases=("UniPC bh1",)),
        SamplerFacts("unipc_bh2", usual="time_uniform", options=_UNIPC, aliases=("UniPCMultistepScheduler",)),
        SamplerFacts("lcm", draws="fresh", usual="lcm_webui", aliases=("LCMScheduler",)),
    )
}
SAMPLER_NAMES: tuple[str, ...] = tuple(FACTS)

_SPACING_ALIASES: Mapping[str, tuple[str, ...]] = {
    AUTOMATIC: (),
    "normal": ("uniform", "linspace"),
    "karras": ("ka",),
    "exponential": ("exp",),
    "ddim": ("ddim uniform",),
    "align_your_steps": ("ays", "ays sd15"),
    "align_your_steps_sdxl": ("ays sdxl",),
    "beta_times": ("beta comfy",),
    "kl_optimal_clean": ("kl optimal comfy",),
}


def _fold(text: str) -> str:
    """What is left of a name when case, signs and the ways to write "++", "ancestral" and "solver" do not count."""
    plain = text.lower().replace("++", "pp").replace("ancestral", "a").replace("solver", "")
    return "".join(c for c in plain if c.isalnum())


_SAMPLERS: dict[str, str] = {
    _fold(written): facts.name for facts in FACTS.values() for written in (facts.name, facts.label, *facts.aliases)
}
_SPACINGS: dict[str, str] = {
    _fold(written): name for name in (AUTOMATIC, *SPACINGS) for written in (name, *_SPACING_ALIASES.get(name, ()))
}
_SUFFIXES: dict[str, str] = {**_SPACINGS, "k": "karras"}  # InvokeAI's "_k"; alone it means nothing


class Named(NamedTuple):
    """What a typed name stands for."""

    sampler: str  # in FACTS
    spacing: str | None  # in SPACINGS, or "automatic"; None where the name does not say
    discard: bool  # whether the original programs leave out the last level but one for this sampler


def resolve(name: str) -> Named:
    """The sampler, and the level spacing if there is one, that a name such as "DPM++ 2M Karras" or "k_euler_a" means.

    Raises InputError, naming the nearest spelling, where none is.
    """
    folded = _fold(name)
    for known in (folded, folded.removeprefix("k"), folded.removeprefix("sample")):
        if known in _SAMPLERS:
            return _named(_SAMPLERS[known], None)
        for suffix in sorted((s for s in _SUFFIXES if known.endswith(s)), key=len, reverse=True):
            if known.removesuffix(suffix) in _SAMPLERS:
                return _named(_SAMPLERS[known.removesuffix(suffix)], _SUFFIXES[suffix])
    raise InputError("a known sampler", repr(name), _hint(name, _SAMPLERS, SAMPLER_NAMES))


def spacing_name(name: str) -> str:
    """The name in SPACINGS, or "automatic", that is meant: "SGM Uniform" and "AYS" are understood as well.

    Raises InputError, naming the nearest spelling, where none is.
    """
    if _fold(name) not in _SPACINGS:
        raise InputError("a known level spacing", repr(name), _hint(name, _SPACINGS, (AUTOMATIC, *SPACINGS)))
    return _SPACINGS[_fold(name)]


def _named(sampler: str, spacing: str | None) -> Named:
    return Named(sampler, spacing, FACTS[sampler].discard)


def _hint(name: str, known: Mapping[str, str], choices: Iterable[str]) -> str:
    """`nearest`, by the closest of all spellings."""
    close = get_close_matches(_fold(name), known, n=1, cutoff=0.6)
    return nearest(known[close[0]] if close else name, choices)
