"""One iteration of training: every turn's gradients, the guard against non-finite ones, the optimisers, the averages.

A turn whose loss or gradient is not finite on any process moves nothing, nor does any turn after it in the same iteration.
An error may end an iteration when some weights have moved and others have not; `torn` then says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..base.contracts import Batch, Objective, Turn
from ..base.runtime import derive_seed
from .parallel import World
from .plan import LoopRecipe
from .streams import StepStreams


class Updates:
    """Moves the networks of an objective. Its optimisers and averages are part of a run's state.

    averages: {module: {tensor name: moving average}}, empty where the recipe's decay is 0.
    """

    def __init__(self, objective: Objective, recipe: LoopRecipe, world: World, device: torch.device) -> None:
        self.objective, self.recipe, self.world, self.device = objective, recipe, world, device
        self.dtype = torch.float64 if recipe.precision == "float64" else torch.float32
        if self.dtype == torch.float64:
            for module in objective.modules.values():
                module.to(self.dtype)
        self.turns = list(objective.turns())
        self.parameters = {t.name: [p for p in t.parameters if p.requires_grad] for t in self.turns}
        self.optimisers = {t.name: self._optimiser(t) for t in self.turns}
        self.averages = {
            name: {k: v.detach().clone() for k, v in objective.modules[name].state_dict().items()}
            for name in (objective.averaged if recipe.average else ())
        }
        self.torn = False  # whether some of this iteration's weights have moved and others have not

    def _optimiser(self, turn: Turn) -> torch.optim.Optimizer:
        parameters = self.parameters[turn.name]
        matrices = [p for p in parameters if p.dim() > 1]
        rest = [p for p in parameters if p.dim() <= 1]  # biases and norms are not decayed
        groups = [{"params": matrices, "weight_decay": self.recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        rate = turn.learning_rate or self.recipe.learning_rate
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=turn.betas or self.recipe.betas, fused=True)

    def begin(self) -> None:
        """Every process starts from the leader's weights, in training mode."""
        for name, module in self.objective.modules.items():
            module.train()
            self.world.share(module.parameters())
            self.world.share(self.averages.get(name, {}).values())
        self.share_buffers()

    def share_buffers(self) -> None:
        """Running statistics differ between processes, and only the leader's are saved: they become everyone's."""
        for name, module in self.objective.modules.items():
            average = self.averages.get(name, {})
            for key, buffer in module.named_buffers():
                self.world.share([buffer] if key not in average else [buffer, average[key]])

    def step(self, step: int, batch: Batch, rate: float, precision: str, progress: float = 0.0) -> dict[str, float]:
        """Iteration `step` (from 0) with the learning rate at `rate` of its height. progress: share of the run before it.

        Returns scalars by name, prefixed with the turn where there are several; "skipped" is 1 where an update was not
        finite. The batch is this process's part, already on the device.
        """
        values = {"skipped": 0.0}
        parts = self._parts(batch)
        scratch: list[dict[str, Any]] = [{} for _ in parts]
        for turn in self.turns:
            if step % turn.every:
                continue
            with self._buffers_kept() as restore:
                totals = self._gradients(turn, step, parts, scratch, precision, progress)
                self.world.average(self.parameters[turn.name])
                norm = float(torch.nn.utils.clip_grad_norm_(self.parameters[turn.name], self.recipe.clip or math.inf))
                bad = self.world.any(not math.isfinite(norm) or not math.isfinite(totals["loss"]))
                if bad:
                    restore()
            prefix = "" if len(self.turns) == 1 else turn.name + "."
            values |= {prefix + k: v for k, v in totals.items()} | {prefix + "norm": norm}
            if bad:
                values["skipped"] = 1.0
                break
            self.torn = True
            for group in self.optimisers[turn.name].param_groups:
                group["lr"] = (turn.learning_rate or self.recipe.learning_rate) * rate
            self.optimisers[turn.name].step()
        if not values["skipped"]:
            self._average(step)
        self.torn = False
        return values

    def time(self, batch: Batch, precision: str, clock: Callable[[], float]) -> float:
        """Seconds that the gradients of all turns take; nothing is moved by it."""
        parts = self._parts(batch)
        scratch: list[dict[str, Any]] = [{} for _ in parts]
        began = clock()
        with self._buffers_kept() as restore:
            for turn in self.turns:
                self._gradients(turn, 0, parts, scratch, precision)
                self.world.average(self.parameters[turn.name])
            restore()
        self._zero()
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)
        return clock() - began

    def ready(self, batch: Batch) -> Batch:
        """A batch on the run's device and in its precision."""

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)

        return {key: moved(value) for key, value in batch.items()}

    # -- gradients ---------------------------------------------------------------------------------------------------

    def _gradients(
        self, turn: Turn, step: int, parts: list[Batch], scratch: list[dict[str, Any]], precision: str, progress: float = 0.0
    ) -> dict[str, float]:
        """Sums the parts' gradients into the turn's parameters; returns the means of what its loss gave."""
        self._zero()
        totals: dict[str, float] = {}
        rows = self.recipe.batch // self.world.size // self.recipe.accumulate
        for i, part in enumerate(parts):
            first = (self.world.rank * self.recipe.accumulate + i) * rows
            streams = StepStreams(self.recipe.seed, step, first, self.recipe.batch, self.device, self.dtype, progress)
            with self._chance(step, turn.name, first), self._autocast(turn, precision):
                losses = self.objective.loss(turn.name, part, scratch[i], streams)
            (losses["loss"] / len(parts)).backward(inputs=self.parameters[turn.name])
            for key, value in losses.items():
                totals[key] = totals.get(key, 0.0) + float(value.detach()) / len(parts)
        return totals

    def _zero(self) -> None:
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)

    def _parts(self, batch: Batch) -> list[Batch]:
        n = self.recipe.accumulate
        if n == 1:
            return [batch]
        rows = self.recipe.batch // self.world.size // n
        return [{k: v[i * rows : (i + 1) * rows] for k, v in batch.items()} for i in range(n)]

    @contextmanager
    def _chance(self, step: int, turn: str, first: int) -> Iterator[None]:
        """Dropout inside networks draws from torch's global generators: seeded here, put back afterwards."""
        seed, cuda = derive_seed(self.recipe.seed, step, turn, first), self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if cuda else []):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at every kind of device: a millisecond
            if cuda:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            yield

    def _autocast(self, turn: Turn, precision: str) -> torch.autocast:
        enabled = precision == "bfloat16" and not turn.second_order
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    # -- what else moves ---------------------------------------------------------------------------------------------

    @contextmanager
    def _buffers_kept(self) -> Iterator[Callable[[], None]]:
        """Running statistics move with every forward pass: put back on demand, and by whatever interrupts the block."""
        buffers = [b for module in self.objective.modules.values() for b in module.buffers()]
        kept = [b.clone() for b in buffers]

        def restore() -> None:
            for buffer, before in zip(buffers, kept, strict=True):
                buffer.copy_(before)

        try:
            yield restore
        except BaseException:
            restore()
            raise

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """average <- decay * average + (1 - decay) * weights; young averages forget faster."""
        decay = min(self.recipe.average, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            current = self.objective.modules[name].state_dict()
            floating = [k for k, v in current.items() if v.is_floating_point()]
            torch._foreach_lerp_([average[k] for k in floating], [current[k] for k in floating], 1 - decay)
            for k in current.keys() - set(floating):
                average[k].copy_(current[k])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Networks with their averaged weights, in evaluation mode; put back afterwards."""
        modules: dict[str, nn.Module] = dict(self.objective.modules)
        kept = {name: {k: v.clone() for k, v in modules[name].state_dict().items()} for name in self.averages}
        try:
            for module in modules.values():
                module.eval()
            for name, average in self.averages.items():
                modules[name].load_state_dict(average)
            yield
        finally:
            for name, tensors in kept.items():
                modules[name].load_state_dict(tensors)
            for module in modules.values():
                module.train()
