"""Weights of tokens, applied to what the text tower made of them.

"original" and "no-norm" as AUTOMATIC1111 (modules/sd_emphasis.py): vectors times weights, and with "original" the whole brought
back to the mean it had. "interpolate" as ComfyUI (comfy/sd1_clip.py): so far from the empty prompt's vector at the same place.
"ignore" leaves all as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["original", "no-norm", "interpolate", "ignore"]


def weighted(
    vectors: Tensor, weights: Tensor, how: Weighting, empty: Tensor | None = None, counts: Sequence[int] | None = None
) -> Tensor:
    """(B, L, C), float32 or as given. weights: (B, L), 1 for what is as usual.

    empty: (L, C), the empty prompt's vectors; for "interpolate". counts: how often each row stands in the batch over which
    "original" takes its mean, once if None: there it is that of one prompt's whole schedule, each entry a row.
    """
    if how == "ignore":
        return vectors
    many = weights.to(vectors)[..., None]  # (B, L, 1)
    if how == "interpolate":
        if empty is None:
            raise ValueError("interpolated weights want the empty prompt's vectors")
        return torch.where(many == 1, vectors, (vectors - empty) * many + empty)
    changed = vectors * many
    if how == "no-norm":
        return changed
    share = torch.tensor(counts or [1] * len(vectors), dtype=vectors.dtype, device=vectors.device)
    before, after = ((x.mean((1, 2)) * share).sum() / share.sum() for x in (vectors, changed))
    return changed * torch.where(after == 0, torch.ones_like(after), before / after)
