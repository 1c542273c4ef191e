"""The small contracts everything else works on.

One sentence: every image generator is a painter behind `Painter.paint(requests) -> events`; samplers, guidance, training,
measuring and doors work on the protocols below and never on a particular network.

Conventions used everywhere:
- pictures as tensors are float, shape (B, C, H, W), values in [-1, 1]; pictures as arrays are uint8, shape (H, W, C);
- a noised sample is x = alpha * clean + sigma * noise (`NoiseLevel`); k-diffusion's sigma is sigma / alpha;
- sizes are (width, height) wherever a person writes them, (H, W) wherever a tensor has them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from .knobs import Frozen as Frozen
from .knobs import Knobs as Knobs

# ---------------------------------------------------------------------------------------------------------------------
# Noise


@dataclass(frozen=True)
class NoiseLevel:
    """How much of a sample is signal and how much is noise: x = alpha * clean + sigma * noise.

    alpha, sigma: float tensors of shape () or (B,), one value per picture. Variance-preserving processes have
    alpha^2 + sigma^2 = 1, variance-exploding ones alpha = 1, a zero-terminal-SNR process starts at alpha = 0.
    """

    alpha: Tensor
    sigma: Tensor

    def for_sample(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) in x's dtype and device, shaped to multiply a (B, ...) sample."""
        shape = (-1,) + (1,) * (x.dim() - 1) if self.alpha.dim() else ()
        return self.alpha.to(x).reshape(shape), self.sigma.to(x).reshape(shape)

    @property
    def ratio(self) -> Tensor:
        """sigma / alpha, k-diffusion's sigma; infinite where alpha = 0."""
        return self.sigma / self.alpha

    def expand(self, batch: int) -> NoiseLevel:
        """The same level written once per picture, shape (batch,)."""
        return NoiseLevel(self.alpha.expand(batch), self.sigma.expand(batch))


@dataclass(frozen=True)
class Levels:
    """The N + 1 noise levels of a run with N steps, from the noisiest to (usually) clean. Tensors of shape (N + 1,)."""

    alpha: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        if self.alpha.shape != self.sigma.shape or self.alpha.dim() != 1 or len(self.alpha) < 2:
            raise ValueError(f"levels want two equal 1-D tensors of 2 or more, given {self.alpha.shape}, {self.sigma.shape}")

    @property
    def steps(self) -> int:
        return len(self.alpha) - 1

    def __getitem__(self, i: int) -> NoiseLevel:
        return NoiseLevel(self.alpha[i], self.sigma[i])

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def ratios(self) -> Tensor:
        return self.sigma / self.alpha


@dataclass(frozen=True)
class Step:
    """What a sampler hands out after each step: the sample `x` at `level`, and the clean estimate it was made with."""

    index: int  # 0 for the first step
    total: int | None  # None where the sampler decides as it goes
    level: NoiseLevel  # the level that x is now at
    x: Tensor  # (B, C, H, W)
    clean: Tensor  # (B, C, H, W), the estimate of the clean sample

    @property
    def done(self) -> float | None:
        return None if self.total is None else (self.index + 1) / self.total


# A clean estimate from a noisy sample: (x, level, step index) -> clean. Guidance and conditioning are already inside.
Estimate = Callable[[Tensor, NoiseLevel, int], Tensor]
# Unit noise shaped like the sample, for the way from one level to the next (Brownian trees need both ends).
NoiseSource = Callable[[NoiseLevel, NoiseLevel], Tensor]
# A pure generator: no memory between calls, no callback. The caller pulls, and may `send` an edited sample.
Sampler = Callable[[Estimate, Tensor, Levels, NoiseSource], Generator[Step, Tensor | None, Tensor]]


# ---------------------------------------------------------------------------------------------------------------------
# Words and conditions


@dataclass(frozen=True)
class WordSpan:
    """Where a word of the prompt lies in the token sequence: tokens[start:end]."""

    word: str
    start: int
    end: int


@dataclass(frozen=True)
class Encoded:
    """What a text encoder makes of B texts, in every form a generator may want."""

    tokens: Tensor  # (B, L) int64
    vectors: Tensor  # (B, L, C) one vector per token
    mask: Tensor  # (B, L) bool, True where a token belongs to the text
    pooled: Tensor  # (B, P) one vector per text
    spans: tuple[tuple[WordSpan, ...], ...]  # per text, the words and their tokens


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told about B pictures. Every part is optional; a network says which it needs."""

    vectors: Tensor | None = None  # (B, L, C) context for cross-attention
    mask: Tensor | None = None  # (B, L) bool, True = may be attended to
    pooled: Tensor | None = None  # (B, P) additive conditioning
    channels: Tensor | None = None  # (B, K, H, W) concatenated to the sample (inpainting, depth)

    @property
    def batch(self) -> int:
        for part in (self.vectors, self.pooled, self.channels):
            if part is not None:
                return part.shape[0]
        raise ValueError("an empty condition has no batch size")

    @staticmethod
    def join(parts: Sequence[Condition]) -> Condition:
        """Conditions one below the other along the batch; all must have the same parts."""

        def stack(name: str) -> Tensor | None:
            values = [getattr(p, name) for p in parts]
            if all(v is None for v in values):
                return None
            if any(v is None for v in values):
                raise ValueError(f"cannot join conditions: some have {name}, some do not")
            return torch.cat(values)

        return Condition(stack("vectors"), stack("mask"), stack("pooled"), stack("channels"))


@dataclass(frozen=True, eq=False)
class Branch:
    """One term of guidance: the estimate under `condition` counts `weight` times. Weights of a plan sum to 1.

    Classifier-free guidance of scale s is two branches: (prompt, s) and (negative prompt, 1 - s); AND and edits are more.
    Branches compare by identity: a plan that returns the same object again says that nothing needs to be prepared anew.
    """

    condition: Condition
    weight: float


class ConditionPlan(Protocol):
    """Conditions change with progress (prompt editing, alternation, intervals): the branches in force at a step."""

    def at(self, step: int, total: int, level: NoiseLevel) -> Sequence[Branch]: ...


# What `Denoiser.prepare` returns: work done once per picture (text keys and values, adapters). Opaque to all but its maker.
Prepared = Any
# Called by attention with (place, weights (B, heads, Q, K)); what it returns, if anything, replaces the weights.
Probe = Callable[[str, Tensor], Tensor | None]


@runtime_checkable
class Denoise(Protocol):
    """The one call shape of every denoiser: a clean estimate from a noisy sample and its level.

    can: what this backend is able to do, out of {"grad", "probe"}; callers fall back to `plain` where they need more.
    """

    can: frozenset[str]

    def prepare(self, condition: Condition) -> Prepared: ...

    def __call__(self, x: Tensor, level: NoiseLevel, prepared: Prepared, probe: Probe | None = None) -> Tensor: ...


class TextEncoder(Protocol):
    """Texts -> `Encoded`. Empty texts are allowed and mean "unconditional"."""

    def encode(self, texts: Sequence[str]) -> Encoded: ...


class Codec(Protocol):
    """Pixels in [-1, 1] <-> latents of about unit scale. Sole owner of the scale factor.

    factor: pixels per latent along a side; channels: of the latent.
    """

    factor: int
    channels: int

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


# ---------------------------------------------------------------------------------------------------------------------
# Requests, artifacts, events


class Request(Frozen):
    """One picture asked for. Serialisable: the same JSON serves the command line, the web page and a worker process."""

    prompt: str = Field("", description="what to paint; empty paints unconditionally")
    negative: str = Field("", description="what to move away from")
    seed: int = Field(0, ge=0, lt=2**63, description="the picture's own random stream")
    size: tuple[int, int] | None = Field(None, description="width and height in pixels; None: the model's own")
    knobs: Mapping[str, Any] = Field(default_factory=dict, description="the painter's settings, checked by its Knobs")
    id: str = Field("", description="echoed in events; chosen by the caller")


class Provenance(Frozen):
    """All that is needed to paint a picture again, and to say afterwards which input differed."""

    request: Request
    knobs: dict[str, Any]  # fully resolved, defaults included
    painter: str  # family, such as "diffusion"
    model: str  # the name it was opened by
    fingerprint: str  # of the model's weights and recipe
    versions: dict[str, str]  # giverny, torch, python
    device: str
    precision: str
    backend: str
    threads: int
    batch: int  # how many pictures were painted together
    noise: str = "cpu"  # source of random numbers
    seconds: float = 0.0  # per picture, of its batch


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and where it came from. Shows itself in a notebook."""

    pixels: np.ndarray  # uint8, (H, W, 3)
    provenance: Provenance | None = None
    trace: tuple[np.ndarray, ...] = field(default=(), repr=False)  # clean estimates on the way, where asked for

    @property
    def size(self) -> tuple[int, int]:
        return int(self.pixels.shape[1]), int(self.pixels.shape[0])

    def _repr_png_(self) -> bytes:
        from .images import png_bytes

        return png_bytes(self.pixels)

    def save(self, path: Any) -> None:
        """Write as PNG (atomic), with provenance in its text chunks."""
        from .images import write_picture

        write_picture(path, self)


@dataclass(frozen=True)
class Started:
    id: str
    total: int | None


@dataclass(frozen=True)
class Progress:
    id: str
    step: int
    total: int | None
    preview: np.ndarray | None = None  # uint8 (H, W, 3), where previews were asked for


@dataclass(frozen=True)
class Done:
    id: str
    artifact: Picture


@dataclass(frozen=True)
class Failed:
    id: str
    reason: str


Event = Started | Progress | Done | Failed


@runtime_checkable
class Painter(Protocol):
    """Any maker of pictures. `paint` may be called by several threads at once; closing its iterator cancels the work."""

    family: str
    name: str
    fingerprint: str
    knobs: type[Knobs]

    def paint(self, requests: Sequence[Request], previews: bool = False, trace: bool = False) -> Iterator[Event]: ...


# ---------------------------------------------------------------------------------------------------------------------
# Training


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
    """A kind of maker, as its file in `painters` exports it under the name PAINTER.

    recipe: what a TOML file of this family is checked against; it has `family`, `name`, `title`, `licence` and `data`.
    tiny: a recipe that trains in about a second on toy shapes, for the contract tests.
    workshop: (recipe, source, cache folder, world, device) -> Workshop.
    open: (model folder, card, device, precision, backend name) -> Painter.
    """

    name: str
    recipe: type[Frozen]
    knobs: type[Knobs]
    tiny: Callable[[], Frozen]
    workshop: Callable[..., Workshop]
    open: Callable[..., Painter]


# ---------------------------------------------------------------------------------------------------------------------
# Judging


class Score(Frozen):
    """A number with its conditions. Without them it does not exist."""

    name: str
    value: float
    interval: tuple[float, float] | None = None  # 95 %
    conditions: dict[str, Any] = Field(default_factory=dict)  # n, reference, features, resize, seeds, ...


@dataclass(frozen=True, eq=False)
class Judged:
    """What a judge looks at: a picture tensor (C, H, W) in [-1, 1], the request it answers, and where it came from."""

    picture: Tensor
    request: Request | None = None
    source: Literal["painted", "real"] = "painted"


class Judge(Protocol):
    """Streams pictures into statistics and ends in a score: look at any number, in any order, then ask."""

    def look(self, samples: Iterable[Judged]) -> None: ...

    def score(self) -> Score: ...


