"""What can be turned when a diffusion model paints. Imported by the command line too, so nothing heavy in here."""

from typing import Literal

from pydantic import Field

from ...base.knobs import Knobs


class DiffusionKnobs(Knobs):
    """Settings of one picture. A model's card may carry its own defaults; what a request says wins."""

    steps: int = Field(20, ge=1, le=1000, description="sampling steps: more is finer and slower")
    sampler: str = Field("dpm++ 2m", description="ddpm, ddim, euler, euler a, heun or dpm++ 2m")
    spacing: Literal["normal", "karras", "trailing", "leading", "ddim"] = Field(
        "normal", description="how noise levels are spread over the steps"
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
    eta: float = Field(0.0, ge=0, le=1, description="fresh noise per step for ddim: 0 none, 1 as ddpm")
