"""What can be turned when a translator paints. Imported by the command line too, so nothing heavy in here."""

from pydantic import Field, field_validator

from ...base.knobs import Knobs


class TranslatorKnobs(Knobs):
    """Settings of one picture. A model's card may carry its own defaults; what a request says wins."""

    memory: int = Field(
        2048, ge=0, le=1_000_000, description="MiB that translating may take: a larger picture is done in tiles; 0 is no limit"
    )
    strokes: float = Field(
        1.0,
        ge=0,
        le=64,
        description="how many times as large strokes are: painted smaller, then enlarged; 0: as the picture's size asks",
    )
    denoise: int = Field(0, ge=0, le=4, description="median over so many pixels to each side of what was painted; 0 is off")
    sharpen: float = Field(0.0, ge=0, le=5, description="unsharp mask of so much, behind that; 0 is off")

    @field_validator("strokes")
    @classmethod
    def _sound(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError("wanted 0, or 1 and more")
        return value
