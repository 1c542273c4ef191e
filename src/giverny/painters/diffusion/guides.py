"""CLIP as a guide of the painter: any `SharedSpace`, looked through so that gradients pass, and what a request's words
come to in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...base.contracts import Request
from ...base.images import resize_tensor
from ...base.runtime import PictureStreams, derive_seed, slerp
from ...steering.clip_guidance import Guide
from ...text.space import SharedSpace

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns colours to grey


class ClipGuide:
    """`steering.clip_guidance.Guide` over a trained CLIP."""

    def __init__(self, space: SharedSpace) -> None:
        self.space, self.size = space, space.size
        self.channels = space.clip.recipe.image.channels

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, d), rows of length 1."""
        return self.space.texts(texts).clone()  # outside of inference mode, so that gradients may be taken beside it

    def look(self, pictures: Tensor) -> Tensor:
        """(N, 1 or 3, H, W), clamped to [-1, 1], of any size -> (N, d), rows of length 1.

        Each is scaled until it covers the tower's square, and what stands over is cut off, as `SharedSpace.pictures` does.
        Beyond the range, where a picture cannot show what is asked of it, there is no gradient.
        """
        high, wide = pictures.shape[-2:]
        scale = self.size / min(high, wide)
        seen = pictures.to(self.space.clip.logit_scale.dtype).clamp(-1, 1)
        if scale != 1:
            seen = resize_tensor(seen, (round(wide * scale), round(high * scale)))
        top, left = (seen.shape[-2] - self.size) // 2, (seen.shape[-1] - self.size) // 2
        seen = seen[..., top : top + self.size, left : left + self.size]
        if seen.shape[1] > self.channels:
            seen = (seen * seen.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        seen = seen.expand(-1, self.channels, -1, -1)
        return self.space.clip.image_features(((seen + 1) / 2 - self.space._mean) / self.space._deviation)


def words_of(guide: Guide, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
    """(vectors (B, d), weights (B,)): where each request's words lie, and 0 where there are none to push to.

    A request on the way `toward` other words lies as far along the sphere; the ends are the words of either to the bit.
    """
    here = [r.prompt for r in requests]
    there = [r.toward.prompt if r.toward else r.prompt for r in requests]
    read = guide.texts([*here, *there])
    share = torch.tensor([r.toward.share if r.toward else 0.0 for r in requests], dtype=read.dtype, device=read.device)
    told, ends = (torch.tensor([float(bool(text.strip())) for text in side]).to(read) for side in (here, there))
    start, end = read.chunk(2)
    return slerp(start, end, share), torch.lerp(told, ends, share)


def cuts_of(requests: Sequence[Request], count: int) -> Callable[[], Tensor]:
    """A source of uniform numbers (B, count, 3), from a stream of each picture's own, beside that of its noise.

    A request with a variation lies as far towards the other seed's numbers: normal ones are mixed as noise is.
    """
    named = lambda seed: derive_seed("cutouts", seed)  # noqa: E731
    others = [(named(r.variation.seed), r.variation.strength) if r.variation else None for r in requests]
    streams = PictureStreams([named(r.seed) for r in requests], others)
    return lambda: torch.special.ndtr(streams.normal((count, 3)))
