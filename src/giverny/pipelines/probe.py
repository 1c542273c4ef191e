"""A dry run: three real steps of every stage, in a folder that is thrown away, and what follows from them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..base.contracts import StageJob, Workshop
from ..base.runtime import peak_memory
from ..training.loop import Trainer

STEPS = 3


def probe(make: Callable[[Path], Workshop], budget: float | None, device: torch.device) -> list[dict[str, Any]]:
    """One row per stage: parameters, steps, seconds a step, time in all, peak memory, disk of a run."""
    folder = Path(tempfile.mkdtemp(prefix="giverny-probe-"))
    try:
        workshop = make(folder)
        shares = workshop.shares()
        return [_stage(job, folder, budget, sum(shares.values()), device) for job in workshop.jobs()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stage(job: StageJob, folder: Path, budget: float | None, shares: float, device: torch.device) -> dict[str, Any]:
    objective, batches, _ = job.start()
    loop = job.loop.model_copy(update={"steps": STEPS, "save_every": 10 * STEPS})
    trainer = Trainer(objective, batches, loop, folder / job.name, device=device)
    moments = [time.monotonic()]
    for _ in trainer.run():
        moments.append(time.monotonic())
    a_step = min(b - a for a, b in pairwise(moments[1:]))
    weights = sum(p.numel() for m in objective.modules.values() for p in m.parameters())
    steps = job.loop.steps or (int(budget * job.share / shares / a_step) if budget else None)
    job.keep({name: dict(m.state_dict()) for name, m in objective.modules.items()})
    states = 2 * sum(f.stat().st_size for f in (folder / job.name / "state").glob("*.safetensors"))  # the last two are kept
    return {
        "stage": job.name,
        "parameters": f"{weights:,}",
        "steps": steps,
        "seconds a step": round(a_step, 4),
        "time": None if steps is None else _clock(steps * a_step),
        "memory": f"{peak_memory(device) / 2**20:.0f} MiB",
        "disk": f"{states / 2**20:.0f} MiB",
    }


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"
