"""The one training loop. It knows `Objective` and nothing of diffusion, GANs or CLIP.

It owns steps, learning rate, precision, checkpoints, resume, logging, previews, data-parallel runs and the clock; what one
iteration does to the weights is in updates.py. It is a generator: the caller pulls one `Report` per step and stops by
closing it; whatever moment a run is killed at, it resumes from its last state as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.contracts import Batch, Objective, Turn
from ..base.errors import InputError
from ..base.files import atomic_write, fingerprint
from ..base.images import png_bytes, to_pixels
from ..base.runtime import derive_seed, interrupts_held_back
from ..base.sheet import grid
from . import state
from .log import RunLog
from .parallel import World
from .plan import PACE, Plan
from .plan import LoopRecipe as LoopRecipe
from .streams import StepStreams
from .updates import Updates

PATIENCE = 20  # updates in a row that may be non-finite before a run stops
TRIALS = 3  # gradients that are timed before a run,
LONG = 20.0  # or fewer, where they take more seconds than this


@dataclass(frozen=True)
class Report:
    """What is known after a finished step."""

    step: int
    total: int
    seconds: float  # of the whole run so far
    values: dict[str, float] = field(default_factory=dict)
    note: str = ""


def find_run(folder: Path, recipe: LoopRecipe, identity: str, resume: bool) -> state.Counters | None:
    """How far the run in this folder is; None where a new one may begin.

    Raises InputError where there is a run and `resume` is not asked for, where it is one of another recipe, and where it
    already has more steps than the recipe wants.
    """
    found = state.read_counters(folder / "state")
    if found is None:
        return None
    if not resume:
        raise InputError("a fresh folder, or resume", f"{folder}, which holds a run", "Resume it, or choose another folder.")
    if found.recipe != _name(recipe, identity):
        raise InputError(
            "a run of the same recipe and data to resume", f"{folder}, which holds a run of another",
            "Resume with the recipe as it was, choose another folder, or remove this one.",
        )  # fmt: skip
    if recipe.steps is not None and recipe.steps < found.step:
        raise InputError(f"{found.step} steps or more", str(recipe.steps), f"That many are done in {folder}.")
    return found


def _name(recipe: LoopRecipe, identity: str) -> str:
    return fingerprint([recipe.model_dump(exclude=set(PACE)), identity])


@dataclass
class Trainer:
    """One run of an objective. `run()` yields reports; `averages` holds the averaged weights afterwards.

    batches(start) must give the batches of steps start, start + 1, ... the same way every time; each process gets its own
    rows. `validation` is a fixed batch. `identity` names what is trained on what: a state of something else is refused.
    A resumed run keeps its plan unless the recipe's steps, or the budget, are others than before.
    """

    objective: Objective
    batches: Callable[[int], Iterator[Batch]]
    recipe: LoopRecipe
    folder: Path
    validation: Batch | None = None
    budget: float | None = None  # seconds for the whole run, over all resumptions; None: the recipe's steps
    resume: bool = False
    identity: str = ""
    world: World = field(default_factory=World)
    device: torch.device = torch.device("cpu")
    clock: Callable[[], float] = time.monotonic
    spent: float = 0.0  # seconds of the budget that went into preparing this run

    def __post_init__(self) -> None:
        if self.recipe.steps is not None:
            self.budget = None
        parts = self.world.size * self.recipe.accumulate
        if self.recipe.batch % parts:
            raise InputError(f"a batch divisible by processes x accumulate = {parts}", str(self.recipe.batch))
        self.updates = Updates(self.objective, self.recipe, self.world, self.device)
        self.counters = state.Counters(plan=Plan.of_steps(self.recipe.steps or 1, self.recipe.save_every), precision="")
        self._origin = self.clock() - self.spent  # where the run's clock stood at 0
        self._mark = self.clock()  # when the last step, or what was due after it, ended
        self._took = 0.0  # seconds of the last step
        self._writing = 0.0  # seconds that the last state took to write
        self._saved = 0  # step of the last state

    @property
    def turns(self) -> list[Turn]:
        return self.updates.turns

    @property
    def averages(self) -> dict[str, dict[str, Tensor]]:
        """{module: {tensor name: moving average}}; empty where the recipe's decay is 0."""
        return self.updates.averages

    @property
    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return self.updates.optimisers

    @property
    def seconds(self) -> float:
        """Spent on this run so far, over all resumptions; what went into preparing them is counted."""
        return self.clock() - self._origin

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Generator[Report, None, None]:
        """Train to the end of the plan. Closing the iterator stops after the current step, with its state saved.

        Raises InputError where the folder holds another run, and where weights or 20 updates in a row are not finite;
        the state that is then on disk is the last good one.
        """
        self._begin()
        log = RunLog(self.folder, self.counters.log_bytes, self.counters.step) if self.world.leads else None
        if log and self.counters.step == 0 and (self.budget is not None or self.recipe.precision == "auto"):
            self._save(log)  # a plan and a precision that were measured are kept from the first moment
        batches = self.batches(self.counters.step)
        self._mark = self.clock()
        try:
            while self.counters.step < self.counters.plan.total:
                yield self._iterate(batches, log)
        finally:
            if log and self.counters.step > self._saved and not self.updates.torn and state.finite(self._tensors()):
                self._save(log)
            if log:
                log.close()
            if hasattr(batches, "close"):
                batches.close()

    def _begin(self) -> None:
        """Counters and weights as they were left, or a new run with its precision and plan."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = find_run(self.folder, self.recipe, self.identity, self.resume)
        if found is None and self.recipe.steps is None and self.budget is None:
            raise InputError("steps or a time budget", "neither", "Set one of them.")
        if self.world.leads:
            state.forget_torn(self.folder)
            state.forget_later(self.folder, found.step if found is not None else 0)
        if found is not None:
            self._go_on()
        else:
            self.counters = self.counters.model_copy(update={"recipe": _name(self.recipe, self.identity)})
        self.updates.begin()
        if found is None:
            self._measure()

    def _go_on(self) -> None:
        latest = state.read_latest(self.folder / "state")
        assert latest is not None  # find_run has read its counters
        tensors, counters = latest
        try:
            state.restore(tensors, self.objective.modules, self.averages, self.optimisers)
        except (RuntimeError, KeyError, ValueError) as error:
            why = f"{self.folder}, whose tensors do not ({str(error).splitlines()[0]})"
            raise InputError("a state that fits the networks", why, "Resume with the version that wrote it.") from error
        steps, save_every = self.recipe.steps, self.recipe.save_every
        plan = counters.plan.resumed(counters.step, steps, self.budget, counters.seconds, save_every)
        self.counters, self.budget, self._saved = counters.model_copy(update={"plan": plan}), plan.budget, counters.step
        self._origin -= counters.seconds

    # -- one step ----------------------------------------------------------------------------------------------------

    def _iterate(self, batches: Iterator[Batch], log: RunLog | None) -> Report:
        """One step, and what is due after it: a look at the clock, a line in the log, a validation, a state."""
        batch = self.updates.ready(next(batches))
        before = self.counters
        with interrupts_held_back():
            progress = before.plan.progress(before.step)
            rate = self.recipe.rate(before.step, progress)
            values = self.updates.step(before.step, batch, rate, before.precision, progress) | {"rate": rate}
            skipped = int(values["skipped"])
            update = {
                "step": before.step + 1,
                "skipped": before.skipped + skipped,
                "skipped_in_a_row": before.skipped_in_a_row + 1 if skipped else 0,
            }
            self.counters = before.model_copy(update=update)
        self._read_clock()
        values, row = self.world.mean(values), self.counters.skipped_in_a_row
        if row >= PATIENCE:
            raise InputError(
                "finite losses", f"{row} updates in a row up to step {self.counters.step} that were not",
                "The weights are kept as they were before these. Train anew with a lower learning rate, or in float32.",
            )  # fmt: skip
        note = self._write_down(values, log)
        if log:
            self._keep(progress)
        return Report(self.counters.step, self.counters.plan.total, self.counters.seconds, values, note)

    def _read_clock(self) -> None:
        """Time the step, and correct the plan where that is due; all processes follow the leader's clock."""
        now = self.clock()
        self._took, self._mark = now - self._mark, now
        step, plan, seconds = self.counters.step, self.counters.plan, now - self._origin
        if plan.budget is not None:
            plan = plan.timed(step, self._took)
            if self.world.any(plan.is_due(step, seconds)):
                agreed = {"pace": self.world.agree(plan.pace), "pause": self.world.agree(plan.pause)}
                seconds = self.world.agree(seconds)
                plan = plan.model_copy(update=agreed).corrected(step, seconds, self.recipe.save_every)
        self.counters = self.counters.model_copy(update={"plan": plan, "seconds": seconds})

    def _write_down(self, values: dict[str, float], log: RunLog | None) -> str:
        """Log, validate, preview and save, each where it is due; the leader does it and the others wait."""
        step, plan, every = self.counters.step, self.counters.plan, self.recipe.preview_every
        ends = step >= plan.total
        save = ends or step >= self.counters.looked + plan.save_every
        show = save if every is None else ends or step % every == 0
        record: dict[str, float] = {}
        if save or show:
            record = self._look(validate=save, show=show) if self.world.leads else {}
        if log and (record or ends or step == 1 or step % self.recipe.log_every == 0):
            log.write(step, {f"train/{k}": v for k, v in values.items()} | {"time/step": self._took} | record)
        if save:
            self.updates.share_buffers()
            plan = plan.paused(self.clock() - self._mark + self._writing)
            self.counters = self.counters.model_copy(update={"looked": step, "plan": plan})
            if log:
                self._save(log)
        if save or show:
            self.world.wait()
            self._mark = self.clock()
        return ", ".join(f"{k} {v:.4f}" for k, v in record.items())

    # -- before the first step -----------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """The faster precision where the recipe leaves it open, and the first plan of a budget."""
        wanted = self.recipe.precision
        seconds = {p: [math.inf] for p in (("float32", "bfloat16") if wanted == "auto" else (wanted,))}
        if wanted == "auto" or self.budget is not None:
            batches = self.batches(0)
            batch, began = self.updates.ready(next(batches)), self.clock()
            for _ in range(TRIALS):
                for precision, measured in seconds.items():
                    measured.append(self._time(batch, precision))
                if self.world.any(self.clock() - began > LONG):
                    break
            if hasattr(batches, "close"):
                batches.close()
        pace = {precision: self.world.agree(min(measured)) for precision, measured in seconds.items()}
        # Reduced precision only where it pays.
        precision = "bfloat16" if wanted == "auto" and pace["bfloat16"] < 0.95 * pace["float32"] else next(iter(pace))
        update: dict[str, Any] = {"precision": precision}
        if self.budget is not None:
            spent = self.world.agree(self.clock() - self._origin)
            update |= {
                "plan": Plan.of_budget(self.budget, spent, pace[precision], self.recipe.save_every),
                "seconds": spent,
            }
        self.counters = self.counters.model_copy(update=update)

    def _time(self, batch: Batch, precision: str) -> float:
        try:
            return self.updates.time(batch, precision, self.clock)
        except RuntimeError:
            if precision != "bfloat16" or self.recipe.precision != "auto":
                raise
            return math.inf  # not every operation has a bfloat16 form everywhere

    def results(self) -> dict[str, dict[str, Tensor]]:
        """{module: tensors}: averaged where averages are kept; float32 also where float64 was trained in."""
        modules = {k: dict(m.state_dict()) for k, m in self.objective.modules.items()} | self.averages
        whole = {torch.float64: torch.float32}
        return {name: {k: v.to(whole.get(v.dtype, v.dtype)) for k, v in part.items()} for name, part in modules.items()}

    # -- files -------------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        return state.collect(self.objective.modules, self.averages, self.optimisers)

    def _save(self, log: RunLog) -> None:
        tensors = self._tensors()
        if not state.finite(tensors):
            raise InputError(
                "finite weights to save", f"others at step {self.counters.step}",
                f"The state of step {self._saved} is the last good one. Train anew with a lower learning rate, or in float32.",
            )  # fmt: skip
        began = self.clock()
        self.counters = self.counters.model_copy(update={"log_bytes": log.settle(), "seconds": began - self._origin})
        state.write(self.folder / "state", tensors, self.counters)
        self._writing, self._saved = self.clock() - began, self.counters.step

    def _keep(self, before: float) -> None:
        """A checkpoint where one is due: of the modules of which averages are kept. before: progress before the last step."""
        wanted, step = self.recipe.checkpoints, self.counters.step
        if math.floor(wanted * self.counters.plan.progress(step)) > math.floor(wanted * before):
            made = self.results()
            names = self.objective.averaged or made
            flat = {f"{name}/{key}": value for name in names for key, value in made[name].items()}
            if state.finite(flat):
                state.keep_checkpoint(self.folder, step, flat)
            self._mark = self.clock()

    def _look(self, validate: bool, show: bool) -> dict[str, float]:
        """Validation with fixed noise, and a picture of how far the averaged weights are."""
        if self.validation is None:
            return {}
        batch = self.updates.ready(self.validation)
        rows = len(next(iter(batch.values())))
        streams = StepStreams(derive_seed("validation", self.recipe.seed), 0, 0, rows, self.device, self.updates.dtype)
        with self.updates.averaged(), torch.no_grad():
            values = self.objective.validate(batch, streams) if validate else {}
            shown = self.objective.preview(batch, streams) if show else None
        if shown is not None:
            pictures = png_bytes(grid(list(to_pixels(shown)), columns=8, scale=2))
            atomic_write(self.folder / "previews" / f"{self.counters.step:07d}.png", pictures)
        return {f"valid/{k}": float(v) for k, v in values.items()}
