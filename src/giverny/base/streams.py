"""Where random numbers come from: one stream a seed, by the name of its source. All draw float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .errors import choose
from .philox import Philox


class Stream(Protocol):
    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next draw: unit noise, float32 (shape) on the CPU."""
        ...


class TorchStream:
    """torch's own numbers on the CPU (Mersenne Twister). It draws fewer than 16 numbers by another formula."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self._generator, dtype=torch.float32)


# "cpu": infotext "RNG: CPU"; "nv": "RNG: NV", and the default of pictures made on an NVIDIA card.
SOURCES: dict[str, Callable[[int], Stream]] = {"cpu": TorchStream, "nv": Philox}


def stream(seed: int, source: str = "cpu") -> Stream:
    """A stream that begins at a seed. Raises InputError for an unknown source."""
    return SOURCES[choose(source, SOURCES, "source of noise")](seed)
