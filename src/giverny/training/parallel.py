"""Data-parallel training over torch.distributed: who am I, and how gradients and features meet.

Gradients are averaged by one all-reduce per step over a flat buffer. Wrapping networks (DDP) would need each turn of an
objective to be one network's forward pass, which a GAN's or CLIP's is not; at our sizes the overlap it buys is small.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """rank: this process, of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """One process writes files and shows progress."""
        return self.rank == 0

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over processes; one that only some of them have counts as zero elsewhere."""
        if self.size == 1:
            return
        wanted = list(parameters)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
        there = torch.tensor([p.grad is not None for p in wanted], dtype=grads[0].dtype, device=grads[0].device)
        flat = torch.cat([*(g.reshape(-1) for g in grads), there])
        torch.distributed.all_reduce(flat)
        *sums, there = flat.split([*(g.numel() for g in grads), len(wanted)])
        for p, part, count in zip(wanted, sums, there.tolist(), strict=True):
            p.grad = (part / self.size).view_as(p) if count else None  # None: the optimiser leaves it alone

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by the leader's."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.size == 1:
            return flag
        box = torch.tensor(float(flag))
        torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MAX)
        return bool(box)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over processes of each scalar; all processes must hold the same names in the same order."""
        if self.size == 1:
            return values
        both = torch.tensor(list(values.values()), dtype=torch.float64)
        torch.distributed.all_reduce(both)
        return dict(zip(values, (both / self.size).tolist(), strict=True))

    def agree(self, value: float) -> float:
        """The leader's value, for decisions read off a clock."""
        if self.size == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        torch.distributed.broadcast(box, 0)
        return float(box)

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all processes in rank order, as many of each.

        The gradient of a process's rows is the sum of what all processes' losses say of them: with the same loss in
        every process, `average` then makes of it what one process with all rows would have.
        """
        return x if self.size == 1 else _Gather.apply(x, self.rank, self.size)

    def wait(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, rank: int, size: int) -> Tensor:
        context.rows = slice(rank * len(x), (rank + 1) * len(x))
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size)]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        whole = slopes[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(whole)
        return whole[context.rows], None, None


@contextmanager
def world() -> Iterator[World]:
    """The world this process was started in: torchrun's, or one process alone."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    # Both at once: gradients on GPUs meet through NCCL, clock readings and flags on the CPU through gloo.
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()
