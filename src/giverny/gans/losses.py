"""What a generator and a critic of pictures are told: formulas on logits, masks and features, each from its paper.

A critic's outputs are a tuple of logits: one map of patches, or the whole and every pixel. Losses are given per picture,
(B,), so that whoever calls may weigh or choose among pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["squares", "logistic"]
Outputs = tuple[Tensor, ...]  # logits (B, ...) each


def apart(logits: Tensor, target: Tensor | float, kind: Kind) -> Tensor:
    """Distance of logits from a target in 0..1, mean over a picture's places: (B,). squares: of the difference (Mao et al.
    2017, least squares); logistic: cross-entropy of the logits' probability (Goodfellow et al. 2014, non-saturating)."""
    wanted = torch.as_tensor(target, dtype=logits.dtype, device=logits.device).expand_as(logits)
    if kind == "squares":
        return (logits - wanted).square().flatten(1).mean(1)
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").flatten(1).mean(1)


def verdicts(outputs: Outputs, targets: Sequence[Tensor | float], kinds: Sequence[Kind]) -> Tensor:
    """Sum over kinds of loss of the mean over outputs: (B,)."""
    return torch.stack(
        [apart(out, target, kind) / len(outputs) for kind in kinds for out, target in zip(outputs, targets, strict=True)]
    ).sum(0)


def score(outputs: Outputs) -> Tensor:
    """How real a critic takes each picture to be: the mean logit over places, and over outputs, (B,)."""
    return torch.stack([out.flatten(1).mean(1) for out in outputs]).mean(0)


def kept_of(rows: int, epoch: int, least: float, decay: float) -> int:
    """How many of a batch top-k training keeps (Sinha et al. 2020): all at first, `decay` times as many each epoch, and
    `least` of them in the end. At least one: with batches of one nothing changes."""
    return max(1, round(rows * max(least, decay**epoch)))


def best(values: Tensor, judged: Tensor, count: int) -> Tensor:
    """Mean of the `count` values of pictures that are judged highest; the others have no gradient. (B,), (B,) -> ()."""
    return values[judged.detach().topk(count).indices].mean()


# ---------------------------------------------------------------------------------------------------------------------
# Mixed pictures (Yun et al. 2019, Zhang et al. 2018; as discriminators are taught by Schönfeld et al. 2020)


def cut_mask(draws: Tensor, sides: tuple[int, int]) -> Tensor:
    """CutMix: a box of a real picture in a fake one or the other way round, one mask a picture.

    draws: (B, 4) uniform in 0..1: the share lambda ~ Beta(1, 1) outside the box, its centre down and across, and which way
    round. The box has sides sqrt(1 - lambda) times the picture's and is cut off at its edges. -> (B, 1, H, W) of 0 and 1.
    """
    share, down, across, turned = draws.unbind(1)
    inside = []
    for centre, side in ((down, sides[0]), (across, sides[1])):
        half, middle = (1 - share).sqrt() * side / 2, centre * side
        first, last = ((middle + way * half).round().clamp(0, side) for way in (-1, 1))
        place = torch.arange(side, device=draws.device)
        inside.append((place >= first[:, None]) & (place < last[:, None]))  # (B, side)
    box = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return (box ^ (turned >= 0.5)[:, None, None, None]).logical_not().to(draws)


def flat_mask(draws: Tensor, sides: tuple[int, int]) -> Tensor:
    """MixUp: the same share everywhere, uniform in 0..1. draws as for `cut_mask` -> (B, 1, H, W)."""
    return draws[:, :1, None, None].expand(-1, 1, *sides)


def mixed(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """mask * one + (1 - mask) * other."""
    return mask * one + (1 - mask) * other


def inconsistency(of_mixed: Tensor, mask: Tensor, of_real: Tensor, of_fake: Tensor) -> Tensor:
    """Squared distance between the logits of a mixed picture and the mixed logits, over all pixels: ()."""
    return (of_mixed - mixed(mask, of_real, of_fake)).square().mean()


def printed_inconsistency(mask: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """The same as one report prints it: | M real + (1 - M) fake - ((1 - M) real + M fake) |, on pictures instead of logits.

    No network is in it: for masks of 0 and 1 it is | real - fake |, whatever the mask.
    """
    return (mixed(mask, real, fake) - mixed(mask, fake, real)).abs().mean()


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


def between(start: float, end: float, progress: float) -> float:
    """Linear from start to end as a run goes on from 0 to 1."""
    return start + (end - start) * progress


def absolute(one: Tensor, other: Tensor) -> Tensor:
    """Mean absolute difference of each picture or its features: (B,)."""
    return (one - other).abs().flatten(1).mean(1)


# ---------------------------------------------------------------------------------------------------------------------
# Patches that correspond (CUT, Park et al. 2020, arXiv 2007.15651)


def patch_contrast(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each place of ours (B, N, C) among the N places of the same picture of theirs, (B,).

    Both are unit vectors; theirs have no gradient.
    """
    logits = ours @ theirs.detach().transpose(1, 2) / temperature  # (B, N, N)
    right = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
    return F.cross_entropy(logits.flatten(0, 1), right.flatten(), reduction="none").view(right.shape).mean(1)


def places_of(draws: Tensor, count: int) -> Tensor:
    """Different places of each picture's map, as many as `count` or as there are: of the largest draws. (B, h w) -> (B, N)."""
    return draws.topk(min(count, draws.shape[1]), dim=1).indices


# ---------------------------------------------------------------------------------------------------------------------
# Differentiable augmentation (Zhao et al. 2020, arXiv 2006.10738)

Change = Literal["colour", "translation", "cutout"]
DRAWS = 7  # uniform numbers that `augmented` takes for a picture
SHIFT, HOLE = 1 / 8, 1 / 2  # of a side: how far a picture is moved at most, how large a square is cut out


def augmented(x: Tensor, changes: Sequence[Change], draws: Tensor) -> Tensor:
    """Pictures as a critic is shown them, real and fake alike: changed at random, with gradients to what they were.

    draws: (B, 7) uniform in 0..1. colour: brightness by -1/2..1/2, saturation by 0..2, contrast by 1/2..3/2; translation: by
    up to an eighth of a side, black beyond the edges; cutout: a grey square of half a side, partly outside perhaps.
    """
    light, colourful, contrast, *place = (d[:, None, None, None] for d in draws.unbind(1))
    if "colour" in changes:
        x = x + (light - 0.5)
        grey = x.mean(1, keepdim=True)
        x = (x - grey) * (2 * colourful) + grey
        level = x.mean((1, 2, 3), keepdim=True)
        x = (x - level) * (contrast + 0.5) + level
    if "translation" in changes:
        x = _moved(x, place[0].flatten(), place[1].flatten())
    if "cutout" in changes:
        x = x * _hole(x, place[2].flatten(), place[3].flatten())
    return x


def _whole(draws: Tensor, least: int, most: int) -> Tensor:
    """Uniform whole numbers from least to most, both included."""
    return least + (draws * (most - least + 1)).floor().long().clamp(max=most - least)


def _moved(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    high, wide = x.shape[-2:]
    reach = [math.floor(side * SHIFT + 0.5) for side in (high, wide)]
    rows = torch.arange(high, device=x.device) + _whole(down, -reach[0], reach[0])[:, None]  # (B, H), taken from there
    columns = torch.arange(wide, device=x.device) + _whole(across, -reach[1], reach[1])[:, None]
    there = ((rows >= 0) & (rows < high))[:, None, :, None] & ((columns >= 0) & (columns < wide))[:, None, None, :]
    rows, columns = rows.clamp(0, high - 1), columns.clamp(0, wide - 1)
    taken = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, wide))
    return taken.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], high, -1)) * there


def _hole(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(B, 1, H, W): 0 in a square, 1 around it."""
    inside = []
    for draws, side in ((down, x.shape[-2]), (across, x.shape[-1])):
        length = math.floor(side * HOLE + 0.5)
        first = _whole(draws, 0, side - length % 2)[:, None] - length // 2
        place = torch.arange(side, device=x.device)
        inside.append((place >= first) & (place < first + length))
    return (~(inside[0][:, None, :, None] & inside[1][:, None, None, :])).to(x)
