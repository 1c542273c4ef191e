"""The state of a run: everything needed to go on, in one file written atomically; the last two are kept.

One safetensors file holds networks, averages and optimiser moments; its header holds the counters and the plan. There is
no second file that could be out of step with the first, and no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..base.contracts import Frozen
from ..base.errors import InputError
from ..base.files import atomic_path

KEPT = 2


class Counters(Frozen):
    """What a run knows besides tensors. Replaced, never changed in place."""

    step: int = 0  # finished steps
    total: int  # planned steps
    save_every: int
    precision: str  # float32 or bfloat16, as chosen or measured
    seconds: float = 0.0  # spent so far, over all resumptions
    skipped: int = 0  # updates left out because they were not finite
    log_bytes: int = 0  # length of metrics.jsonl when this was written
    recipe: str = ""  # fingerprint of what is being trained on what
    budget: float | None = None  # seconds, where the plan follows the clock
    best: dict[str, float] = Field(default_factory=dict)  # lowest validation values so far


def collect(
    modules: Mapping[str, nn.Module], averages: Mapping[str, Mapping[str, Tensor]], optimisers: Mapping[str, torch.optim.Optimizer]
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


def write(folder: Path, tensors: dict[str, Tensor], counters: Counters) -> Path:
    """Write `state-<step>.safetensors` atomically, then forget all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state-{counters.step:08d}.safetensors"
    with atomic_path(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(temporary), {"giverny": counters.model_dump_json()})
    for old in sorted(folder.glob("state-*.safetensors"))[:-KEPT]:
        old.unlink()
    return path


def read_latest(folder: Path) -> tuple[dict[str, Tensor], Counters] | None:
    """The newest state that can be read, or None where there is none."""
    found = sorted(folder.glob("state-*.safetensors"), reverse=True)
    broken: list[str] = []
    for path in found:
        try:
            with safe_open(str(path), "pt") as file:
                counters = Counters.model_validate(json.loads((file.metadata() or {})["giverny"]))
                return {k: file.get_tensor(k) for k in file.keys()}, counters  # noqa: SIM118  (not a mapping)
        except Exception as error:  # a damaged file: the one before it is the last good state
            broken.append(f"{path.name}: {error}")
    if broken:
        raise InputError("a readable state to resume from", "; ".join(broken), "Start again without --resume.")
    return None


def finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in tensors.values() if v.is_floating_point())


