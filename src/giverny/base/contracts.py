"""The small contracts everything else works on.

One sentence: every image generator is a painter behind `Painter.paint(requests) -> events`; samplers, guidance, training,
measuring and doors work on the protocols below and never on a particular network.

Conventions used everywhere:
- pictures as tensors are float, shape (B, C, H, W), values in [-1, 1]; pictures as arrays are uint8, shape (H, W, C);
- a noised sample is x = alpha * clean + sigma * noise (`NoiseLevel`); k-diffusion's sigma is sigma / alpha;
- sizes are (width, height) wherever a person writes them, (H, W) wherever a tensor has them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from .knobs import Frozen as Frozen
from .knobs import Knobs as Knobs
from .learning import Batch as Batch
from .learning import Family as Family
from .learning import Objective as Objective
from .learning import Sample as Sample
from .learning import Source as Source
from .learning import StageJob as StageJob
from .learning import Streams as Streams
from .learning import Trained as Trained
from .learning import Turn as Turn
from .learning import Workshop as Workshop
from .picture import BatchRow as BatchRow
from .picture import Picture as Picture
from .picture import Provenance as Provenance
from .picture import Request as Request
from .picture import Start as Start
from .picture import Toward as Toward
from .picture import Variation as Variation

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
    def rows(self) -> int | None:
        """How many pictures are told about; None where nothing is told."""
        return next((len(part) for part in (self.vectors, self.pooled, self.channels) if part is not None), None)

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

    def to(self, device: torch.device, dtype: torch.dtype) -> Condition:
        """On this device; numbers in this dtype."""
        moved = [None if part is None else part.to(device, dtype) for part in (self.vectors, self.pooled, self.channels)]
        return Condition(moved[0], None if self.mask is None else self.mask.to(device), moved[1], moved[2])

    def split(self, rows: Sequence[int]) -> Iterator[Condition]:
        """The reverse of `join`: conditions of so many rows each."""
        start = 0
        for count in rows:
            parts = (self.vectors, self.mask, self.pooled, self.channels)
            yield Condition(*(None if part is None else part[start : start + count] for part in parts))
            start += count


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

    A condition may have k times the sample's rows (k branches of guidance, branch after branch): then so has the estimate.

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
    """Any maker of pictures. `paint` may be called by several threads at once; closing its iterator cancels the work.

    A painter that follows optional parts of a request (`Request.asks`) names them in an attribute `can: frozenset[str]`. One
    without that attribute follows none, and `pipelines.walk.able` keeps such requests from it. Those that it cannot do without
    it names in `needs: frozenset[str]`: a request that lacks one fails.
    """

    family: str
    name: str
    fingerprint: str
    knobs: type[Knobs]

    def paint(self, requests: Sequence[Request], previews: bool = False, trace: bool = False) -> Iterator[Event]: ...


# ---------------------------------------------------------------------------------------------------------------------
# Judging


class Score(Frozen):
    """A number with its conditions. Without them it does not exist."""

    name: str
    value: float
    interval: tuple[float, float] | None = None  # 95 %
    conditions: dict[str, Any] = Field(default_factory=dict)  # n, reference, features, resize, seeds, ...


class Instrument(Protocol):
    """A frozen network that looks at pictures, together with how they are brought to it.

    conditions: whatever moves its numbers (layer, weights, resizer, size), for the conditions of a score. The same picture
    has the same features whatever it is looked at together with.
    """

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    def conditions(self) -> dict[str, Any]: ...

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 1 or 3), all of one size -> features float32 (B, width)."""
        ...
