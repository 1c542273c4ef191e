"""Infotext: the few lines in which Stable Diffusion web interfaces write down how a picture was made.

    a red dress
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x512, Model: name, Version: v1.10.1

Form, order of the keys, quoting, and the names of samplers and schedules are those of AUTOMATIC1111's program (its files
processing.py and infotext_utils.py, versions 1.8 to 1.10). Reading, which must forgive much, is `checkpoints/infotext.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from .knobs import Frozen

if TYPE_CHECKING:
    from .picture import Provenance

Dialect = Literal["giverny", "a1111", "comfyui", "invokeai", "novelai", "fooocus"]
NEGATIVE = "Negative prompt:"

# In the order they are written; keys that are not here come between TI hashes and Version.
KEYS = (
    "Steps", "Sampler", "Schedule type", "CFG scale", "Image CFG scale", "Seed", "Face restoration", "Size", "Model hash",
    "Model", "FP8 weight", "VAE hash", "VAE", "Variation seed", "Variation seed strength", "Seed resize from",
    "Denoising strength", "Conditional mask weight", "Clip skip", "ENSD", "Token merging ratio", "Token merging ratio hr",
    "Init image hash", "RNG", "NGMS", "Tiling", "Hires upscale", "Hires steps", "Hires upscaler", "Hires resize",
    "Hires checkpoint", "Hires sampler", "Hires schedule type", "Hires prompt", "Hires negative prompt", "First pass size",
    "Mask blur", "Masked content", "Inpaint area", "Masked area padding", "Mask mode", "Emphasis", "Eta", "Eta DDIM",
    "Sigma churn", "Sigma tmin", "Sigma tmax", "Sigma noise", "Schedule max sigma", "Schedule min sigma", "Schedule rho",
    "Discard penultimate sigma", "Pad conds", "Pad conds v0", "Noise Schedule", "Refiner", "Refiner switch at",
    "UniPC variant", "UniPC skip type", "UniPC order", "UniPC lower order final", "Lora hashes", "TI hashes",
    "Version", "User",
)  # fmt: skip

SAMPLER_LABELS = {  # {name here: as that program writes it}; the last two are ours
    "dpmpp_2m": "DPM++ 2M", "dpmpp_sde": "DPM++ SDE", "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_2s_a": "DPM++ 2S a", "dpmpp_3m_sde": "DPM++ 3M SDE", "euler_a": "Euler a", "euler": "Euler", "lms": "LMS",
    "heun": "Heun", "dpm2": "DPM2", "dpm2_a": "DPM2 a", "dpm_fast": "DPM fast", "dpm_adaptive": "DPM adaptive",
    "restart": "Restart", "ddim": "DDIM", "ddim_cfgpp": "DDIM CFG++", "plms": "PLMS", "unipc": "UniPC", "lcm": "LCM",
    "unipc_bh2": "UniPC bh2", "ddpm": "DDPM",
}  # fmt: skip
SCHEDULE_LABELS = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps",
    "Simple", "Normal", "DDIM", "Beta", "Trailing", "Leading",
)  # fmt: skip
# Spacings of ours whose label is not their name; "Automatic" is what A1111 says where a sampler has but one.
_OTHER_SPELLINGS = {"normal": "Uniform", "timesteps": "Automatic", "time_uniform": "Automatic", "lcm_webui": "Automatic"}


# Settings that are one knob, and the value at which that program leaves them out. The last two are ours.
_PLAIN: tuple[tuple[str, str, Any], ...] = (
    ("Sigma churn", "s_churn", 0), ("Sigma tmin", "s_tmin", 0), ("Sigma tmax", "s_tmax", 0), ("Sigma noise", "s_noise", 1),
    ("Schedule max sigma", "sigma_max", 0), ("Schedule min sigma", "sigma_min", 0), ("Schedule rho", "rho", 0),
    ("Discard penultimate sigma", "discard_penultimate", False),
    ("UniPC lower order final", "lower_order_final", True), ("Old prompt editing timelines", "old_timelines", False),
    ("Comma backtrack", "comma_backtrack", 20), ("Latent consistency", "latent_consistency", False),
)  # fmt: skip


class Note(Frozen):
    """Something about one setting that a person should know."""

    key: str  # the setting; "" where it is about the whole
    problem: str
    suggestion: str = ""  # the nearest plausible reading, or what to do; never acted on

    def __str__(self) -> str:
        return (f"{self.key}: " if self.key else "") + self.problem + (f" ({self.suggestion})" if self.suggestion else "")


class Parameters(Frozen):
    """How a picture says it was made, in A1111's keys whichever program wrote it."""

    prompt: str = ""
    negative: str = ""
    settings: dict[str, str] = Field(default_factory=dict, description="values as they stand there, in their order")
    dialect: Dialect = "a1111"
    notes: tuple[Note, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height, where they are said."""
        return read_size(self.settings.get("Size", ""))


def read_size(text: str) -> tuple[int, int] | None:
    """(512, 768) of "512x768", however it is spaced; None of anything else."""
    found = re.fullmatch(r"\s*(\d{1,6})\s*[x×X*]\s*(\d{1,6})\s*", text)
    return (int(found[1]), int(found[2])) if found else None


def write_infotext(parameters: Parameters) -> str:
    """The text of parameters: prompt, negative prompt where there is one, settings in the order they are in."""
    negative = [f"{NEGATIVE} {parameters.negative}"] if parameters.negative else []
    pairs = [key if key == value else f"{key}: {_quoted(value)}" for key, value in parameters.settings.items()]
    return "\n".join([parameters.prompt, *negative, ", ".join(pairs)])


def _quoted(value: str) -> str:
    """JSON where a comma, colon or line break would end the value (A1111's rule), or where it would be read as something
    else: blanks around it, quotes or brackets in front, nothing at all."""
    ends = any(mark in value for mark in ",:\n") or value != value.strip() or value[:1] in ("", '"', "{", "[")
    return json.dumps(value, ensure_ascii=False) if ends else value


def infotext(provenance: Provenance, size: tuple[int, int] | None = None) -> str:
    """What a Stable Diffusion web interface reads back: prompt, negative prompt, and a line of settings.

    size: (width, height) of the picture where the request left it to the model. A setting the painter has no knob for
    is left out.
    """
    return write_infotext(parameters_of(provenance, size))


def parameters_of(provenance: Provenance, size: tuple[int, int] | None = None) -> Parameters:
    """Where a picture of ours came from, in A1111's keys. size: as for `infotext`."""
    request, knobs = provenance.request, provenance.knobs
    shape, toward, variation = request.size or size, request.toward, request.variation
    source, _, tree = provenance.noise.partition("+")
    sampler, spacing, clip_skip = knobs.get("sampler"), knobs.get("spacing"), knobs.get("clip_skip")
    plain, own = split_sampler(sampler or "")
    plain, variant = ("UniPC", "bh2") if folded(plain) == "unipcbh2" else (plain, None)
    told: dict[str, Any] = {
        "Steps": knobs.get("steps"),
        "Sampler": sampler and sampler_label(plain),
        "Schedule type": own or (spacing and schedule_label(spacing)),  # a sampler's name may say it, and then goes before
        "CFG scale": knobs.get("guidance"),
        "Seed": request.seed,
        "Size": f"{shape[0]}x{shape[1]}" if shape else None,
        "Model hash": provenance.fingerprint[:10] or None,
        "Model": provenance.model,
        "Variation seed": variation and variation.seed,
        "Variation seed strength": variation and variation.strength,
        "Clip skip": clip_skip if clip_skip and clip_skip > 1 else None,
        "Seed resize from": knobs.get("seed_resize_from") or None,
        "ENSD": knobs.get("ensd") or None,
        **_seeds(provenance),
        "RNG": {"cpu": "CPU", "nv": "NV"}.get(source),
        "Brownian tree": tree or None,
        "Eta": knobs.get("eta_ancestral") if knobs.get("eta_ancestral", 1) != 1 else None,
        "Eta DDIM": (knobs.get("eta") or None) if sampler and folded(sampler) == "ddim" else None,
        "UniPC variant": variant,
        "UniPC order" if folded(plain) == "unipc" else "Order": knobs.get("order") or None,
        "Toward": toward and toward.prompt,
        "Toward share": toward and toward.share,
        "Styles": ", ".join(request.styles) if request.styles else None,
        "Version": f"giverny {provenance.versions.get('giverny', '')}".strip(),
        **{key: value for key, knob, usual in _PLAIN if (value := knobs.get(knob, usual)) != usual},
        **_start(provenance),
        **_second_pass(knobs),
        **provenance.further,
    }
    place = {key: i for i, key in enumerate(KEYS)}
    known = sorted((key for key in told if told[key] is not None), key=lambda key: place.get(key, place["Version"] - 0.5))
    return Parameters(
        prompt=request.prompt,
        negative=request.negative,
        settings={key: _said(told[key]) for key in known},
        dialect="giverny",
    )


def _seeds(provenance: Provenance) -> dict[str, Any]:
    """Which program's seeds these are, in keys of ours; and the row of a batch."""
    own, batch = provenance.knobs.get("seeding", "giverny"), provenance.request.batch
    return {
        "Seeds": own if own != "giverny" else None,
        "Batch size": batch and batch.of,
        "Batch pos": batch and batch.row,
    }


def _second_pass(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The second pass in the words of what web interfaces call hires fix; empty where there was none."""
    if (knobs.get("upscale") or 1) == 1:
        return {}
    how = {"latents": "Latent (antialiased)", "pixels": "Bicubic"}
    return {
        "Denoising strength": knobs.get("upscale_strength"),
        "Hires upscale": knobs["upscale"],
        "Hires steps": knobs.get("upscale_steps") or None,
        "Hires upscaler": how.get(knobs.get("upscale_in", "")),
    }


def _start(provenance: Provenance) -> dict[str, Any]:
    """What the picture started from, in the words for image-to-image and inpainting; empty where it was noise alone."""
    start = provenance.request.start
    if start is None:
        return {}
    content = {"noise": "latent noise"}.get(start.fill, start.fill.replace("-", " "))
    return {
        "Denoising strength": start.strength,
        "Mask blur": start.blur or None,
        "Masked content": content if start.masked else None,
        "Mask mode": "Inpaint not masked" if start.mask is not None and start.invert else None,
        "Inpaint area": "Only masked" if start.box is not None else None,
        "Extended by": " ".join(map(str, start.extend)) if start.extend is not None else None,
    }


def _said(value: Any) -> str:
    """7.0 is written 7, as a person would."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Names of samplers and schedules


def folded(name: str) -> str:
    """A name without its spelling: "DPM++ 2S a", "dpmpp_2s_ancestral" and "k_dpmpp_2s_a" all come to "dpmpp2sa"."""
    plain = name.lower().replace("++", "pp").replace("ancestral", "a").removeprefix("k_").removesuffix("_gpu")
    return "".join(c for c in plain if c.isalnum())


_SAMPLERS = {folded(label): label for label in SAMPLER_LABELS.values()}
_SCHEDULES = {folded(label): label for label in SCHEDULE_LABELS}


def sampler_label(name: str) -> str:
    """A1111's name of a sampler, in whatever usual spelling; an unknown one stays as it is."""
    return _SAMPLERS.get(folded(name), name)


def schedule_label(spacing: str) -> str:
    """A1111's name of one of our spacings; one it does not have keeps its own name, with a capital."""
    if spacing in _OTHER_SPELLINGS:
        return _OTHER_SPELLINGS[spacing]
    return _SCHEDULES.get(folded(spacing), spacing.replace("_", " ").capitalize())


def split_sampler(name: str) -> tuple[str, str | None]:
    """(sampler, schedule) of a name that may carry both, as up to version 1.8: "DPM++ 2M Karras". Labels where known.

    The schedule is None where the name carries none.
    """
    if folded(name) in _SAMPLERS:
        return _SAMPLERS[folded(name)], None
    for schedule in sorted(SCHEDULE_LABELS, key=len, reverse=True):
        sampler = name[: -len(schedule)].strip(" _")
        if name.lower().replace("_", " ").endswith(schedule.lower()) and folded(sampler) in _SAMPLERS:
            return _SAMPLERS[folded(sampler)], schedule
    return name.strip(), None


def known_sampler(name: str) -> bool:
    """Whether A1111 (or this program) has a sampler of that name, with or without a schedule."""
    return folded(split_sampler(name)[0]) in _SAMPLERS
