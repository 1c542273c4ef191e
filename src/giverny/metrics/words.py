"""How well pictures answer words, by a pair of towers that put both into one space (CLIP). Three definitions are in use under
one name; their numbers cannot be compared, so each has its own name here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import InputError

HESSEL = "hessel"  # CLIPScore of Hessel et al. 2021 (arXiv 2104.08718): 2.5 * max(cos, 0) of each pair
PERCENT = "percent"  # 100 * mean cos, then not below 0: torchmetrics
COSINE = "cosine"  # the plain mean of cos, as in the tables of DF-GAN and GALIP
DEFINITIONS = (HESSEL, PERCENT, COSINE)


def cosines(pictures: Tensor, texts: Tensor) -> Tensor:
    """(n, d) twice -> (n,), pair by pair, in float64."""
    if pictures.shape != texts.shape:
        raise InputError("a text for each picture", f"{tuple(pictures.shape)} and {tuple(texts.shape)}")
    return F.cosine_similarity(pictures.double(), texts.double(), dim=1)


def clip_scores(pictures: Tensor, texts: Tensor) -> dict[str, float]:
    """Every definition by its name."""
    found = cosines(pictures, texts)
    return {
        HESSEL: float(2.5 * found.clamp(min=0).mean()),
        PERCENT: max(float(100 * found.mean()), 0.0),
        COSINE: float(found.mean()),
    }


def r_precision(pictures: Tensor, texts: Tensor, captions: Sequence[str], among: int = 100, seed: int = 0) -> Tensor:
    """bool (n,): whether a picture's own text is the nearest among it and `among` - 1 texts of other captions (Xu et al.
    2018, arXiv 1711.10485). Captions that read the same are one: they are never drawn against each other.

    Raises InputError where there are fewer than `among` different captions.
    """
    places: dict[str, int] = {}
    for row, caption in enumerate(captions):
        places.setdefault(caption, row)
    different = list(places.values())
    if len(captions) != len(pictures) or not 2 <= among <= len(different):
        raise InputError(f"a caption for each of {len(pictures)} pictures, and 2 to {len(different)} to tell apart",
                         f"{len(captions)} captions, {among} to tell apart")  # fmt: skip
    chance = torch.Generator().manual_seed(seed)
    pictures, bank = (F.normalize(side.double(), dim=1) for side in (pictures, texts[different]))
    number = {caption: i for i, caption in enumerate(places)}
    right = torch.empty(len(pictures), dtype=torch.bool)
    for row, caption in enumerate(captions):
        own = number[caption]
        others = torch.randperm(len(bank) - 1, generator=chance)[: among - 1]
        others = others + (others >= own)
        alike = bank[others] @ pictures[row]
        right[row] = bool(bank[own] @ pictures[row] > alike.max())
    return right
