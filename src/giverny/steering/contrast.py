"""Against too much contrast: strong guidance makes what is predicted larger than anything the network was taught.

Rescaled guidance is Lin et al. 2023 (arXiv 2305.08891), section 3.4; dynamic thresholding Saharia et al. 2022 (arXiv
2205.11487), section 2.3. Both look at one picture at a time, so that no picture depends on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..base.contracts import NoiseLevel

# (x, level) -> the clean estimate that a prediction of nothing would mean, (B, ...): x / alpha for a network that predicts
# noise, alpha x for one that predicts v, 0 for one that predicts the sample.
Origin = Callable[[Tensor, NoiseLevel], Tensor]


def rescaled(guided: Tensor, conditional: Tensor, origin: Tensor, share: float) -> Tensor:
    """A guided clean estimate whose *prediction* has the standard deviation of the conditional one, by `share` of the way.

    guided, conditional: clean estimates (B, ...) with guidance and of the prompt alone; origin: as `Origin`. share: the
    paper's phi, 0 leaves the estimate as it is, 1 matches.
    At one noise level a clean estimate is origin + c * prediction, with a number c that all predictions share. So the
    quantity rescaled is what the network says (noise, v or the sample, whichever it was taught), as in the paper and in
    diffusers' `rescale_noise_cfg`, though only estimates are seen here.
    """
    around = tuple(range(1, guided.dim()))
    wide, narrow = guided - origin, conditional - origin
    spread = wide.std(around, keepdim=True)
    ratio = torch.where(spread > 0, narrow.std(around, keepdim=True) / spread, 1.0)
    return origin + (1 + share * (ratio - 1)) * wide


def thresholded(clean: Tensor, percentile: float) -> Tensor:
    """Dynamic thresholding: clamped to [-s, s] and divided by s, where s is that percentile of |clean| but at least 1.

    clean: (B, ...), a picture in [-1, 1] as it should be. percentile: 0 to 1, 0.995 in the paper; interpolated linearly
    between two values, as by torch.quantile, which takes no large pictures.
    """
    size = clean.abs().flatten(1)  # (B, N)
    at = percentile * (size.shape[1] - 1)
    rank = math.floor(at)
    largest = size.topk(size.shape[1] - rank).values  # falling, so that the last is of this rank and the next above it before
    bound = torch.lerp(largest[:, -1], largest[:, -2:][:, 0], at - rank).clamp(min=1)
    bound = bound.reshape(-1, *(1,) * (clean.dim() - 1))
    return clean.clamp(-bound, bound) / bound
