"""Training told as a story: a recipe's stages one after the other, each kept, each reused where it is already there.

Works on any family's `Workshop` and never names a network. Everything lies in one run folder; killed at any moment, the
same call with resume goes on where it was. A changed recipe in the same folder trains again what depends on the change:

- a finished stage of the same identity is reused, whatever the budget;
- a finished stage of another identity is put aside into `former/` and trained anew; going back to the old recipe takes it
  out again;
- an unfinished stage of another identity is an error: hours may lie in it, and only the user can say what becomes of them;
- `loop.steps` is no part of a stage's identity: a finished or unfinished stage with fewer steps than asked for is trained
  on, its learning rate as if all steps had been planned from the start; one with more steps is an error.

Runs may share a folder of finished stages: what one of them has trained for the same time is taken by the others as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..base.contracts import StageJob, Workshop
from ..base.errors import InputError
from ..base.files import atomic_write, fingerprint
from ..training.loop import Report, Trainer, find_run
from ..training.parallel import World
from ..training.state import finite, write_tensors

FINISH = 8.0  # seconds kept back from a budget for writing the model and the report
MOST_FINISH = 0.05  # and at most this part of it


@dataclass(frozen=True)
class StageReport:
    """Progress of a run: a stage's report, or one of its turning points."""

    stage: str
    happened: str  # "reused", "started", "step", "finished"
    report: Report | None = None


def stage_folder(run: Path, name: str) -> Path:
    return run / "stages" / name


def train_stages(
    workshop: Workshop,
    run: Path,
    budget: float | None = None,  # seconds for all stages together; None: each stage's own steps
    resume: bool = False,
    world: World | None = None,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.monotonic,
    shared: Path | None = None,  # finished stages of other runs: taken from here, and left here
) -> Generator[StageReport, None, None]:
    """Train what is not there yet. Closing the iterator stops after the current step with everything saved.

    The budget is that of the whole run, over all resumptions: what a stage took before counts. Raises InputError where
    the folder holds a run and `resume` is not asked for, or an unfinished one of another recipe.
    """
    world, purse = world or World(), Purse(budget, dict(workshop.shares()))
    for job in workshop.jobs():
        folder, arrived = stage_folder(run, job.name), clock()
        if read_note(folder) is not None and not resume:
            raise InputError("a fresh run folder, or resume", f"{run}, which holds a run", "Resume it, or choose another.")
        if resume and world.leads:
            bring_back(run, job.name, job.identity)
        world.wait()
        lent = shared / purse.named(job) if shared is not None else None
        if lent is not None and lent.is_dir() and not folder.exists():
            _copy(lent, folder)
        found = read_artefact(folder, job.identity, job.loop.steps) if resume or lent is not None else None
        if found is None:
            yield StageReport(job.name, "started")
            trainer = _trainer(job, folder, purse.seconds(job), resume, world, device or torch.device("cpu"), clock, arrived)
            with closing(trainer.run()) as reports:
                for report in reports:
                    yield StageReport(job.name, "step", report)
            found = trainer.results()
            if world.leads:
                write_artefact(folder, job.identity, found, trainer)
                if lent is not None and not lent.exists():
                    _copy(folder, lent)
            world.wait()
            happened = "finished"
        else:
            happened = "reused"
        job.keep(found)
        purse.spend(job, float((read_note(folder) or {}).get("seconds", 0.0)))
        yield StageReport(job.name, happened)


@dataclass
class Purse:
    """A time budget and how it is shared: what a stage leaves over, or takes beyond its share, is the later stages'.

    Depends on what finished stages say they took and on nothing else, so that a resumed run comes to the same shares.
    """

    budget: float | None
    shares: dict[str, float]  # of stages that are not finished
    used: float = 0.0
    whole: float = field(init=False)  # seconds for training

    def __post_init__(self) -> None:
        self.whole = 0.0 if self.budget is None else self.budget - min(FINISH, MOST_FINISH * self.budget)
        self._all = sum(self.shares.values())

    def seconds(self, job: StageJob) -> float | None:
        """For this stage; None where it goes by its steps."""
        if self.budget is None or job.loop.steps is not None:
            return None
        return max(0.0, self.whole - self.used) * job.share / sum(self.shares.values())

    def named(self, job: StageJob) -> str:
        """What a finished stage is called among those of other runs: what it is, and how long it was meant to take."""
        meant = None if self.budget is None or job.loop.steps is not None else self.whole * job.share / self._all
        return f"{job.name}-{fingerprint([job.identity, job.loop.steps, meant])}"

    def spend(self, job: StageJob, seconds: float) -> None:
        """A stage reused from a longer run counts as its own share and half as much again, lest nothing be left."""
        self.used += min(seconds, 1.5 * self.whole * job.share / self._all) if self.budget is not None else 0.0
        self.shares.pop(job.name, None)


def _trainer(
    job: StageJob,
    folder: Path,
    seconds: float | None,
    resume: bool,
    world: World,
    device: torch.device,
    clock: Callable[[], float],
    arrived: float,
) -> Trainer:
    """What can be refused is refused before anything is prepared, which may take minutes."""
    going = find_run(folder, job.loop, job.identity, resume)
    if going is None and seconds is None and job.loop.steps is None:
        raise InputError(f"steps for stage {job.name} or a time budget", "neither", "Use --budget 30m or set loop.steps.")
    objective, batches, validation = job.start()
    spent = clock() - arrived  # preparing (such as encoding latents) counts as well
    return Trainer(objective, batches, job.loop, folder, validation, seconds, resume, job.identity, world, device, clock, spent)


# -- what finished stages leave -----------------------------------------------------------------------------------------


def write_artefact(folder: Path, identity: str, tensors: dict[str, dict[str, Tensor]], trainer: Trainer) -> None:
    """The stage's result: weights, then the note that says they are whole and what they are."""
    flat = {f"{m}/{k}": v for m, part in tensors.items() for k, v in part.items()}
    if not finite(flat):
        raise InputError("finite weights to keep", f"others after step {trainer.counters.step} in {folder}")
    (folder / "done.json").unlink(missing_ok=True)  # a note must not speak of weights it has not seen
    write_tensors(folder / "weights.safetensors", flat)
    note = {
        "identity": identity,
        "steps": trainer.counters.step,
        "seconds": round(trainer.seconds, 3),
        "precision": trainer.counters.precision,
        "batch": trainer.recipe.batch,
        "skipped": trainer.counters.skipped,
    }
    atomic_write(folder / "done.json", json.dumps(note, indent=2) + "\n")


def read_artefact(folder: Path, identity: str, steps: int | None = None) -> dict[str, dict[str, Tensor]] | None:
    """{module: tensors} of a finished stage of this identity (and of so many steps, where that is said), or None."""
    note = read_note(folder)
    if note is None or note.get("identity") != identity or steps not in (None, note.get("steps")):
        return None
    path = folder / "weights.safetensors"
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"readable weights in {path}", str(error), f"Remove {folder / 'done.json'}, and resume.") from error
    return by_module(tensors)


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{module: {name: tensor}} of tensors by "module/name"."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        module, name = key.split("/", 1)
        modules.setdefault(module, {})[name] = value
    return modules


def read_note(folder: Path) -> dict[str, Any] | None:
    """What is noted of a finished stage: identity, steps, seconds, precision, batch, skipped; None where unfinished."""
    path = folder / "done.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def bring_back(run: Path, name: str, identity: str) -> None:
    """Put a finished stage of another identity aside, and take out the one of this identity where it was put aside."""
    folder = stage_folder(run, name)
    note = read_note(folder)
    if note is not None and note.get("identity") != identity:
        _move(folder, run / "former" / f"{name}-{note.get('identity')}")
    former = run / "former" / f"{name}-{identity}"
    if former.is_dir() and not folder.exists():
        _move(former, folder)


def _copy(folder: Path, target: Path) -> None:
    """Whole or not at all, without the states that a stage would go on from. What others were quicker to copy stays."""
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part, ignore=shutil.ignore_patterns("state"))
    try:
        part.rename(target)
    except OSError:
        shutil.rmtree(part)
        if not target.is_dir():
            raise


def _move(folder: Path, target: Path) -> None:
    if target.exists():  # an older one of the same identity
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
