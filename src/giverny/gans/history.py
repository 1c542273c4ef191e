"""Pictures that a generator made before, shown to its critic among the new ones (Shrivastava et al. 2017, section 2.3).

What is kept is a module's buffers: part of a run's state, put back where an update is taken back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class History(nn.Module):
    """At most `size` pictures of one shape (C, H, W). Size 0 keeps none and hands back what it is given."""

    pictures: Tensor
    count: Tensor

    def __init__(self, size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("pictures", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # how many there are

    @torch.no_grad()
    def exchange(self, fresh: Tensor, draws: Tensor) -> Tensor:
        """What the critic is shown for these new pictures (B, C, H, W), without their gradient.

        Until it is full, each is kept and shown. Then each is shown as it is, or with p = 0.5 takes the place of a kept one,
        which is shown instead. draws: (B, 2) uniform in 0..1: whether, and which.
        """
        if not self.size:
            return fresh.detach()
        shown, there = [], int(self.count)
        for picture, (whether, which) in zip(fresh.detach(), draws.tolist(), strict=True):
            if there < self.size:
                self.pictures[there] = picture
                there += 1
                shown.append(picture)
            elif whether < 0.5:
                place = min(int(which * self.size), self.size - 1)
                shown.append(self.pictures[place].to(picture.dtype, copy=True))
                self.pictures[place] = picture
            else:
                shown.append(picture)
        self.count.fill_(there)
        return torch.stack(shown)
