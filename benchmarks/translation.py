"""What a CycleGAN step costs: as plain torch in float32, and as our loop takes it, in turns, least of several.

    python benchmarks/translation.py                            # residual generators of 9 blocks, 256 pixels, batches of one
    python benchmarks/translation.py --generator unet --runs 5
    python benchmarks/translation.py --size 128 --channels 32 --blocks 6

The plain step is written out below as tutorials have it: two generators, two critics, Adam, no autocast. Ours is the same
work on networks of the same sizes, with random pictures; identity terms are in both.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from giverny.base.runtime import describe_machine, pick_device
from giverny.painters.translator.recipe import DataRecipe, TranslatorRecipe
from giverny.training.loop import LoopRecipe
from giverny.training.parallel import World
from giverny.training.updates import Updates


def plain_step(modules: dict[str, nn.Module]) -> Callable[[dict[str, Tensor]], None]:
    """One iteration as the original has it, without a history."""
    forth, back, wanted, given = (modules[n] for n in ("forth", "back", "critic_wanted", "critic_given"))
    generators = torch.optim.Adam(itertools.chain(forth.parameters(), back.parameters()), 2e-4, (0.5, 0.999))
    critics = torch.optim.Adam(itertools.chain(wanted.parameters(), given.parameters()), 2e-4, (0.5, 0.999))

    def squares(logits: Tensor, target: float) -> Tensor:
        return F.mse_loss(logits, torch.full_like(logits, target))

    def step(batch: dict[str, Tensor]) -> None:
        a, b = batch["given"], batch["wanted"]
        for network in (wanted, given):
            network.requires_grad_(False)
        fake_b, fake_a = forth(a), back(b)
        loss = squares(wanted(fake_b), 1) + squares(given(fake_a), 1)
        loss = loss + 10 * (F.l1_loss(back(fake_b), a) + F.l1_loss(forth(fake_a), b))
        loss = loss + 10 * (F.l1_loss(forth(b), b) + F.l1_loss(back(a), a))
        generators.zero_grad()
        loss.backward()
        generators.step()
        for network in (wanted, given):
            network.requires_grad_(True)
        critics.zero_grad()
        for critic, real, fake in ((wanted, b, fake_b), (given, a, fake_a)):
            (0.5 * (squares(critic(real), 1) + squares(critic(fake.detach()), 0))).backward()
        critics.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", choices=("resnet", "unet"), default="resnet")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--together", action="store_true", help="translation and identity in one pass")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()

    further = {"blocks": given.blocks} if given.generator == "resnet" else {}
    loop = LoopRecipe(
        steps=1, batch=given.batch, learning_rate=2e-4, betas=(0.5, 0.999), weight_decay=0, clip=None, average=0, warmup=0
    )
    recipe = TranslatorRecipe.model_validate(
        {
            "name": "benchmark",
            "data": DataRecipe(source="-", given="-", size=(given.size, given.size)),
            "generator": {"family": given.generator, "channels": given.channels, **further},
            "critic": {"family": "patch", "channels": given.channels},
            "objective": {"judged": {"history": 50}, "together": given.together},
            "loop": loop,
        }
    )
    device = pick_device(given.device)
    torch.manual_seed(0)
    pictures = torch.rand(2, given.batch, 3, given.size, given.size, device=device) * 2 - 1
    batch = {"given": pictures[0], "wanted": pictures[1], "epochs": torch.zeros(given.batch, dtype=torch.int64)}
    theirs, ours = recipe.build(), recipe.build()
    for module in (*theirs.modules.values(), *ours.modules.values()):
        module.to(device)
    plain = plain_step(dict(theirs.modules))
    updates = Updates(ours, loop, World(), device)
    updates.begin()
    ways = {
        "plain float32": lambda i: plain(batch),
        f"ours {given.precision}": lambda i: updates.step(i, batch, 1.0, given.precision),
    }
    least = dict.fromkeys(ways, float("inf"))
    for run in range(given.runs + 1):  # the first is not counted
        for name, step in ways.items():
            began = time.perf_counter()
            step(run)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if run:
                least[name] = min(least[name], time.perf_counter() - began)
    print({k: v for k, v in describe_machine().items() if k in ("torch", "threads", "cpu_capability")}, str(device))
    for name, seconds in least.items():
        print(f"{name:16s} {seconds:8.3f} s")
    mine, peer = least[f"ours {given.precision}"], least["plain float32"]
    print(f"ratio {peer / mine:.2f}")


if __name__ == "__main__":
    main()
