"""The contracts of learning: examples, random streams, objectives, stages, families. Seen by all through `contracts`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import ConfigDict
from torch import Tensor, nn

from .knobs import Frozen, Knobs


class Sample(Frozen):
    """One training example as a data source hands it out."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    pixels: Any  # uint8 array (H, W, C), C = 1 or 3
    captions: tuple[str, ...] = ()
    label: int | None = None
    name: str = ""


class Source(Protocol):
    """Indexed training examples, read one at a time and never held whole in memory unless small.

    `fingerprint` changes when the data does. `read` may be called from several threads.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample: ...

    def captions_of(self, index: int) -> tuple[str, ...]:
        """What is said of a picture, without decoding it."""
        ...


class Streams(Protocol):
    """Random numbers of one training step: each named draw depends on (seed, step, name) and on nothing else, so that a
    resumed run and a run spread over processes draw the same. Draws are made for the global batch; each process takes
    its own rows."""

    @property
    def total(self) -> int:
        """Rows of the global batch."""
        ...

    @property
    def progress(self) -> float:
        """Share of the run that is done before this step, in [0, 1)."""
        ...

    def normal(self, name: str, shape: Sequence[int]) -> Tensor: ...

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor: ...

    def spread(self, name: str, rows: int) -> Tensor:
        """(rows,) numbers in [0, 1) spread evenly over the global batch with one random offset: less variance than uniform."""
        ...


Batch = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """One optimiser's move within an iteration. A diffusion model has one, a GAN two or more."""

    name: str
    parameters: Sequence[nn.Parameter]
    every: int = 1  # taken on iterations divisible by this
    learning_rate: float | None = None  # None: the recipe's
    betas: tuple[float, float] | None = None
    second_order: bool = False  # its loss differentiates a gradient: no reduced precision


class Objective(Protocol):
    """What is trained, and by which losses. The loop owns everything else (steps, precision, averages, files).

    modules: all networks with state, by name (saved and restored); averaged: names of those kept as moving averages.
    loss: called once per turn; `scratch` is one dict per iteration, so that work shared by turns is done once.
    Returns scalars by name; "loss" is differentiated, the rest is logged.
    """

    modules: Mapping[str, nn.Module]
    averaged: Sequence[str]

    def turns(self) -> Sequence[Turn]: ...

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]: ...

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]: ...

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        """A grid-to-be: (B, 3, H, W) in [-1, 1], or None."""
        ...


@dataclass(frozen=True)
class StageJob:
    """One named stage of a recipe: what to train, and what to do with the averaged weights that come out.

    identity: fingerprint of everything the result depends on, earlier stages included; an artefact that bears it is
    reused. start: called only when the stage is trained -> (objective, batches from a step on, fixed validation batch).
    keep: called with {module: tensors} when the stage is finished or was reused.
    """

    name: str
    share: float  # of the time budget, relative to the other stages
    loop: Any  # training.loop.LoopRecipe
    identity: str
    start: Callable[[], tuple[Objective, Callable[[int], Iterator[Batch]], Batch]]
    keep: Callable[[dict[str, dict[str, Tensor]]], None]


class Workshop(Protocol):
    """One training run of a family: gives out its stages in order and keeps what each of them made."""

    def shares(self) -> Mapping[str, float]:
        """Every stage's name and its part of a time budget, relative to the others."""
        ...

    def jobs(self) -> Iterator[StageJob]:
        """Stages in order; each is asked for only after the one before has been kept."""
        ...

    def result(self) -> Trained: ...


@dataclass(frozen=True)
class Trained:
    """What a finished run hands to the model folder."""

    size: tuple[int, int]  # width and height painted by default
    recipe: Mapping[str, Any]  # enough to build the networks again
    networks: Mapping[str, nn.Module]
    extras: Mapping[str, str] = field(default_factory=dict)  # further files: name -> text
    knobs: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A kind of maker, as its file in `painters` exports it under the name PAINTER; or of judge, in `judges` under JUDGE.

    recipe: what a TOML file of this family is checked against; it has `family`, `name`, `title`, `licence` and `data`.
    tiny: a recipe that trains in about a second on toy shapes, for the contract tests.
    workshop: (recipe, source, cache folder, world, device) -> Workshop.
    open: (model folder, card, device, precision, backend name) -> Painter; of a judge (model folder, card, device) -> an
    instrument that also says what pictures show.
    task: what goes in and what comes out, for the card.
    """

    name: str
    recipe: type[Frozen]
    knobs: type[Knobs]
    tiny: Callable[[], Frozen]
    workshop: Callable[..., Workshop]
    open: Callable[..., Any]
    task: str = "text to picture"
