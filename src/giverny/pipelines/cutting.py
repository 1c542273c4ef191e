"""Teaching a network to cut things out, from pictures that need no network for it, and cutting out all others with it.

The plain pictures of a set are cut by `data.clothes.cutouts`; laid on other grounds they are the training examples. No
picture is labelled by hand, and none comes from outside the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..base.files import fingerprint
from ..base.runtime import threads
from ..data.clothes.composites import Composites, square, unsquare
from ..data.clothes.cutouts import cut, filled, largest
from ..data.clothes.photographs import Photographs
from ..training.loop import LoopRecipe, Trainer
from ..training.segment import Segment

HELD = 64  # composites that the network is validated on
AGREE = 0.8  # a cut is believed if that of the mirrored picture has this much in common with it
Look = Callable[[Tensor], tuple[Tensor, Tensor]]  # pictures (B, 3, S, S) -> (probability (B, S, S), agreement (B,))


def teach_cutting(
    photographs: Photographs,
    network: nn.Module,
    size: int,
    folder: Path,
    recipe: LoopRecipe,
    told: Callable[[str, int, int], None],
) -> dict[str, float]:
    """Train the network, resuming in `folder`; it holds its averaged weights afterwards. Returns what it came to."""
    things, grounds = [], []
    with threads(1):  # pictures are small: threads would wait for each other
        for number, row in enumerate(photographs.rows):
            pixels = photographs.pixels(row)
            found = cut(pixels)
            if found is not None:
                things.append((pixels, found))
            grounds.append(pixels)
            if number % 50 == 49 or number + 1 == len(photographs.rows):
                told("looking for plain grounds", number + 1, len(photographs.rows))
    if len(things) < 20:
        raise InputError("20 pictures on plain grounds to learn cutting from", str(len(things)), "Add such pictures.")
    held = max(4, len(things) // 10)
    examples = Composites(things[held:], grounds, size, recipe.batch, recipe.seed)
    validation = Composites(things[:held], grounds, size, HELD, recipe.seed + 1).batch_at(0)
    identity = fingerprint([len(grounds), len(things), size])
    trainer = Trainer(Segment(network), examples.stream, recipe, folder, validation, resume=True, identity=identity)
    with closing(trainer.run()) as reports:
        for report in reports:
            told("learning to cut out", report.step, report.total)
    network.load_state_dict(trainer.averages["foreground"])
    network.eval()
    with torch.inference_mode():
        seen = (network(validation["pixels"]) > 0), validation["masks"] > 0.5
    union = (seen[0] | seen[1]).flatten(1).sum(1).clamp(min=1)
    overlap = float(((seen[0] & seen[1]).flatten(1).sum(1) / union).mean())
    return {"plain": len(things), "of": len(grounds), "steps": trainer.counters.step, "iou": round(overlap, 4)}


def cut_out(look: Look, size: int, pictures: Sequence[np.ndarray]) -> Iterator[np.ndarray | None]:
    """The cut of each picture, bool (H, W): the network's where it is sure and the cut credible, else that of a thing on a
    plain ground, else None."""
    for first in range(0, len(pictures), 32):
        some = pictures[first : first + 32]
        with torch.inference_mode():
            odds, agree = look(torch.stack([square(p, None, size) for p in some]) * 2 - 1)
        with threads(1):
            found = [_credible(*one) for one in zip(some, odds.numpy(), agree.tolist(), strict=True)]
        yield from found


def _credible(picture: np.ndarray, odds: np.ndarray, agreement: float) -> np.ndarray | None:
    found = filled(largest(torch.from_numpy(unsquare(odds, picture.shape[:2]) > 0.5)))
    share = float(found.float().mean())
    edge = float(torch.cat([found[0], found[-1], found[:, 0], found[:, -1]]).float().mean())
    return found.numpy() if agreement >= AGREE and 0.08 < share < 0.85 and edge < 0.25 else cut(picture)
