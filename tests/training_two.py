"""Started by torchrun in the tests of the training room: the same trainings as one process, their batches shared by two.

Usage: torchrun --nproc_per_node 2 training_two.py FOLDER. Each process writes its weights to FOLDER/<kind>-<rank>.pt.
"""

import sys
from pathlib import Path

import torch

import training_toys as toys
from giverny.data.toy import ToyShapes
from giverny.painters.diffusion.family import PAINTER
from giverny.pipelines.train import train_stages
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


def family(folder: Path, among: World = World()) -> dict[str, torch.Tensor]:
    """All stages of the tiny diffusion model, as a user's command trains them."""
    recipe, source = PAINTER.tiny(), ToyShapes(count=64, size=16)
    workshop = PAINTER.workshop(recipe, source, folder / "cache", among, torch.device("cpu"))
    for _ in train_stages(workshop, folder, world=among):
        pass
    networks = workshop.result().networks
    return {f"{name}.{k}": v for name, network in networks.items() for k, v in network.state_dict().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    with world() as two:
        found = {kind: train(kind, out / kind, two) for kind in PAIRED}
        found["family"] = family(out / "family", two)
        found["adversarial"] = train("adversarial", out / "adversarial", two)
        found |= {"skip": skip(out / "skip", two), "plan": plan(out / "plan", two)}
        for name, made in found.items():
            torch.save(made, out / f"{name}-{two.rank}.pt")
