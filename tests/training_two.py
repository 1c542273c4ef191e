"""Started by torchrun in the tests of the training room: the same trainings as one process, their batches shared by two.

Usage: torchrun --nproc_per_node 2 training_two.py FOLDER. Each process writes its weights to FOLDER/<kind>-<rank>.pt.
"""

import sys
from pathlib import Path

import torch

import training_toys as toys
from giverny.training.loop import Trainer
from giverny.training.parallel import World, world

PAIRED = ("denoise", "contrast", "reconstruct")
STEPS = 5


def train(kind: str, folder: Path, among: World = World(), accumulate: int = 1) -> dict[str, torch.Tensor]:
    """Weights after a few steps in float64; process 1 starts from other weights and is to be given the leader's."""
    made = toys.objective(kind, seed=among.rank, world=among)
    recipe = toys.loop(steps=STEPS, precision="float64", accumulate=accumulate, save_every=2)
    return toys.finish(Trainer(made, toys.batches(among), recipe, folder, toys.batch_at(100), world=among))


def skip(folder: Path, among: World) -> dict[str, torch.Tensor]:
    """Only process 1 sees a NaN, at step 2: both must leave that update out."""

    def stream(start: int):  # type: ignore[no-untyped-def]
        for batch in toys.batches(among)(start):
            if among.rank == 1 and start == 2:
                batch["pixels"] = batch["pixels"] * torch.nan
            start += 1
            yield batch

    return toys.finish(Trainer(toys.Slope(), stream, toys.loop(steps=STEPS), folder, world=among))


def plan(folder: Path, among: World) -> dict[str, torch.Tensor]:
    """Two clocks that do not agree, one budget: both must come to the same plan, and stop at the same step."""
    now = [0.0]

    def tick(step: int) -> None:
        now[0] += 1.0 if among.leads else 3.0

    of = Trainer(
        toys.Slope(tick), toys.batches(among), toys.loop(steps=None), folder, budget=60.0, world=among, clock=lambda: now[0]
    )
    toys.finish(of)
    return {"steps": torch.tensor(of.counters.step), "seconds": torch.tensor(of.counters.seconds)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    with world() as two:
        found = {kind: train(kind, out / kind, two) for kind in PAIRED}
        found["adversarial"] = train("adversarial", out / "adversarial", two)
        found |= {"skip": skip(out / "skip", two), "plan": plan(out / "plan", two)}
        for name, made in found.items():
            torch.save(made, out / f"{name}-{two.rank}.pt")
