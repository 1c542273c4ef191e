"""The guard against black pictures: what is no number never becomes pixels that are called a picture.

Coarse number formats overflow, above all float16 in autoencoders. What they spoil is calculated once more in float32, as
AUTOMATIC1111's web interface does; what is spoilt even then, or in the denoiser, fails and says where.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from ...autoencoders.codec import LatentCodec
from ...base.contracts import Codec
from ...base.errors import InputError


def sound(x: Tensor) -> Tensor:
    """Which of B samples (B, ...) consist of finite numbers, bool (B,)."""
    return x.isfinite().flatten(1).all(1)


def all_sound(x: Tensor) -> bool:
    """Whether all are, at the price of a sum: a number that is not finite makes it so too."""
    return math.isfinite(float(x.sum()))


def quiet(x: Tensor) -> Tensor:
    """(B, ...) with zeros in place of samples that are not sound."""
    return torch.where(sound(x).view(-1, *(1,) * (x.dim() - 1)), x, torch.zeros_like(x))


def spoilt(stage: str) -> str:
    """Why a picture failed. stage: what its numbers came from, such as "the denoiser at step 7"."""
    remedy = "Try --precision float32, less guidance or another sampler; if nothing helps, the model's weights are damaged."
    return str(InputError("a picture of finite numbers", f"numbers that are not finite, from {stage}", remedy))


def in_float32(codec: Codec) -> Codec:
    """A codec that calculates in float32, made of a copy of another's weights."""
    if isinstance(codec, LatentCodec) and isinstance(codec.autoencoder, nn.Module):
        return LatentCodec(deepcopy(codec.autoencoder).float(), codec.channels, codec.factor, codec.scale)
    return codec


def exactly(
    ask: Callable[[Codec, Tensor], Tensor], codec: Codec, x: Tensor, precision: torch.dtype, finer: Callable[[], Codec]
) -> Tensor:
    """ask(codec, x) in this precision, given out in float32 or finer; what is not sound of it is asked of `finer` in float32.

    ask: encodes or decodes B sound samples. What no precision helps stays as it is.
    """
    fine = torch.promote_types(precision, torch.float32)
    with torch.inference_mode():
        made = ask(codec, x.to(precision)).to(fine)
        bad = ~sound(made)
        if precision != fine and bool(bad.any()):
            made[bad] = ask(finer(), x[bad].to(fine))
    return made.clone()  # an ordinary tensor
