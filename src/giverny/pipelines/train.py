"""Training told as a story: a recipe's stages one after the other, each kept, each reused where it is already there.

Works on any family's `Workshop` and never names a network. Everything lies in one run folder; killed at any moment, the
same call with resume goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..base.contracts import StageJob, Workshop
from ..base.errors import InputError
from ..base.files import atomic_write
from ..training.loop import Report, Trainer
from ..training.parallel import World

FINISH = 4.0  # seconds kept back from a budget for writing the model and the report


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
) -> Iterator[StageReport]:
    """Train what is not there yet. Closing the iterator stops after the current step with everything saved."""
    began, left = time.monotonic(), None if budget is None else budget - FINISH
    shares = dict(workshop.shares())
    for job in workshop.jobs():
        folder = stage_folder(run, job.name)
        found = read_artefact(folder, job.identity) if resume else None
        if found is not None:
            job.keep(found)
            shares.pop(job.name, None)
            yield StageReport(job.name, "reused")
            continue
        yield StageReport(job.name, "started")
        arrived = time.monotonic()
        seconds = None
        if left is not None and job.loop.steps is None:
            seconds = max(1.0, (left - (arrived - began)) * job.share / sum(shares.values()))
        trainer = _trainer(job, folder, seconds, arrived, resume, world or World(), device or torch.device("cpu"))
        with closing(trainer.run()) as reports:
            for report in reports:
                yield StageReport(job.name, "step", report)
        tensors = trainer.averages or {k: m.state_dict() for k, m in trainer.objective.modules.items()}
        for name, module in trainer.objective.modules.items():
            tensors.setdefault(name, dict(module.state_dict()))
        if trainer.world.leads:
            write_artefact(folder, job.identity, tensors, trainer)
        trainer.world.wait()
        job.keep(tensors)
        shares.pop(job.name, None)
        yield StageReport(job.name, "finished")


def _trainer(
    job: StageJob, folder: Path, seconds: float | None, arrived: float, resume: bool, world: World, device: torch.device
) -> Trainer:
    objective, batches, validation = job.start()
    if seconds is not None:
        seconds = max(1.0, seconds - (time.monotonic() - arrived))  # preparing (such as encoding latents) counts as well
    elif job.loop.steps is None:
        raise InputError(f"steps for stage {job.name} or a time budget", "neither", "Use --budget 30m or set loop.steps.")
    return Trainer(
        objective, batches, job.loop, folder, validation, seconds, resume, job.identity, world, device
    )  # fmt: skip


def write_artefact(folder: Path, identity: str, tensors: dict[str, dict[str, Tensor]], trainer: Trainer) -> None:
    """The stage's result: weights, then the note that says they are whole and what they are."""
    flat = {f"{m}/{k}": v.detach().cpu().contiguous() for m, part in tensors.items() for k, v in part.items()}
    atomic_write(folder / "weights.safetensors", save(flat))
    note = {
        "identity": identity,
        "steps": trainer.counters.step,
        "seconds": round(trainer.counters.seconds, 1),
        "precision": trainer.counters.precision,
        "batch": trainer.recipe.batch,
        "skipped": trainer.counters.skipped,
    }
    atomic_write(folder / "done.json", json.dumps(note, indent=2) + "\n")


def read_artefact(folder: Path, identity: str) -> dict[str, dict[str, Tensor]] | None:
    """{module: tensors} of a finished stage of this identity, or None."""
    note = read_note(folder)
    if note is None or note.get("identity") != identity:
        return None
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(str(folder / "weights.safetensors")).items():
        module, name = key.split("/", 1)
        modules.setdefault(module, {})[name] = value
    return modules


def read_note(folder: Path) -> dict[str, Any] | None:
    path = folder / "done.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None
