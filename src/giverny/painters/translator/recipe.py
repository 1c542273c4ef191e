"""What a translator is made of and how it is trained: the recipe behind a TOML file, and the building of its parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator
from torch import nn

from ...base.contracts import Frozen
from ...base.knobs import by_family
from ...data.crops import CROP
from ...data.loader import Fit
from ...gans.critics import CriticRecipe
from ...gans.generators import GeneratorRecipe, Projections, ResnetGenerator
from ...gans.history import History
from ...training.judged import Judged
from ...training.loop import LoopRecipe
from ...training.translate import CycleTranslation, TranslateRecipe, Translation
from ...training.translate_patches import PatchTranslateRecipe, PatchTranslation

ObjectiveRecipe = Annotated[
    Annotated[TranslateRecipe, Tag("cycle")] | Annotated[PatchTranslateRecipe, Tag("patches")], by_family("cycle")
]


class DataRecipe(Frozen):
    source: str = Field(description="what pictures become: a named set (see `giverny data`) or a path to pictures")
    given: str = Field(description="the pictures that become so")
    size: tuple[int, int] = Field((256, 256), description="width and height that pictures are brought to")
    fit: Fit = Field("crop", description="how pictures are brought to size")
    flip: bool = Field(True, description="mirror half of the pictures")
    part: int | None = Field(
        None,
        ge=16,
        description="side of squares that are cut out of pictures of `size` to learn from; none: whole ones",
    )
    jitter: int = Field(30, ge=0, description="pixels by which pictures are larger before a part of that size is cut out")
    share: float = Field(
        1.0, gt=0, le=1, description="part of each set's training pictures that is used; the larger hold the smaller"
    )
    validation: int = Field(32, ge=1, description="pictures of each set held out of training, for validation")
    group: str = Field(CROP, description="pattern of names: given pictures that share its text are held out together")

    @model_validator(mode="after")
    def _fits(self) -> DataRecipe:
        if self.part is not None and self.part > min(self.size):
            raise ValueError(f"data.part wants a side of data.size or less, given {self.part} of {self.size}")
        return self

    @model_serializer(mode="wrap")
    def _told(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a part that is not there: what was made before there were parts keeps its name."""
        return {name: value for name, value in plain(self).items() if name != "part" or value is not None}

    @property
    def larger(self) -> tuple[int, int]:
        """Width and height that pictures are brought to before a part is cut out."""
        return self.size[0] + self.jitter, self.size[1] + self.jitter

    @property
    def learnt(self) -> tuple[int, int]:
        """Width and height of what networks are shown in training."""
        return self.size if self.part is None else (self.part, self.part)

    @property
    def sources(self) -> tuple[str, str]:
        """What pictures become, and the pictures that become so."""
        return self.source, self.given


class AgainRecipe(Frozen):
    """A second translator, which learns from what the first one has made of the given pictures (output as input)."""

    share: float = Field(1.0, gt=0, description="part of the time budget, relative to the first")
    loop: LoopRecipe | None = Field(None, description="None: the first one's")


class TranslatorRecipe(Frozen):
    """One stage, or two: a second one behind the first, at painting as well."""

    family: Literal["translator"] = "translator"
    name: str
    title: str = ""
    licence: str = Field("", description="of the weights that come out")
    budget: float | None = Field(None, gt=0, description="seconds for all stages together; None: each stage's own steps")
    data: DataRecipe
    generator: GeneratorRecipe
    critic: CriticRecipe
    objective: ObjectiveRecipe = TranslateRecipe()
    loop: LoopRecipe = LoopRecipe()
    again: AgainRecipe | None = None
    knobs: dict[str, Any] = Field(default_factory=dict, description="the model's own painting defaults")
    prompts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> TranslatorRecipe:
        judged, size, generator = self.objective.judged, self.data.learnt, self.generator
        if any(side % generator.step or side < generator.least for side in size):
            wanted = f"sides of {generator.least} or more, divisible by {generator.step}"
            raise ValueError(f"data.size or data.part wants {wanted}, as the generator does; given {size}")
        if min(size) < self.critic.least:
            raise ValueError(
                f"data.size or data.part wants sides of {self.critic.least} or more, to be seen by the critic; given {size}"
            )
        if self.critic.per_pixel and any(side % self.critic.least for side in size):
            raise ValueError(
                f"data.size or data.part wants sides divisible by {self.critic.least}, as the critic does; given {size}"
            )
        if generator.picture_channels != 3 or self.critic.picture_channels != 3:
            raise ValueError("generator and critic want picture_channels = 3")
        if judged.mixing != "none" and judged.mixing_form == "paper" and not self.critic.per_pixel:
            raise ValueError("mixing in the paper's form wants a critic of every pixel: critic.family = 'pixel'")
        if (judged.mixing != "none" and judged.mixing_form == "image") != getattr(self.critic, "image", False):
            raise ValueError("objective.judged.mixing_form = 'image' (with mixing) and critic.image = true want each other")
        if isinstance(self.objective, PatchTranslateRecipe) and generator.family != "resnet":
            raise ValueError("an objective of patches wants a generator of family 'resnet', whose maps it compares")
        if isinstance(self.objective, PatchTranslateRecipe) and generator.grain:
            raise ValueError("an objective of patches wants generator.grain = 0: noise is in none of the maps it compares")
        if isinstance(self.objective, TranslateRecipe) and self.objective.together and generator.norm != "instance":
            raise ValueError("objective.together wants instance norm, which does not see what else is in the batch")
        return self

    def judged(self, name: str) -> Judged:
        """A fresh critic of one domain, and its history."""
        width, height = self.data.learnt
        recipe = self.objective.judged
        return Judged(name, self.critic.build(), History(recipe.history, (3, height, width)), recipe)

    def build(self) -> Translation:
        """Fresh networks, ready to be trained; weights are drawn from torch's global generator."""
        forth = self.generator.build()
        if isinstance(self.objective, PatchTranslateRecipe):
            assert isinstance(forth, ResnetGenerator)
            return PatchTranslation(forth, Projections(tuple(forth.looks.values())), self.judged("wanted"), self.objective)
        back = self.generator.build()
        return CycleTranslation(forth, back, self.judged("wanted"), self.judged("given"), self.objective, self.generator.grain)


class ModelRecipe(Frozen):
    """The part of a recipe that a finished model needs, as kept on its card."""

    generator: GeneratorRecipe
    stages: int = Field(1, ge=1, description="translators one behind the other")

    def names(self) -> list[str]:
        """Of the networks in the model folder, in the order in which a picture goes through them."""
        return [f"translator{index or ''}" for index in range(self.stages)]

    def build(self) -> dict[str, nn.Module]:
        return {name: self.generator.build() for name in self.names()}
