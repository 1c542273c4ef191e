"""A picture like another one: what a file says becomes a request, and what cannot be followed is said.

One table, FOLLOWED, tells which setting is which knob. A setting is followed where the painter's Knobs have a knob of that
name that takes the value; every other setting is named in the notes. So a painter that learns a knob follows its setting from
then on.
What the settings of A1111 mean where they are not said (RNG: the GPU's; Schedule type: by version) is that program's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from ..base.contracts import Frozen, Knobs, Provenance, Request, Start, Toward, Variation
from ..base.errors import InputError
from ..base.infotext import Dialect, Note, Parameters, folded, read_size, split_sampler
from ..base.start import Enclosed
from ..sampling.samplers import sampler_name


class Taken(Frozen):
    """What of a picture's settings a painter follows."""

    prompt: str = ""
    negative: str = ""
    seed: int | None = Field(None, description="None where none is said")
    size: tuple[int, int] | None = None
    knobs: dict[str, Any] = Field(default_factory=dict)
    toward: Toward | None = None
    variation: Variation | None = None
    start: Start | None = Field(None, description="how it began, without the files: those are to be given again")
    dialect: Dialect = "a1111"
    became: dict[str, str] = Field(default_factory=dict, description="{setting: what it became here}")
    notes: tuple[Note, ...] = Field((), description="what is not followed, or followed in another way; what was hard to read")

    def request(self, seed: int = 0) -> Request:
        """The request. seed: where the file says none."""
        return Request(
            prompt=self.prompt,
            negative=self.negative,
            seed=seed if self.seed is None else self.seed,
            size=self.size,
            knobs=self.knobs,
            toward=self.toward,
            variation=self.variation,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Which setting is which knob


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,20}", text, re.ASCII):
        raise ValueError("it is no whole number")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("it is no number")
    return value


def _enlarged_in(text: str) -> str:
    return "latents" if text.lower().startswith("latent") else "pixels"


def _source(text: str) -> str:
    return {"cpu": "cpu", "nv": "nv", "gpu": "nv"}[text.lower()]


class Rule(NamedTuple):
    """A setting and the knob it is."""

    knob: str
    read: Callable[[str], Any]


FOLLOWED: Mapping[str, Rule] = {
    "Steps": Rule("steps", _whole),
    "CFG scale": Rule("guidance", _number),
    "Denoising strength": Rule("strength", _number),  # of a picture painted over; with a second pass see `_second_pass`
    "Clip skip": Rule("clip_skip", _whole),
    "ENSD": Rule("ensd", _whole),
    "RNG": Rule("noise", _source),
    "NGMS": Rule("s_min_uncond", _number),
    "Tiling": Rule("tiling", lambda text: text == "True"),
    "Hires upscale": Rule("upscale", _number),
    "Hires steps": Rule("upscale_steps", _whole),
    "Hires upscaler": Rule("upscale_in", _enlarged_in),
    "Emphasis": Rule("emphasis", lambda text: text.lower().replace(" ", "-")),
    "Eta": Rule("eta_ancestral", _number),
    "Eta DDIM": Rule("eta", _number),
    "Sigma churn": Rule("s_churn", _number),
    "Sigma tmin": Rule("s_tmin", _number),
    "Sigma tmax": Rule("s_tmax", _number),
    "Sigma noise": Rule("s_noise", _number),
    "Schedule rho": Rule("rho", _number),
    "Discard penultimate sigma": Rule("discard_penultimate", lambda text: text == "True"),
    "VAE": Rule("vae", str),
}
# Not for a painter: what was painted with, said for the record, or read elsewhere in this file.
APART = frozenset({
    "Sampler", "Schedule type", "Seed", "Size", "Model", "Model hash", "VAE hash", "Version", "User", "App", "Variation seed",
    "Variation seed strength", "Hires resize", "First pass size", "Toward", "Toward share", "Hashes",
})  # fmt: skip
# What "Automatic" means from version 1.9 on (sd_samplers_kdiffusion.py); samplers of timesteps have a spacing of their own.
_AUTOMATIC = {
    **dict.fromkeys(("dpmpp2m", "dpmppsde", "dpmpp2sa", "dpm2", "dpm2a", "restart"), ("karras",)),
    **dict.fromkeys(("dpmpp2msde", "dpmpp2msdeheun", "dpmpp3msde"), ("exponential",)),
}
_OWN = {"ddim": ("timesteps", "ddim"), "plms": ("timesteps", "ddim"), "unipc": ("time_uniform",), "lcm": ("lcm_webui",)}
_PROMPTS = {"a1111": "a1111", "novelai": "a1111", "comfyui": "comfyui"}  # whose syntax a program's prompts have
_SPACINGS = {"uniform": ("normal",), "normal": ("normal",), "ddim": ("ddim",)}


def like(parameters: Parameters, knobs: type[Knobs], can: frozenset[str] = frozenset()) -> Taken:
    """What a painter of these knobs follows of what a file says. can: its optional parts of a request. Never raises."""
    work = _Work(parameters, knobs, can)
    work.sampler()
    sides = work.size()
    for key, value in parameters.settings.items():
        if key in FOLLOWED:
            work.follow(key, FOLLOWED[key], value)
        elif key not in APART and not (key == "Styles" and parameters.dialect == "giverny"):  # ours are in the words
            work.note(key, "is not followed here")
    if parameters.dialect == "a1111" and "RNG" not in parameters.settings and parameters.settings:
        work.follow("RNG", FOLLOWED["RNG"], "GPU")
    work.second_pass(sides)
    work.syntax(parameters.prompt + parameters.negative)
    return Taken(
        prompt=parameters.prompt,
        negative=parameters.negative,
        seed=work.seed("Seed"),
        size=sides,
        knobs=work.knobs,
        toward=work.toward(),
        variation=work.variation(),
        dialect=parameters.dialect,
        became=work.became,
        notes=(*parameters.notes, *work.notes),
    )


def like_ours(told: Provenance, knobs: type[Knobs], can: frozenset[str] = frozenset()) -> Taken:
    """The same of a picture of ours, from its whole provenance: every knob that the painter has too."""
    parts = {name: value for name, value in told.knobs.items() if name in knobs.model_fields}
    request = told.request
    lost = [Note(key=name, problem="not a knob of this painter") for name in told.knobs if name not in parts]
    lost += [Note(key=name, problem="not followed by this painter") for name in sorted(request.asks - can)]
    start = request.start if "start" in can else None
    became = {"seed": f"seed {request.seed}", **{name: f"{name} = {value}" for name, value in parts.items()}}
    if start is not None:
        lost += [
            Note(key="start", problem=f"{what} {file.name}, which is not in the file", suggestion=f"give it with {flag}")
            for what, file, flag in (("began with", start.picture, "--from"), ("painted under", start.mask, "--mask"))
            if isinstance(file, Enclosed)
        ]
        became["start"] = f"with --from: strength {start.strength:g}, fit {start.fit}, fill {start.fill}"
    return Taken(
        prompt=request.prompt,
        negative=request.negative,
        seed=request.seed,
        size=request.size,
        knobs=parts,
        toward=request.toward if "toward" in can else None,
        variation=request.variation if "variation" in can else None,
        start=start,
        dialect="giverny",
        became=became,
        notes=tuple(lost),
    )


class _Work:
    """What is found while the settings of one picture are gone through."""

    def __init__(self, parameters: Parameters, knobs: type[Knobs], can: frozenset[str]) -> None:
        self.said, self.model, self.can, self.dialect = parameters.settings, knobs, can, parameters.dialect
        self.knobs: dict[str, Any] = {}
        self.became: dict[str, str] = {}
        self.notes: list[Note] = []

    def note(self, key: str, problem: str, suggestion: str = "") -> None:
        self.notes.append(Note(key=key, problem=f"{self.said[key]!r} {problem}" if key in self.said else problem,
                               suggestion=suggestion))  # fmt: skip

    def takes(self, knob: str, value: Any) -> bool:
        """Whether the painter has such a knob, and it goes so far."""
        if knob not in self.model.model_fields:
            return False
        try:
            self.model.model_validate({knob: value})
        except ValidationError as error:
            return all(wrong["loc"][:1] != (knob,) for wrong in error.errors(include_url=False))
        return True

    def set(self, key: str, knob: str, value: Any) -> None:
        self.knobs[knob] = value
        self.became[key] = f"{knob} = {value}"

    def follow(self, key: str, rule: Rule, text: str) -> None:
        """Set the knob, or say why not."""
        if rule.knob not in self.model.model_fields:
            if key == "RNG" and text == "CPU":  # which is how every painter here draws
                self.became[key] = "the CPU's random numbers"
            elif key == "RNG":
                self.note(key, f"is not followed here: noise was drawn as {text} draws it, here it is the CPU's",
                          "another picture, however alike")  # fmt: skip
            else:
                self.note(key, "is not followed here")
            return
        try:
            value = rule.read(text)
        except (ValueError, KeyError, OverflowError):
            self.note(key, "could not be understood")
            return
        if self.takes(rule.knob, value):
            self.set(key, rule.knob, value)
        else:
            self.note(key, f"is beyond what {rule.knob!r} takes here")

    # -- settings that are more than one knob --------------------------------------------------------------------------

    def sampler(self) -> None:
        """Sampler and spacing. Up to 1.8 one name carries both, and without a schedule in it the spacing is even."""
        name = self.said.get("Sampler")
        if not name:
            return
        label, schedule = split_sampler(name)
        if "sampler" not in self.model.model_fields:
            self.note("Sampler", "is not followed here")
            return
        try:
            plain = sampler_name(label)
        except InputError as error:
            self.note("Sampler", "is no sampler of this painter, its own is used", error.remedy)
            return
        self.set("Sampler", "sampler", plain)
        said = self.said.get("Schedule type") or schedule
        wanted = said or ("Automatic" if _version(self.said.get("Version", "")) >= (1, 9) else "Uniform")
        key = "Schedule type" if "Schedule type" in self.said else "Sampler"
        if folded(label) in _OWN and folded(said or "Automatic") == "automatic":
            choices = _OWN[folded(label)]
        elif folded(wanted) == "automatic":
            choices = _AUTOMATIC.get(folded(label), ("normal",))
        else:
            choices = _SPACINGS.get(folded(wanted), (wanted.lower().replace(" ", "_"),))
        spacing = next((choice for choice in choices if self.takes("spacing", choice)), None)
        if spacing is None:
            self.note(key, f"means a spacing that is not here ({' or '.join(choices)}), the painter's own is used")
        else:
            self.knobs["spacing"] = spacing
            self.became[key] = f"sampler = {plain}, spacing = {spacing}" if key == "Sampler" else f"spacing = {spacing}"

    def seed(self, key: str) -> int | None:
        try:
            seed = _whole(self.said[key])
            if not 0 <= seed < 2**63:
                raise ValueError("it is beyond 63 bits")
        except KeyError:
            return None
        except ValueError as error:
            self.note(key, f"cannot be taken: {error}")
            return None
        self.became[key] = f"{key.lower()} {seed}"
        return seed

    def size(self) -> tuple[int, int] | None:
        """Of the first pass, where there are two."""
        size = read_size(self.said.get("Size", ""))
        if size is None:
            if "Size" in self.said:
                self.note("Size", "could not be understood, the model's own is used")
            return None
        if (first := read_size(self.said.get("First pass size", ""))) is not None:
            # 0x0 is worked out as web interfaces up to 1.4 did: about 512 x 512, in multiples of 64
            scale = math.sqrt(512 * 512 / max(size[0] * size[1], 1))
            first = first if all(first) else (math.ceil(scale * size[0] / 64) * 64, math.ceil(scale * size[1] / 64) * 64)
            self.became["First pass size"] = f"size {first[0]}x{first[1]}"
            return first
        self.became["Size"] = f"size {size[0]}x{size[1]}"
        return size

    def second_pass(self, sides: tuple[int, int] | None) -> None:
        """Hires fix: how much larger, where only the final size is said; and which strength is meant."""
        grown = "Hires resize" if "Hires resize" in self.said else "Size" if "First pass size" in self.said else ""
        final = read_size(self.said.get(grown, ""))
        if final and sides and "Hires upscale" not in self.said:
            ratios = [end / side for end, side in zip(final, sides, strict=True) if end and side]
            if ratios and max(ratios) - min(ratios) < 0.01 and self.takes("upscale", ratios[0]):
                self.set(grown, "upscale", ratios[0])
            else:
                self.note(grown, "is not followed here: the sides grow differently, or shrink")
        if self.knobs.get("upscale", 1) == 1:
            return
        strength = self.said.get("Denoising strength")
        if strength is not None:
            self.knobs.pop(FOLLOWED["Denoising strength"].knob, None)
            self.notes = [note for note in self.notes if note.key != "Denoising strength"]
            self.follow("Denoising strength", Rule("upscale_strength", _number), strength)
        how = self.said.get("Hires upscaler", "")
        if how and not how.lower().startswith("latent") and how != "Bicubic" and "upscale_in" in self.knobs:
            self.note("Hires upscaler", "is not here, pixels are enlarged bicubically")

    def syntax(self, words: str) -> None:
        """Whose brackets prompts have. A1111's numbers in them changed their meaning with 1.6; hashes of 8 digits are older."""
        program = _PROMPTS.get(self.dialect)
        if program is None:
            return
        old = (0,) < _version(self.said.get("Version", "")) < (1, 6) or len(self.said.get("Model hash", "")) == 8
        program = "a1111-old" if program == "a1111" and old else program
        if self.takes("dialect", program):
            self.set("dialect", "dialect", program)
        elif any(mark in words for mark in "()[]<>"):
            self.notes.append(Note(key="", problem="brackets in the prompts are plain text here"))

    def variation(self) -> Variation | None:
        if "Variation seed" not in self.said:
            return None
        if "variation" not in self.can:
            self.note("Variation seed", "is not followed here")
            return None
        seed = self.seed("Variation seed")
        try:
            strength = _number(self.said.get("Variation seed strength", "0"))
            made = Variation(seed=seed if seed is not None else -1, strength=strength)
        except ValueError:  # pydantic's are of this kind
            self.note("Variation seed", "cannot be taken")
            return None
        self.became["Variation seed strength"] = f"variation strength {strength:g}"
        if self.dialect != "giverny":
            self.note("Variation seed", "is mixed in as one vector here, elsewhere column by column", "an alike picture")
        return made

    def toward(self) -> Toward | None:
        if "Toward" not in self.said:
            return None
        try:
            made = Toward(prompt=self.said["Toward"], share=_number(self.said.get("Toward share", "")))
        except ValueError:
            made = None
        if made is None or "toward" not in self.can:
            self.note("Toward", "is not followed here")
            return None
        self.became["Toward"] = f"{made.share:g} of the way to {made.prompt!r}"
        return made


def _version(text: str) -> tuple[int, ...]:
    """(1, 9, 3) of "v1.9.3", of Forge's "f2.0.1v1.10.1" A1111's part; (0,) where none is said or it is another program's."""
    found = re.search(r"(?:^|v)(\d{1,6}(?:\.\d{1,6})+)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else (0,)
