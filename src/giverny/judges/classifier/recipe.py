"""What a judge is, what it learns from and how: the recipe behind a TOML file, and the part of it that its card keeps."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ...base.contracts import Frozen
from ...base.errors import choose
from ...data.loader import Fit
from ...perception.classifier import LEAST, Classifier, NetworkRecipe
from ...perception.resizers import RESIZERS
from ...training.classify import ClassifyRecipe
from ...training.plan import LoopRecipe
from .hard import HardRecipe


class DataRecipe(Frozen):
    source: str = Field(description="a named set (see `giverny data`) or a path to pictures")
    shows: str = Field("", description="the class of all its pictures, where further sets show other ones")
    beside: dict[str, str] = Field(
        default_factory=dict, description='further sets by the class that their pictures are of: { photograph = "photos" }'
    )
    size: int = Field(64, ge=LEAST, description="side of the square pictures it looks at, in pixels")
    channels: Literal[1, 3] = Field(3, description="1 grey, 3 colour")
    fit: Fit = Field("crop", description="how training pictures are brought to size")
    resizer: str = Field("antialiased", description="how pictures of another size are brought to it when it judges")
    attributes: tuple[str, ...] = Field(
        ("class",), min_length=1, description='columns of the table, or "class" of labelled sets'
    )
    only: dict[str, str] = Field(
        default_factory=dict, description='pictures of which the table says so: { recoloured = "false" }'
    )
    called: dict[str, str] = Field(
        default_factory=dict,
        description='what a value is called in prompts, where the set says otherwise: { Trouser = "trousers" }',
    )
    validation: int = Field(256, ge=1, description="pictures held out of training, for validation")
    group: str = Field("", description="pattern of names: pictures that share its text are held out together; none: each alone")

    @property
    def sets(self) -> dict[str, str]:
        """Sets by class, where each is one; else nothing."""
        return {self.shows: self.source, **self.beside} if self.beside else {}

    @model_validator(mode="after")
    def _named(self) -> DataRecipe:
        if bool(self.shows) != bool(self.beside) or self.shows in self.beside:
            raise ValueError("data.shows and data.beside want each other: a class for each set, every one of its own")
        return self

    @field_validator("resizer")
    @classmethod
    def _known(cls, name: str) -> str:
        return choose(name, RESIZERS, "resizer")


class ClassifierRecipe(Frozen):
    """A judge: a small classifier of one set of pictures, to measure others with."""

    family: Literal["classifier"] = "classifier"
    name: str
    title: str = ""
    licence: str = Field("", description="of the weights that come out")
    budget: float | None = Field(None, gt=0, description="seconds for the training; None: the loop's steps")
    data: DataRecipe
    half: Literal["all", "even", "odd"] = Field("all", description="which pictures of the set it may see: those of that number")
    network: NetworkRecipe
    objective: ClassifyRecipe = ClassifyRecipe()
    hard: HardRecipe | None = Field(
        None, description="pictures of a class that are changed by cheap tricks and stay of it, or come to be of it"
    )
    loop: LoopRecipe = LoopRecipe()

    @model_validator(mode="after")
    def _fits(self) -> ClassifierRecipe:
        strange = sorted(set(self.objective.of_colour) - set(self.data.attributes))
        if strange:
            raise ValueError(f"objective.of_colour wants some of data.attributes, given {', '.join(strange)}")
        if self.objective.recolour and self.data.channels != 3:
            raise ValueError("objective.recolour wants pictures in colour: data.channels = 3")
        if self.hard is not None and (self.data.channels != 3 or self.data.attributes != ("class",)):
            raise ValueError('hard wants data.channels = 3 and data.attributes = ["class"]')
        if self.loop.batch // self.loop.accumulate < 2:
            raise ValueError("loop wants two pictures or more at once: the network takes means over them")
        return self


class ModelRecipe(Frozen):
    """What a finished judge is built from and what it learnt from, as kept on its card."""

    network: NetworkRecipe
    size: int = Field(ge=LEAST)
    channels: Literal[1, 3]
    resizer: str
    attributes: dict[str, tuple[str, ...]]  # the values of each
    trained: dict[str, Any]  # half, only, pictures, held_out, and the accuracy on these

    def build(self) -> Classifier:
        return Classifier(self.network, self.channels, self.size, {k: len(v) for k, v in self.attributes.items()})
