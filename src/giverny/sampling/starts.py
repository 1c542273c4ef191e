"""Painting over a picture (SDEdit, Meng et al. 2021, arXiv 2108.01073): how many steps a strength means, in two programs."""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..base.contracts import Levels
from ..base.errors import InputError, choose

STARTS = ("webui", "webui_exact", "diffusers")


class Start(NamedTuple):
    """Spread `steps` over the levels, and leave out the first `skip` of them."""

    steps: int
    skip: int

    @property
    def run(self) -> int:
        """Steps that are run."""
        return self.steps - self.skip


def image_start(steps: int, strength: float, program: Literal["webui", "webui_exact", "diffusers"] = "webui") -> Start:
    """Where a run of so many steps begins on a picture. strength: 0 (the picture as it is) to 1 (painted anew).

    webui        AUTOMATIC1111: int(min(strength, 0.999) * steps) + 1 of the steps;
    webui_exact  AUTOMATIC1111 with steps of the second pass given, or its option to do exactly the steps asked for: all of
                 them, out of int(steps / min(strength, 0.999));
    diffusers    int(strength * steps), which may be none.
    """
    choose(program, STARTS, "way to count the steps over a picture")
    if steps < 1 or not 0 <= strength <= 1:
        raise InputError("1 step or more, and a strength from 0 to 1", f"{steps} steps, strength {strength}")
    if program == "diffusers":
        return Start(steps, steps - min(int(steps * strength), steps))
    most = min(strength, 0.999)
    if program == "webui":
        return Start(steps, steps - int(most * steps) - 1)
    if not strength:
        raise InputError("a strength above 0", "0", "at 0 no number of steps leads to the picture")
    spread = int(steps / most)
    return Start(spread, spread - steps)


def started(levels: Levels, skip: int) -> Levels | None:
    """A run without its first `skip` steps; None where that leaves none."""
    return Levels(levels.alpha[skip:], levels.sigma[skip:]) if skip < levels.steps else None
