"""The one training loop. It knows `Objective` and nothing of diffusion, GANs or CLIP.

It owns steps, learning rate, precision, accumulation, clipping, averages, checkpoints, resume, logging, previews, the
non-finite guard, data-parallel runs and the clock. It is a generator: the caller pulls one `Report` per step and stops by
closing it; whatever moment a run is killed at, it resumes from its last state as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..base.contracts import Batch, Frozen, Objective, Turn
from ..base.errors import InputError
from ..base.files import fingerprint
from ..base.images import grid, png_bytes, to_pixels
from ..base.files import atomic_write
from ..base.runtime import derive_seed
from . import state
from .log import RunLog
from .parallel import World
from .streams import StepStreams

PATIENCE = 20  # updates in a row that may be non-finite before a run stops


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
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Report:
    """What is known after a finished step."""

    step: int
    total: int
    seconds: float  # of the whole run so far
    values: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass
class Trainer:
    """One run of an objective. `run()` yields reports; `averages` holds the averaged weights afterwards.

    batches(start) must give the batches of steps start, start + 1, ... the same way every time. `validation` is a fixed
    batch. `identity` names what is trained on what: a state of something else is refused.
    """

    objective: Objective
    batches: Callable[[int], Iterator[Batch]]
    recipe: LoopRecipe
    folder: Path
    validation: Batch | None = None
    budget: float | None = None  # seconds
    resume: bool = False
    identity: str = ""
    world: World = field(default_factory=World)
    device: torch.device = torch.device("cpu")
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.recipe.steps is not None:
            self.budget = None
        if self.recipe.steps is None and self.budget is None:
            raise InputError("steps or a time budget", "neither", "Set one of them.")
        parts = self.world.size * self.recipe.accumulate
        if self.recipe.batch % parts:
            raise InputError(f"a batch divisible by processes x accumulate = {parts}", str(self.recipe.batch))
        self.turns = list(self.objective.turns())
        self.optimisers = {t.name: self._optimiser(t) for t in self.turns}
        self.averages = {
            name: {k: v.detach().clone() for k, v in self.objective.modules[name].state_dict().items()}
            for name in (self.objective.averaged if self.recipe.average else ())
        }
        self.counters = state.Counters(total=self.recipe.steps or 1, save_every=self.recipe.save_every or 1, precision="")

    def _optimiser(self, turn: Turn) -> torch.optim.Optimizer:
        matrices = [p for p in turn.parameters if p.dim() > 1]
        rest = [p for p in turn.parameters if p.dim() <= 1]  # biases and norms are not decayed
        groups = [{"params": matrices, "weight_decay": self.recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        rate = turn.learning_rate or self.recipe.learning_rate
        fused = self.recipe.precision != "float64"
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=turn.betas or self.recipe.betas, fused=fused)

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Report]:
        """Train to the end of the plan. Closing the iterator stops after the current step, with its state saved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._begin()
        log = RunLog(self.folder, self.counters.log_bytes, self.counters.step) if self.world.leads else None
        batches = self.batches(self.counters.step)
        saved, bad, origin = self.counters.step, 0, self.clock() - self.counters.seconds
        try:
            while self.counters.step < self.counters.total:
                began = self.clock()
                values = self._step(next(batches))
                bad = bad + 1 if values["skipped"] else 0
                if bad >= PATIENCE:
                    raise InputError(
                        "finite losses", f"{bad} non-finite updates in a row up to step {self.counters.step}",
                        f"The last good state is step {saved}. Lower the learning rate or use precision float32.",
                    )
                step = self.counters.step + 1
                self.counters = self.counters.model_copy(
                    update={"step": step, "seconds": self.clock() - origin, "skipped": self.counters.skipped + int(values["skipped"])}
                )
                values = self.world.mean(values)
                if log and (step % self.recipe.log_every == 0 or step == self.counters.total or step == 1):
                    log.write(step, {f"train/{k}": v for k, v in values.items()} | {"time/step": self.clock() - began})
                note = ""
                if step % self.counters.save_every == 0 or step >= self.counters.total:
                    self._replan(origin)
                    note = self._save(log)
                    saved = step
                yield Report(step, self.counters.total, self.counters.seconds, values, note)
        finally:
            if self.counters.step > saved and state.finite(self._tensors()):
                self._save(log, look=False)
            if log:
                log.close()
            if isinstance(batches, Iterator) and hasattr(batches, "close"):
                batches.close()

    def _begin(self) -> None:
        identity = fingerprint([self.recipe.model_dump(exclude={"steps", "log_every", "preview_every", "save_every"}), self.identity])
        found = state.read_latest(self.folder / "state") if self.resume else None
        if found is not None:
            tensors, counters = found
            if counters.recipe != identity:
                raise InputError(
                    "a run of the same recipe and data to resume", f"{self.folder} holds another one",
                    "Start in another folder, or without --resume.",
                )
            state.restore(tensors, self.objective.modules, self.averages, self.optimisers)
            self.budget = counters.budget  # the clock of the run that is gone on with
            if self.recipe.steps is not None:
                counters = counters.model_copy(update={"total": self.recipe.steps})
            self.counters = counters
            return
        for old in (self.folder / "state").glob("state-*.safetensors"):
            old.unlink()
        precision = self._choose_precision()
        total = self.recipe.steps or 1
        self.counters = state.Counters(
            total=total, save_every=self.recipe.save_every or max(1, total // 25), precision=precision, recipe=identity, budget=self.budget
        )
        if self.budget is not None:
            self._calibrate()

    # -- one step ----------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> dict[str, float]:
        """All turns of one iteration. Returns logged values; `skipped` is 1 where an update was not finite."""
        step, values = self.counters.step, {"skipped": 0.0}
        for name in self.objective.modules:
            self.objective.modules[name].train()
        rate = self._rate(step)
        parts = self._parts(batch)
        scratch: list[dict[str, Any]] = [{} for _ in parts]
        for turn in self.turns:
            if step % turn.every:
                continue
            totals = self._gradients(turn, parts, scratch)
            self.world.average(turn.parameters)
            norm = torch.nn.utils.clip_grad_norm_(turn.parameters, self.recipe.clip or math.inf)
            if bool(torch.isfinite(norm)) and all(math.isfinite(v) for v in totals.values()):
                optimiser = self.optimisers[turn.name]
                for group in optimiser.param_groups:
                    group["lr"] = (turn.learning_rate or self.recipe.learning_rate) * rate
                optimiser.step()
            else:
                values["skipped"] = 1.0
            prefix = "" if len(self.turns) == 1 else turn.name + "."
            values |= {prefix + k: v for k, v in totals.items()} | {prefix + "norm": float(norm)}
        values["rate"] = rate
        if not values["skipped"]:
            self._average(step)
        return values

    def _gradients(self, turn: Turn, parts: list[Batch], scratch: list[dict[str, Any]]) -> dict[str, float]:
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        rows = self.recipe.batch // self.world.size // len(parts)
        for i, part in enumerate(parts):
            first = self.world.rank * rows * len(parts) + i * rows
            seed = derive_seed(self.recipe.seed, self.counters.step, turn.name, first)
            with torch.random.fork_rng(devices=[]), self._autocast(turn):
                torch.manual_seed(seed)  # dropout inside networks; restored by fork_rng
                streams = StepStreams(self.recipe.seed, self.counters.step, first, self.recipe.batch, self.device, self._dtype())
                losses = self.objective.loss(turn.name, part, scratch[i], streams)
            (losses["loss"] / len(parts)).backward(inputs=list(turn.parameters))
            for key, value in losses.items():
                totals[key] = totals.get(key, 0.0) + float(value.detach()) / len(parts)
        return totals

    def _parts(self, batch: Batch) -> list[Batch]:
        n = self.recipe.accumulate
        if n == 1:
            return [batch]
        rows = self.recipe.batch // self.world.size // n
        return [{k: v[i * rows : (i + 1) * rows] for k, v in batch.items()} for i in range(n)]

    def _rate(self, step: int) -> float:
        """Multiplier of the learning rate: linear rise, then decay to 0 over the planned steps."""
        if step < self.recipe.warmup:
            return (step + 1) / self.recipe.warmup
        progress = (step + 1) / self.counters.total
        done = max(0.0, (progress - self.recipe.decay_from) / (1 - self.recipe.decay_from))
        if self.recipe.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return max(0.0, 1 - done) if self.recipe.decay == "linear" else 1.0

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.recipe.average, (1 + step) / (10 + step))  # young averages forget fast
        for name, average in self.averages.items():
            current = self.objective.modules[name].state_dict()
            floating = [k for k, v in current.items() if v.is_floating_point()]
            torch._foreach_lerp_([average[k] for k in floating], [current[k] for k in floating], 1 - decay)
            for k in current.keys() - set(floating):
                average[k].copy_(current[k])

    # -- precision ---------------------------------------------------------------------------------------------------

    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.recipe.precision == "float64" else torch.float32

    @contextmanager
    def _autocast(self, turn: Turn | None = None) -> Iterator[None]:
        enabled = self.counters.precision == "bfloat16" and not (turn is not None and turn.second_order)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            yield

    def _choose_precision(self) -> str:
        """The recipe's word, or the faster of float32 and bfloat16 over three gradients each of the first batch."""
        if self.recipe.precision != "auto":
            return self.recipe.precision
        batch = next(self.batches(0))
        parts = self._parts(batch)
        seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
        for _ in range(3):
            for precision in seconds:
                self.counters = self.counters.model_copy(update={"precision": precision})
                began = self.clock()
                self._gradients(self.turns[0], parts[:1], [{}])
                seconds[precision].append(self.clock() - began)
        faster = min(seconds["bfloat16"]) < 0.95 * min(seconds["float32"])
        return "bfloat16" if self.world.agree(float(faster)) else "float32"

    # -- the clock ---------------------------------------------------------------------------------------------------

    def _calibrate(self) -> None:
        """A first plan from the time of a few gradients; `_replan` corrects it at every state as real steps are timed."""
        assert self.budget is not None
        parts = self._parts(next(self.batches(0)))
        times = []
        for _ in range(4):
            began = self.clock()
            for turn in self.turns:
                self._gradients(turn, parts, [{} for _ in parts])
            times.append(self.clock() - began)
        per_step = 1.1 * sorted(times)[1]
        total = max(1, int(self.world.agree(self.budget / per_step)))
        self.counters = self.counters.model_copy(update={"total": total, "save_every": self.recipe.save_every or max(1, total // 25)})

    def _replan(self, origin: float) -> None:
        """Fit the steps that are left to the time that is left. Part of the state written next, so resume is exact."""
        step = self.counters.step
        if self.budget is None or step >= self.counters.total:
            return
        since_step, since_seconds = getattr(self, "_mark", (0, 0.0))
        now = self.clock() - origin
        per_step = (now - since_seconds) / max(1, step - since_step)
        self._mark = (step, now)
        left = max(1, int(self.world.agree((self.budget - now) / per_step)))
        self.counters = self.counters.model_copy(update={"total": step + left})

    # -- files -------------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        return state.collect(self.objective.modules, self.averages, self.optimisers)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Networks with their averaged weights, in evaluation mode; put back afterwards."""
        modules = self.objective.modules
        kept = {name: {k: v.clone() for k, v in modules[name].state_dict().items()} for name in self.averages}
        for module in modules.values():
            module.eval()
        for name, average in self.averages.items():
            modules[name].load_state_dict(average)
        try:
            yield
        finally:
            for name, tensors in kept.items():
                modules[name].load_state_dict(tensors)

    def _save(self, log: RunLog | None, look: bool = True) -> str:
        """Validate, preview, and write the state; on the leading process only."""
        note = ""
        if log:
            tensors = self._tensors()
            if not state.finite(tensors):
                return "not saved: weights are not finite"
            if look:
                note = self._look(log)
            self.counters = self.counters.model_copy(update={"log_bytes": log.settle()})
            state.write(self.folder / "state", tensors, self.counters)
        self.world.wait()
        return note

    def _look(self, log: RunLog) -> str:
        if self.validation is None:
            return ""
        rows = len(next(iter(self.validation.values())))
        streams = StepStreams(derive_seed("validation", self.recipe.seed), 0, 0, rows, self.device, self._dtype())
        step, every = self.counters.step, self.recipe.preview_every or self.counters.save_every
        with self.averaged(), torch.no_grad():
            values = {f"valid/{k}": float(v) for k, v in self.objective.validate(self.validation, streams).items()}
            shown = self.objective.preview(self.validation, streams) if step % every == 0 or step >= self.counters.total else None
        if values:
            log.write(step, values)
        if shown is not None:
            pictures = to_pixels(shown)
            atomic_write(self.folder / "previews" / f"{step:07d}.png", png_bytes(grid(list(pictures), scale=2)))
        return ", ".join(f"{k} {v:.4f}" for k, v in values.items())
