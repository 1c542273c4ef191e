"""Recipes become runs, and runs models."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..base.contracts import Frozen, Source, Trained
from ..base.errors import InputError
from ..base.files import atomic_write
from ..base.recipe import to_toml
from ..base.runtime import describe_machine, pick_device
from ..checkpoints.native import Card, write_model
from ..compare.cells import Clock
from ..compare.report import write_report
from ..data.catalog import CATALOG
from ..data.head import Head
from ..data.joined import Joined
from ..data.unpaired import Unpaired
from ..pipelines.probe import probe
from ..pipelines.train import StageReport, train_stages
from ..training.parallel import World, world
from .opening import family, judges
from .reading import load_recipe, open_data

# How seconds are counted: by the clock on the wall, or those that this process keeps a processor busy, summed over its
# threads, which depend little on what else the machine does.
CLOCKS: Mapping[Clock, Callable[[], float]] = {"wall": time.monotonic, "processor": time.process_time}


def train(
    recipe: str | Path | Mapping[str, Any] | Frozen,
    run: str | Path,
    budget: float | None = None,  # seconds for all stages together; None: the recipe's own, or each stage's steps
    resume: bool = False,
    device: str = "auto",
    source: Source | None = None,  # None: opened by the recipe's data.source
    clock: Clock = "wall",  # what the budget's seconds are counted by
    shared: Path | None = None,  # folder of finished stages that runs take from one another
) -> Iterator[StageReport]:
    """Train a recipe into a run folder; the model lies in run/model when the iterator ends. Closing it saves and stops."""
    checked: Any = load_recipe(recipe)
    run, place = Path(run), pick_device(device)
    if place.type == "cuda" and place.index is None and "LOCAL_RANK" in os.environ:
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))  # torchrun: one device a process
    if budget is None and checked.budget is not None:
        budget = checked.budget
    with world() as processes, _alone(run) if processes.leads else nullcontext():
        if not resume and processes.leads and (run / "stages").exists():
            raise InputError("a fresh run folder, or --resume", f"{run}, which holds a run", "Or name another with --out.")
        found = source if source is not None else open_data(checked.data)
        workshop = family(checked.family).workshop(checked, found, run / "cache", processes, place)
        told_first = False
        try:
            with closing(train_stages(workshop, run, budget, resume, processes, place, CLOCKS[clock], shared)) as stages:
                for told in stages:
                    if processes.leads and not told_first:  # not before: a run of another recipe may yet be refused
                        atomic_write(run / "recipe.toml", to_toml(checked))
                    told_first = True
                    yield told
            if processes.leads:
                result = workshop.result()
                write_model(run / "model", card_of(checked, found, result, run, place, clock), result.networks, result.extras)
        finally:
            if processes.leads and run.is_dir():
                write_report(run)


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """One training of a run at a time; the lock goes with the process, however that ends."""
    run.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.with_name(f".{run.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        remedy = "Wait for it or stop it, or choose another folder with --out."
        raise InputError("a run that no other process trains", f"{run}, which one is training", remedy) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # another has it open already
            Path(lock.lock_file).unlink()


def facts_of(name: str) -> dict[str, str]:
    """Name, licence and homepage of a named set; nothing of others."""
    entry = CATALOG.get(name)
    return {} if entry is None else {"name": entry.name, "licence": entry.licence, "homepage": entry.homepage}


MACHINE = ("giverny", "torch", "python", "threads", "cpu_capability")  # what a card says of the machine of the training


def card_of(recipe: Any, source: Source, result: Trained, run: Path, device: torch.device, clock: Clock = "wall") -> Card:
    """The card of a finished run: what it was trained on, for how long, on which machine."""
    stages = {p.parent.name: json.loads(p.read_text("utf-8")) for p in sorted((run / "stages").glob("*/done.json"))}
    data: dict[str, Any] = {"name": source.name, "pictures": len(source), "fingerprint": source.fingerprint}
    data |= facts_of(recipe.data.source) if not isinstance(source, Joined) else {}
    if isinstance(source, Unpaired):
        data |= {"name": source.name, "pictures": len(source)}
        data["given"] = {"name": source.given.name, "pictures": len(source.given)} | facts_of(recipe.data.given)
    if isinstance(source, Joined):
        sizes = {label: {"name": one.name, "pictures": len(one)} for label, one in source.sets.items()}
        data["sets"] = {label: size | facts_of(recipe.data.sets[label]) for label, size in sizes.items()}
    if (other := getattr(recipe.data, "photographs", None)) is not None:  # pictures of the other kind, where a model learns two
        data["photographs"] = {"name": other, **facts_of(other)}
    machine = {k: v for k, v in describe_machine().items() if k in MACHINE}
    training = {
        "stages": {name: {k: v for k, v in note.items() if k != "identity"} for name, note in stages.items()},
        "hours": round(sum(note["seconds"] for note in stages.values()) / 3600, 3),
        "device": str(device),
        **({"clock": clock} if clock != "wall" else {}),
        **machine,
    }
    return Card(
        family=recipe.family, name=recipe.name, title=recipe.title, size=result.size, recipe=dict(result.recipe),
        task="pictures to words" if recipe.family in judges() else family(recipe.family).task,
        knobs=dict(result.knobs), prompts=result.prompts, data=data, licence=recipe.licence, training=training,
    )  # fmt: skip


def probe_training(recipe: Frozen, budget: float | None = None, device: str = "auto") -> list[dict[str, Any]]:
    """What a training would take, from three steps of each stage on a few pictures; nothing is kept."""
    checked: Any = recipe
    found = open_data(checked.data)
    few = found.head(1024) if isinstance(found, Unpaired | Joined) else Head(found, 1024)
    place = pick_device(device)
    make = family(checked.family).workshop
    return probe(lambda cache: make(checked, few, cache, World(), place), budget or checked.budget, place)
