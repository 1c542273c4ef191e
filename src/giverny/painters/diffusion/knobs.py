"""What can be turned when a diffusion model paints. Imported by the command line too, so nothing heavy in here."""

from typing import Any, Literal

from pydantic import Field, field_validator

from ...base.infotext import read_size
from ...base.knobs import Knobs
from ...sampling.names import Spacing, spacing_name
from ...text.emphasis import Dialect, Emphasis


class DiffusionKnobs(Knobs):
    """Settings of one picture. A model's card may carry its own defaults; what a request says wins."""

    steps: int = Field(20, ge=1, le=1000, description="sampling steps: more is finer and slower")
    sampler: str = Field(
        "dpm++ 2m",
        description="such as euler a, dpm++ 2m, dpm++ sde or unipc; a spacing may follow, as in dpm++ 2m karras",
    )
    spacing: Spacing | Literal["automatic"] = Field(
        "normal", description="how noise levels are spread over the steps; automatic: as is usual for the sampler"
    )
    guidance: float = Field(
        3.0,
        ge=0,
        le=50,
        description="how strictly the words are followed: 1 as learnt, more is clearer and less varied",
    )
    guidance_from: float = Field(0.0, ge=0, le=1, description="guide only above this noise position (0 clean, 1 noise)")
    guidance_to: float = Field(1.0, ge=0, le=1, description="guide only below this noise position")
    guidance_every: int = Field(
        1, ge=1, le=100, description="work guidance out at every n-th estimate and keep it in between: faster, less exact"
    )
    guidance_rescale: float = Field(
        0.0, ge=0, le=1, description="take back the contrast that guidance adds: 0 not at all, 0.7 usual, 1 all"
    )
    threshold: float = Field(
        0.0, ge=0, le=1, description="dynamic thresholding at this percentile, such as 0.995; 0 is off; for models of pixels"
    )
    clamp: Literal["none", "estimate", "sample"] = Field(
        "none",
        description="keep to the range of pictures, -1 to 1, for models of pixels: each step's clean estimate, or the noisy "
        "sample after it, as some notebooks do",
    )
    begin: Literal["noise", "crossed"] = Field(
        "noise",
        description="how a picture is begun from: with noise on it (SDEdit), or with its own noises as a model of photographs "
        "and paintings sees them (CycleDiffusion, twice the steps, whatever the sampler)",
    )
    clip_guidance: float = Field(
        0.0, ge=0, le=1e6, description="push the picture to where CLIP finds it closer to the words: 0 is off; slow"
    )
    clip_guidance_cutouts: int = Field(
        0, ge=0, le=64, description="show CLIP so many random cuts of the picture; 0: the whole picture"
    )
    clip_model: str = Field("", description="whose CLIP guides: a model's name or folder; empty: this model's own")
    upscale: float = Field(1.0, ge=1, le=16, description="paint, enlarge so many times, and paint over: 1 is off")
    upscale_strength: float = Field(
        0.5, ge=0, le=1, description="part of the steps painted again after enlarging: 0 only enlarges, 1 paints anew"
    )
    upscale_in: Literal["pixels", "latents"] = Field(
        "pixels", description="what is enlarged: the picture (bicubic) or its latents (bilinear)"
    )
    decode_memory: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="MiB that decoding may take: a large picture is then decoded in tiles; 0: what is free",
    )
    dialect: Dialect = Field(
        "plain", description="whose syntax prompts may have, such as (word:1.3); plain: none, brackets are text"
    )
    emphasis: Emphasis = Field(
        "auto", description="how weights of words act: auto as the dialect's program does; none: brackets are text"
    )
    clip_skip: int = Field(
        1,
        ge=1,
        le=64,
        description="which layer reads the words, counted from the last, which is 1 (Stable Diffusion XL: 1 is 2)",
    )
    windows: int = Field(
        1, ge=1, le=64, description="how often the length of the text tower is read, one behind the other; the rest is left out"
    )
    comma_backtrack: int = Field(
        20, ge=0, le=75, description="a1111: tokens from a window's end in which a comma may end it; 0: none does"
    )
    old_timelines: bool = Field(False, description="a1111: numbers of prompt editing as before its version 1.6")
    original_size: str = Field(
        "", description="Stable Diffusion XL: as painted from pictures of this size, such as 1024x1024; empty: the size painted"
    )
    crop: str = Field(
        "", description="Stable Diffusion XL: as cut from a picture so far from its left and top, such as 0x64; empty: uncut"
    )
    empty_negative: Literal["auto", "zeros", "encoded"] = Field(
        "auto",
        description="Stable Diffusion XL without a negative prompt: zeros, or the empty one; auto: as the dialect's program",
    )
    eta: float = Field(0.0, ge=0, le=1, description="fresh noise per step for ddim: 0 none, 1 as ddpm")
    eta_ancestral: float = Field(
        1.0, ge=0, le=1, description="fresh noise per step for ancestral samplers (euler a) and those of an SDE: 0 none, 1 all"
    )
    s_churn: float = Field(0.0, ge=0, le=100, description="noise added along the way by euler, heun and dpm2: 0 none")
    s_tmin: float = Field(0.0, ge=0, le=1000, description="churn only above this sigma / alpha")
    s_tmax: float = Field(0.0, ge=0, le=1000, description="churn only below this sigma / alpha; 0 is no limit")
    s_noise: float = Field(1.0, ge=0, le=2, description="factor on all fresh noise: 1 keeps its measure")
    sigma_min: float = Field(
        0.0, ge=0, le=1000, description="sigma / alpha that karras, exponential and their like end at; 0: the model's own"
    )
    sigma_max: float = Field(0.0, ge=0, le=1000, description="sigma / alpha that they begin at; 0: the model's own")
    rho: float = Field(0.0, ge=0, le=100, description="curve of karras and polyexponential; 0 as usual: 7 and 1")
    discard_penultimate: bool = Field(
        False, description="one level more, and without the last but one, for every sampler; dpm2 and its like do it anyway"
    )
    order: int = Field(0, ge=0, le=10, description="estimates that a step of unipc or lms is made of; 0 as usual: 3 and 4")
    lower_order_final: bool = Field(True, description="unipc: fewer of them towards the end")
    latent_consistency: bool = Field(
        False, description="lcm: estimate as latent consistency models are taught to, with their boundary condition"
    )
    noise: Literal["cpu", "nv"] = Field("cpu", description="whose random numbers: torch's on the CPU, or an NVIDIA card's")
    seeding: Literal["giverny", "a1111", "comfyui"] = Field(
        "giverny", description="which program's way from seeds to noise: of variations, second passes and batches"
    )
    ensd: int = Field(0, ge=0, lt=2**32, description="added to the seed behind the initial noise; with seeding a1111")
    seed_resize_from: str = Field(
        "", description="width x height of a picture whose noise is put into the middle, such as 512x512; with seeding a1111"
    )

    @field_validator("original_size", "crop", mode="before")
    @classmethod
    def _sides(cls, given: Any) -> Any:
        """Two numbers, written in one way."""
        sides = read_size(given) if isinstance(given, str) else None
        if given != "" and sides is None:
            raise ValueError("wants to be written as 1024x1024")
        return "" if sides is None else f"{sides[0]}x{sides[1]}"

    @field_validator("spacing", mode="before")
    @classmethod
    def _spelt(cls, given: Any) -> Any:
        """Labels of other programs, such as "SGM Uniform", are understood as well."""
        return spacing_name(given) if isinstance(given, str) else given

    @field_validator("seed_resize_from")
    @classmethod
    def _sized(cls, given: str) -> str:
        size = read_size(given)
        if given and (size is None or not all(size)):
            raise ValueError("it is no size such as 512x512")
        return given
