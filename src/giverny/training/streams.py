"""Random numbers of training: each draw depends on (seed, step, name) and on nothing else.

So a resumed run needs no generator state, and a run spread over processes or micro-batches draws the same numbers as one
process with the whole batch: every draw is made for the global batch, and each asks for its own rows of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.runtime import derive_seed


@dataclass(frozen=True)
class StepStreams:
    """contracts.Streams of one step. rows: first row and number of rows, out of `total` in the global batch.

    progress: share of the run that is done before this step; no draw depends on it.
    """

    seed: int
    step: int
    first: int
    total: int
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    progress: float = 0.0

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, self.step, name))

    def _own(self, whole: Tensor, rows: int) -> Tensor:
        return whole[self.first : self.first + rows].to(self.device)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        whole = torch.randn((self.total, *shape[1:]), generator=self._generator(name), dtype=self.dtype)
        return self._own(whole, shape[0])

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        whole = torch.rand((self.total, *shape[1:]), generator=self._generator(name), dtype=self.dtype)
        return self._own(whole, shape[0])

    def spread(self, name: str, rows: int) -> Tensor:
        offset = torch.rand(1, generator=self._generator(name), dtype=torch.float64)
        whole = (offset + torch.arange(self.total, dtype=torch.float64) / self.total) % 1
        return self._own(whole[torch.randperm(self.total, generator=self._generator(name + ".order"))], rows)
