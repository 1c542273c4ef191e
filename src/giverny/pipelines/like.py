"""A picture like another one: what a file says becomes a request, and what cannot be followed is said.

One table (`like_rules.FOLLOWED`) tells which setting is which knob. A setting is followed where the painter's Knobs have a
knob of that name that takes the value; every other setting is named in the notes. So a painter that learns a knob follows its
setting from then on.
What the settings of A1111 mean where they are not said (RNG: the GPU's; Schedule type: by version) is that program's.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, ValidationError

from ..base.contracts import BatchRow, Frozen, Knobs, Provenance, Request, Start, Toward, Variation
from ..base.errors import InputError
from ..base.infotext import Dialect, Note, Parameters, read_size
from ..base.start import Enclosed
from ..sampling.names import FACTS
from .like_rules import APART, FOLLOWED, Rule, number, whole
from .like_start import BEGUN, begun, begun_as
from .sampler_meant import sampler_meant, version


class Taken(Frozen):
    """What of a picture's settings a painter follows."""

    prompt: str = ""
    negative: str = ""
    seed: int | None = Field(None, description="None where none is said")
    size: tuple[int, int] | None = None
    knobs: dict[str, Any] = Field(default_factory=dict)
    toward: Toward | None = None
    variation: Variation | None = None
    batch: BatchRow | None = None
    start: dict[str, Any] = Field(
        default_factory=dict,
        description="of a picture that began with another: the arguments of `image2image.start_from` that its file says, "
        "and only_masked, padding, extend, overlap; the picture itself no file names",
    )
    before: Start | None = Field(None, description="of a picture of ours: how it began, whole but for its files")
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
            batch=self.batch,
        )


_SEEDS = {"a1111": "a1111", "comfyui": "comfyui"}  # whose seeds a program's pictures have; of NovelAI's those with an ENSD
_PROMPTS = {"a1111": "a1111", "novelai": "a1111", "comfyui": "comfyui"}  # whose syntax a program's prompts have


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
    work.seeds()
    work.second_pass(sides)
    work.begun()
    work.syntax(parameters.prompt + parameters.negative)
    return Taken(
        prompt=parameters.prompt,
        negative=parameters.negative,
        seed=work.seed("Seed"),
        size=sides,
        knobs=work.knobs,
        toward=work.toward(),
        variation=work.variation(),
        batch=work.batch(),
        start=work.start,
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
        batch=request.batch if "batch" in can else None,
        start=begun_as(start) if start is not None else {},
        before=start,
        dialect="giverny",
        became=became,
        notes=tuple(lost),
    )


class _Work:
    """What is found while the settings of one picture are gone through."""

    def __init__(self, parameters: Parameters, knobs: type[Knobs], can: frozenset[str]) -> None:
        self.said, self.model, self.can, self.dialect = parameters.settings, knobs, can, parameters.dialect
        self.knobs: dict[str, Any] = {}
        self.start: dict[str, Any] = {}
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
        """Sampler and spacing."""
        if not self.said.get("Sampler"):
            return
        if "sampler" not in self.model.model_fields:
            self.note("Sampler", "is not followed here")
            return
        try:
            plain, choices, key = sampler_meant(self.said)
        except InputError as error:
            self.note("Sampler", "is no sampler of this painter, its own is used", error.remedy)
            return
        self.set("Sampler", "sampler", plain)
        if self.said.get("UniPC variant") not in (None, "bh1", "bh2"):
            self.note("UniPC variant", "is not here, bh1 is used")
        if plain == "lcm" and self.dialect == "a1111" and self.takes("latent_consistency", True):
            self.knobs["latent_consistency"] = True  # it has no other estimate for this sampler
        spacing = next((choice for choice in choices if self.takes("spacing", choice)), None)
        if spacing is None:
            self.note(key, f"means a spacing that is not here ({' or '.join(choices)}), the painter's own is used")
        else:
            self.knobs["spacing"] = spacing
            self.became[key] = f"sampler = {plain}, spacing = {spacing}" if key == "Sampler" else f"spacing = {spacing}"

    def seeds(self) -> None:
        """Which program's way from seeds to noise is meant, and what of it cannot be known."""
        program = _SEEDS.get(self.dialect) or ("a1111" if self.dialect == "novelai" and "ENSD" in self.said else None)
        if program and self.said and self.takes("seeding", program):
            self.set("Seeds", "seeding", program)
        draws = FACTS[self.knobs["sampler"]].draws if "sampler" in self.knobs else "none"
        if self.dialect != "giverny" and draws == "tree":
            self.note("Sampler", "draws from a Brownian tree, which here is another one than there", "an alike picture")
        elif self.dialect == "comfyui" and draws == "fresh" and "seeding" in self.knobs:
            problem = "noise behind the first is that of the device it was painted on, which is not said: the CPU's is taken"
            self.notes.append(Note(key="", problem=problem, suggestion="noise=nv is an NVIDIA card's"))

    def seed(self, key: str) -> int | None:
        try:
            seed = whole(self.said[key])
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
            self.follow("Denoising strength", Rule("upscale_strength", number), strength)
        how = self.said.get("Hires upscaler", "")
        if how and not how.lower().startswith("latent") and how != "Bicubic" and "upscale_in" in self.knobs:
            self.note("Hires upscaler", "is not here, pixels are enlarged bicubically")

    def begun(self) -> None:
        """Image-to-image and inpainting, which a strength without a second pass means, unless that is a knob."""
        if "start" not in self.can or "Denoising strength" not in self.said or {"strength", "upscale"} & set(self.knobs):
            return
        self.notes = [note for note in self.notes if note.key not in BEGUN]
        self.start, became, wrong = begun(self.said, self.dialect)
        self.became |= became
        for key, problem in wrong.items():
            self.note(key, f"cannot be taken: {problem}")
        problem = "the picture began with another one, which its file does not name"
        self.notes.append(Note(key="Denoising strength", problem=problem, suggestion="give it with --from"))

    def syntax(self, words: str) -> None:
        """Whose brackets prompts have. A1111's numbers in them changed their meaning with 1.6; hashes of 8 digits are older."""
        program = _PROMPTS.get(self.dialect)
        if program is None:
            return
        old = (0,) < version(self.said.get("Version", "")) < (1, 6) or len(self.said.get("Model hash", "")) == 8
        if self.takes("dialect", program):
            self.set("dialect", "dialect", program)
            if old and program == "a1111" and "[" in words and self.takes("old_timelines", True):
                self.set("Old prompt editing timelines", "old_timelines", True)
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
            strength = number(self.said.get("Variation seed strength", "0"))
            made = Variation(seed=seed if seed is not None else -1, strength=strength)
        except ValueError:  # pydantic's are of this kind
            self.note("Variation seed", "cannot be taken")
            return None
        self.became["Variation seed strength"] = f"variation strength {strength:g}"
        if self.dialect != "giverny" and self.knobs.get("seeding") != "a1111":
            self.note("Variation seed", "is mixed in as one vector here, elsewhere column by column", "an alike picture")
        return made

    def batch(self) -> BatchRow | None:
        if self.knobs.get("seeding") != "comfyui" or "batch" not in self.can or "Batch size" not in self.said:
            return None
        try:
            made = BatchRow(row=whole(self.said.get("Batch pos", "0")), of=whole(self.said["Batch size"]))
        except ValueError:
            self.note("Batch size", "could not be understood")
            return None
        self.became["Batch size"] = f"row {made.row} of {made.of}"
        if "Batch pos" not in self.said:
            problem = "pictures were painted at once, and the file does not say which this is: the first is taken"
            self.note("Batch size", problem, f"-n {made.of} paints all")
        return made

    def toward(self) -> Toward | None:
        if "Toward" not in self.said:
            return None
        try:
            made = Toward(prompt=self.said["Toward"], share=number(self.said.get("Toward share", "")))
        except ValueError:
            made = None
        if made is None or "toward" not in self.can:
            self.note("Toward", "is not followed here")
            return None
        self.became["Toward"] = f"{made.share:g} of the way to {made.prompt!r}"
        return made
