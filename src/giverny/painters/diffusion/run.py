"""What is told of pictures that are painted together: their moments, and which of them are lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ...base.contracts import Failed, Request
from .guard import spoilt


@dataclass(eq=False)
class Run:
    """The state of one painting of B requests. total: steps in all; None where the sampler finds out as it goes."""

    requests: Sequence[Request]
    total: int | None
    previews: bool
    trace: bool
    lost: set[int] = field(default_factory=set)  # rows whose numbers are spoilt; the others go on
    told: int = 0  # steps so far
    moments: list[np.ndarray] = field(default_factory=list)  # (B, H, W, 3) each, where they are traced

    @property
    def going(self) -> bool:
        return len(self.lost) < len(self.requests)

    def left(self) -> list[tuple[int, Request]]:
        """The rows that are still painted."""
        return [(i, request) for i, request in enumerate(self.requests) if i not in self.lost]

    @property
    def place(self) -> str:
        """The step that has just been made."""
        return f"step {self.told}" + (f" of {self.total}" if self.total else "")

    def lose(self, bad: Tensor, stage: str) -> Iterator[Failed]:
        """Tell, once of each, of the rows that are spoilt here. bad: bool (B,)."""
        spoiled = bad.tolist()
        for i, request in self.left():
            if spoiled[i]:
                self.lost.add(i)
                yield Failed(request.id, spoilt(stage))

    def note(self, pixels: Callable[[Tensor], np.ndarray], x: Tensor) -> None:
        """Keep this moment, where they are traced."""
        if self.trace:
            self.moments.append(pixels(x))
