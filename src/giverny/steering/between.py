"""Between two prompts: conditions mixed part of the way, so that the words of a picture can change little by little.

Text vectors are mixed token by token, in a straight line or along the sphere; pooled vectors along the sphere, since they
are compared by their angle (Radford et al. 2021, arXiv 2103.00020). Sphere: Shoemake 1985, see `base.runtime.slerp`. Ours:
a token of either text may be attended to as soon as its text has a share, so the longer text keeps all its words on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..base.contracts import Condition, Toward
from ..base.runtime import slerp


def between(here: Condition, there: Condition, toward: Sequence[Toward | None]) -> Condition:
    """A condition of B rows, row i lying `toward[i].share` of the way from `here` to `there`; None is no way at all.

    here, there: B rows, with the same parts in the same shapes. Shares 0 and 1 are the rows of either to the bit, masks
    included. Mixed in float32, returned in the dtype of `here`. Extra channels are those of `here`.
    """
    share = torch.tensor([way.share if way is not None else 0.0 for way in toward])
    curved = torch.tensor([way is not None and way.way == "spherical" for way in toward])
    vectors, pooled, mask = here.vectors, here.pooled, here.mask
    if vectors is not None and there.vectors is not None:
        vectors = _mixed(vectors, there.vectors, share[:, None], curved[:, None])  # (B, L, C)
    if pooled is not None and there.pooled is not None:
        pooled = _mixed(pooled, there.pooled, share, torch.ones_like(curved))  # (B, P)
    if mask is not None and there.mask is not None:
        part = share.to(mask.device)[:, None]
        mask = (mask & (part < 1)) | (there.mask & (part > 0))  # (B, L)
    return replace(here, vectors=vectors, pooled=pooled, mask=mask)


def _mixed(start: Tensor, end: Tensor, share: Tensor, curved: Tensor) -> Tensor:
    """(..., D), along the sphere where `curved`, else in a straight line; share and curved broadcast to (...)."""
    a, b = start.float(), end.float()
    share, curved = (x.to(a.device).expand(a.shape[:-1]) for x in (share, curved))
    return torch.where(curved[..., None], slerp(a, b, share), torch.lerp(a, b, share[..., None])).to(start.dtype)
