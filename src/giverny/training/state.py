"""The state of a run: everything needed to go on, in one file written atomically; the last two are kept.

One safetensors file holds networks, averages and optimiser moments; its header holds the counters and the plan. There is
no second file that could be out of step with the first, and no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..base.contracts import Frozen
from ..base.errors import InputError
from ..base.files import atomic_path
from .plan import Plan

KEPT = 2
PATTERN = "state-*.safetensors"
CHECKPOINTS = "checkpoints"
T = TypeVar("T")


class Counters(Frozen):
    """What a run knows besides tensors. Replaced, never changed in place."""

    step: int = 0  # finished steps
    plan: Plan
    precision: str  # float32, bfloat16 or float64, as chosen or measured
    seconds: float = 0.0  # spent so far, over all resumptions
    skipped: int = 0  # updates left out because they were not finite
    skipped_in_a_row: int = 0  # up to this step
    looked: int = 0  # step of the last validation with a state
    log_bytes: int = 0  # length of metrics.jsonl when this was written
    recipe: str = ""  # fingerprint of what is being trained on what


def collect(
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, Mapping[str, Tensor]],
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, Tensor]:
    """All tensors of a run by name: `net.<module>.<tensor>`, `ema.<module>.<tensor>`, `opt.<turn>.<index>.<moment>`."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"net.{name}.{k}": v for k, v in module.state_dict().items()}
    for name, average in averages.items():
        tensors |= {f"ema.{name}.{k}": v for k, v in average.items()}
    for turn, optimiser in optimisers.items():
        for index, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"opt.{turn}.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    return tensors


def restore(
    tensors: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    averages: dict[str, dict[str, Tensor]],
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """The inverse of `collect`; every tensor must fit."""
    for name, module in modules.items():
        module.load_state_dict(_under(tensors, f"net.{name}."))
    for name in averages:
        averages[name] = {k: v.to(averages[name][k].device).clone() for k, v in _under(tensors, f"ema.{name}.").items()}
    for turn, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, f"opt.{turn}.").items():
            index, moment = key.split(".", 1)
            state.setdefault(int(index), {})[moment] = value
        optimiser.load_state_dict(optimiser.state_dict() | {"state": state})


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def write(folder: Path, tensors: Mapping[str, Tensor], counters: Counters) -> Path:
    """Write `state-<step>.safetensors` atomically, then forget all but the last two."""
    path = folder / f"state-{counters.step:08d}.safetensors"
    write_tensors(path, tensors, {"giverny": counters.model_dump_json()})
    found = sorted(folder.glob(PATTERN))
    kept = [old for old in found if old <= path][-KEPT:]
    for old in found:  # later ones were left unreadable by a crash, or else this run would have begun with them
        if old not in kept:
            old.unlink()
    return path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], words: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all; tensors that share their memory are each written in full."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    with atomic_path(path) as temporary:
        save_file(apart, str(temporary), words)


def keep_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Write `checkpoints/<step>.safetensors` in a stage's folder, whole or not at all."""
    write_tensors(folder / CHECKPOINTS / f"{step:08d}.safetensors", tensors)


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """{step: file} of what a stage has kept, in order."""
    return {int(path.stem): path for path in sorted((folder / CHECKPOINTS).glob("*.safetensors"))}


def forget_later(folder: Path, step: int) -> None:
    """Remove checkpoints behind the step that a run goes on from: it will come by other ones."""
    for later, path in checkpoints_of(folder).items():
        if later > step:
            path.unlink()


def read_latest(folder: Path) -> tuple[dict[str, Tensor], Counters] | None:
    """The newest state that can be read, or None where there is none. Raises InputError where all are damaged."""
    return _newest(folder, lambda file, counters: ({key: file.get_tensor(key) for key in file.keys()}, counters))  # noqa: SIM118


def read_counters(folder: Path) -> Counters | None:
    """What `read_latest` would say of the run, without reading its tensors."""
    return _newest(folder, lambda file, counters: counters)


def _newest(folder: Path, take: Callable[[Any, Counters], T]) -> T | None:
    broken: list[str] = []
    for path in sorted(folder.glob(PATTERN), reverse=True):
        try:
            with safe_open(str(path), "pt") as file:
                return take(file, Counters.model_validate(json.loads((file.metadata() or {})["giverny"])))
        except Exception as error:  # a damaged file: the one before it is the last good state
            broken.append(f"{path.name} ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
    if broken:
        raise InputError("a readable state to resume from", "; ".join(broken), "Start again in another folder.")
    return None


def forget_torn(folder: Path) -> None:
    """Remove what killed processes left half written, in a run's folder and one level below it."""
    for pattern in (".*.part", "*/.*.part"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in tensors.values() if v.is_floating_point())
