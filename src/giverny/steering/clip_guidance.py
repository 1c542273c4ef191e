"""Guidance by a judge of words and pictures: what is painted is pushed to where the judge finds it closer to the words.

Derived in two lines. Tweedie's formula reads a clean estimate as a score, grad_x log p(x) = (alpha clean - x) / sigma^2, and
Bayes adds grad_x log p(words | x), here strength * cos(words, picture of the clean estimate). Solved for the estimate:

    clean' = clean + strength * sigma^2 / alpha * grad_x cos(words, picture(clean(x)))

Classifier guidance is Dhariwal and Nichol 2021 (arXiv 2105.05233); with CLIP in the classifier's place Nichol et al. 2021
(GLIDE, arXiv 2112.10741, section 2.3). GLIDE's CLIP looks at the noisy sample and was taught to; ours may be any, since it
looks at the clean estimate, as Crowson's CLIP-guided diffusion does, from which the cutouts are too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..base.contracts import Estimate, NoiseLevel
from ..base.images import resize_tensor
from .guidance import position

# Beyond this position (alpha < sigma / 64) nothing is pushed: the formula divides by alpha, which a perfect denoiser makes
# good (its clean estimate hardly depends on x there) and a real one does not.
NOISIEST = 0.99


class Guide(Protocol):
    """A judge: vectors of length 1 whose cosine says how well a picture fits words. `text.space.SharedSpace` behind
    `painters.diffusion.guides.ClipGuide` is one.

    size: side of the square it looks at, in pixels.
    """

    size: int

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, d), rows of length 1."""
        ...

    def look(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1], of any size -> (N, d), rows of length 1; differentiable."""
        ...


def clip_guided(
    estimate: Estimate,
    decode: Callable[[Tensor], Tensor],
    guide: Guide,
    wanted: Tensor,
    strength: Tensor,
    interval: tuple[float, float] = (0.0, 1.0),
    cuts: Callable[[], Tensor] | None = None,
) -> Estimate:
    """`estimate`, pushed towards the words of each picture while the level lies in the interval (see `position`).

    estimate: differentiable in x (`guided` with grad=True, of a denoiser that can "grad"). decode: clean samples -> pictures
    (B, C, H, W) in [-1, 1]. wanted: (B, d), the words as the guide reads them. strength: (B,), 0 for no push; it stands where
    a log-likelihood would, per unit of cosine. cuts: None shows the guide the whole picture; else called once an estimate,
    for uniform numbers (B, n, 3): the mean over n `cutouts` counts.
    """
    low, high = interval

    def pushed(x: Tensor, level: NoiseLevel, step: int) -> Tensor:
        if not low <= position(level) <= min(high, NOISIEST):
            with torch.no_grad():
                return estimate(x, level, step)
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            clean = estimate(start, level, step)
            likeness = similarity(guide, decode(clean), wanted, cuts() if cuts is not None else None)
            (slope,) = torch.autograd.grad((strength.to(likeness) * likeness).sum(), start)
        alpha, sigma = level.for_sample(x)
        return clean.detach() + sigma**2 / alpha * slope

    return pushed


def similarity(guide: Guide, pictures: Tensor, wanted: Tensor, draws: Tensor | None = None) -> Tensor:
    """(B,) cosines between pictures (B, C, H, W) in [-1, 1] and vectors (B, d), or their means over `cutouts`."""
    if draws is None:
        return (guide.look(pictures) * wanted).sum(1)
    seen = guide.look(cutouts(pictures, draws, guide.size)).unflatten(0, draws.shape[:2])  # (B, n, d)
    return (seen * wanted[:, None]).sum(2).mean(1)


def cutouts(pictures: Tensor, draws: Tensor, side: int) -> Tensor:
    """n squares out of each picture, brought to `side`: (B, C, H, W) and uniform draws (B, n, 3) -> (B * n, C, side, side).

    A square measures from `side`, or the picture's shorter side if that is less, up to the shorter side; so of a square
    picture no larger than what the judge looks at, all are the whole picture.
    """
    height, width = pictures.shape[-2:]
    most = min(height, width)
    least = min(most, side)
    found = []
    for picture, rows in zip(pictures, draws.tolist(), strict=True):
        for large, down, right in rows:
            edge = least + round(large * (most - least))
            top, left = round(down * (height - edge)), round(right * (width - edge))
            found.append(resize_tensor(picture[None, :, top : top + edge, left : left + edge], (side, side)))
    return torch.cat(found)
