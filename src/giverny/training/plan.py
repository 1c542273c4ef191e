"""How long a run is and how fast it learns: a plan of steps, made from a recipe or from a time budget.

A budget in seconds becomes a number of steps by a short calibration. Machines drift, so the clock is read again at steps
that the plan itself names: after each of the first few, then ever more rarely, then ever more often towards the end,
where no later reading can make good a wrong guess. A plan is part of the saved state, and everything that follows from
it (learning rate, next reading, end) is a function of the plan and the step alone.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from ..base.contracts import Frozen

READINGS = 8  # an interval between two readings is at most this part of the steps done, and of the steps left
MEMORY = 20  # steps over which the pace is averaged
STALL = 4.0  # a step counts as at most this many usual ones: a laptop that slept is not a slow laptop
SAVES = 25  # states over a run, where the recipe does not say
PAUSES = 0.1  # of a budget, the most that validations and states may take, where the recipe does not say


class LoopRecipe(Frozen):
    """How long and how fast to learn. Steps are iterations; a batch is the global one, over all processes."""

    steps: int | None = Field(None, ge=1, description="iterations; None: as many as the time budget allows")
    batch: int = Field(128, ge=1, description="examples per iteration, over all processes and accumulated parts")
    accumulate: int = Field(1, ge=1, description="parts that a batch is computed in, to save memory")
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0, description="iterations over which the learning rate rises")
    decay: Literal["cosine", "linear", "constant"] = Field("cosine", description="of the learning rate, to 0 at the end")
    decay_from: float = Field(0.0, ge=0, lt=1, description="share of the run at which decay begins")
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.01, ge=0)
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; None: unlimited")
    average: float = Field(0.999, ge=0, lt=1, description="decay of the moving average of weights; 0: none")
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field("auto", description="auto: whichever measures faster")
    save_every: int | None = Field(None, ge=1, description="iterations between states; None: about 25 over the run")
    preview_every: int | None = Field(None, ge=1, description="iterations between previews; None: with each state")
    log_every: int = Field(10, ge=1)
    checkpoints: int = Field(0, ge=0, description="weights kept over the run, evenly spread, to choose from; 0: the last alone")
    seed: int = Field(0, ge=0)

    def rate(self, step: int, progress: float) -> float:
        """Multiplier of the learning rate at a step (from 0): linear rise x decay. progress: share of the run before it."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        done = min(1.0, max(0.0, (progress - self.decay_from) / (1 - self.decay_from)))
        fall = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[self.decay]
        return rise * fall


# Entries of a LoopRecipe that say how long to go on and what to write down, and change no step: a run may be resumed with
# others. Whoever names a stage by its recipe leaves them out.
PACE = frozenset({"steps", "save_every", "preview_every", "log_every", "checkpoints"})


class Plan(Frozen):
    """Steps in all, and what is needed to correct them as the clock runs. Replaced, never changed in place.

    Between two readings of the clock the run's progress goes evenly from `from_progress` at `from_step` to 1 at `total`,
    so the learning rate has no jumps where a plan is corrected.
    """

    total: int = Field(ge=0)
    save_every: int = Field(ge=1)
    budget: float | None = None  # seconds for the whole run; None: the steps are fixed
    from_step: int = 0
    from_progress: float = 0.0
    from_seconds: float = 0.0
    next_reading: int = 0  # finished steps at which the clock is read again
    pace: float = 0.0  # seconds a step takes
    pause: float = 0.0  # seconds a validation with its state takes

    @classmethod
    def of_steps(cls, steps: int, save_every: int | None) -> Plan:
        return cls(total=steps, save_every=save_every or max(1, steps // SAVES))

    @classmethod
    def of_budget(cls, budget: float, seconds: float, pace: float, save_every: int | None) -> Plan:
        """seconds: already spent; pace: seconds a step is expected to take. At least one step is planned."""
        start = cls(total=1, save_every=save_every or 1, budget=budget, pace=pace)
        return start.corrected(0, seconds, save_every)

    def progress(self, step: int) -> float:
        """Share of the run that is done when `step` steps are: 0 at the start, 1 at the end, never falling."""
        if step >= self.total:
            return 1.0
        return self.from_progress + (1 - self.from_progress) * (step - self.from_step) / (self.total - self.from_step)

    def timed(self, step: int, seconds: float) -> Plan:
        """The plan after `step` finished steps, the last of which took so many seconds, pauses not counted."""
        if self.budget is None:
            return self
        usual = min(seconds, STALL * self.pace) if self.pace else seconds
        return self.model_copy(update={"pace": self.pace + (usual - self.pace) / min(step, MEMORY)})

    def paused(self, seconds: float) -> Plan:
        """The plan after a validation with its state, which took so many seconds."""
        if self.budget is None:
            return self
        return self.model_copy(update={"pause": (self.pause + seconds) / 2 if self.pause else seconds})

    def is_due(self, step: int, seconds: float) -> bool:
        """Whether the clock is to be acted upon: at the planned readings, and where steps take twice as long as planned."""
        if self.budget is None or step >= self.total:
            return False
        expected = (self.next_reading - self.from_step) * self._per_step() + self.pause
        return step >= self.next_reading or seconds > self.from_seconds + 2 * expected

    def corrected(self, step: int, seconds: float, save_every: int | None) -> Plan:
        """The steps that are left fitted to the time that is left, after `step` steps and so many seconds.

        The last state's own time is kept back. No time left means that the run ends here (but not before its first step).
        """
        if self.budget is None:
            return self
        left = self.budget - seconds - self.pause
        steps = max(0 if step else 1, math.floor(left / self._per_step()) if self._per_step() > 0 else 1)
        total = step + steps
        if save_every is None:  # rarely enough that pauses stay a small part of the time
            save_every = max(1, total // SAVES, math.ceil(self.pause / (PAUSES * self.pace)) if self.pace else 1)
        return self.model_copy(
            update={
                "total": total,
                "save_every": save_every,
                "from_step": step,
                "from_progress": self.progress(step) if step else 0.0,
                "from_seconds": seconds,
                "next_reading": step + max(1, min(step, steps) // READINGS),
            }
        )

    def resumed(self, step: int, steps: int | None, budget: float | None, seconds: float, save_every: int | None) -> Plan:
        """The plan to go on with after `step` steps and so many seconds: the same one, unless something else is wanted.

        With another number of steps the learning rate goes on as if they had been planned from the start. With another
        budget, progress becomes the share of the new one that is spent, and the steps are fitted to it.
        """
        if steps is not None:
            same = self.budget is None and steps == self.total
            return self if same and save_every in (None, self.save_every) else Plan.of_steps(steps, save_every)
        if budget is None or budget == self.budget:
            return self
        if self.budget is None or not self.pace:  # it was planned in steps: the next step is timed, then the plan is made
            pace = seconds / max(1, step)
        else:
            pace = self.pace
        spent = min(seconds / budget, 1.0)
        begun = Plan(total=step + 1, save_every=1, budget=budget, pace=pace, pause=self.pause)
        return begun.corrected(step, seconds, save_every).model_copy(update={"from_progress": spent})

    def _per_step(self) -> float:
        return self.pace + self.pause / self.save_every
