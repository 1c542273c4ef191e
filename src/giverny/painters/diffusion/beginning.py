"""Where pictures begin that do not begin as noise alone: another picture, noised part of the way, all of it or under a mask.

Noising a picture and denoising it again is SDEdit (Meng et al. 2021, arXiv 2108.01073). Under a mask, what is not painted is
put back at every step, noised to that step's level with one noise all along (blended diffusion, Avrahami et al. 2022, arXiv
2111.14818, in latents), as in diffusers' inpainting, whose first sample at strength 1 is noise outside the mask too. Networks
that see mask and picture beside the sample do without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...base.contracts import Condition, Denoise, Levels, NoiseLevel, Prepared, Probe, Start
from ...base.images import Filter, resize, to_tensor
from ...base.masks import blended
from ...base.start import Fill
from ...sampling.starts import image_start, started

PURE = NoiseLevel(torch.tensor(0.0), torch.tensor(1.0))
Encode = Callable[[Tensor], Tensor]  # pixels (B, C, H, W) in [-1, 1] -> latents (B, z, h, w)


@dataclass(frozen=True, eq=False)
class Beginning:
    """What B requests of one kind start from. Masks are 1 where is painted."""

    pixels: np.ndarray  # uint8 (B, H, W, 3)
    white: np.ndarray | None  # bool (B, H, W)
    shown: np.ndarray | None  # uint8 (B, H, W), how much of what is painted is laid over the picture
    clean: Tensor  # (B, z, h, w)
    mask: Tensor | None  # (B, 1, h, w)
    channels: Tensor | None  # (B, 1 + z, h, w), mask and masked latents, for a network that looks at them
    fill: Fill = "original"  # what is under the mask at first

    def noised(self, level: NoiseLevel, noise: Tensor) -> Tensor:
        """The sample at a level. noise: unit noise (B, z, h, w). With "noise" nothing is left of the picture under the
        mask; with "latent-noise" the same noise is both the picture there and the noise on it, as in AUTOMATIC1111."""
        x = self._at(level, noise)
        if self.mask is None or self.fill not in ("noise", "latent-noise"):
            return x
        alpha, sigma = level.for_sample(x)
        size = torch.hypot(alpha, sigma) if self.fill == "noise" else alpha + sigma
        return torch.where(self.mask > 0, size * noise, x)

    @property
    def keeps(self) -> bool:
        """Whether what is not painted has to be put back at every step."""
        return self.mask is not None and self.channels is None

    def kept(self, x: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
        """The sample, with the picture put back where it is not painted."""
        return x if self.mask is None else torch.where(self.mask > 0, x, self._at(level, noise))

    def pasted(self, pixels: np.ndarray) -> np.ndarray:
        """Painted pixels, uint8 (B, H, W, 3), laid over those of the picture as far as they are to show."""
        return pixels if self.shown is None else blended(pixels, self.pixels, self.shown)

    def _at(self, level: NoiseLevel, noise: Tensor) -> Tensor:
        alpha, sigma = level.for_sample(self.clean)
        return alpha * self.clean + sigma * noise


def beginning(
    starts: Sequence[Start],
    size: tuple[int, int],
    channels: int,  # of the pictures that the model knows: 1 or 3
    looks: bool,  # whether the network sees mask and picture beside the sample
    encode: Encode,
) -> Beginning:
    """Starts that have all a mask or all none, and one way to fill it. Raises InputError as `Start.at`."""
    alone = list(dict.fromkeys(starts))  # what several pictures start from is read and encoded once
    rows = [alone.index(start) for start in starts]
    read = [(start, start.at(size)) for start in alone]
    pixels = np.stack([seen.pixels for _, seen in read])
    clean = _encoded(np.stack([start.beneath(seen) for start, seen in read]), channels, encode)
    masks = [seen.white for _, seen in read if seen.white is not None]
    if not masks:
        return Beginning(pixels[rows], None, None, clean[rows], None, None)
    white, fill = np.stack(masks), starts[0].fill
    shown = np.stack([shade for start, seen in read if (shade := start.shown(seen)) is not None])
    mask, beside = _masked(pixels, white, clean, channels, looks, encode)
    if fill == "latent-nothing":
        clean = torch.where(mask > 0, 0, clean)
    beside = None if beside is None else beside[rows]
    return Beginning(pixels[rows], white[rows], shown[rows], clean[rows], mask[rows], beside, fill)


def second_beginning(
    first: Beginning, x: Tensor, size: tuple[int, int], channels: int, looks: bool, encode: Encode
) -> Beginning:
    """What a second pass at `size` starts from under a mask: x (B, z, h, w), what the first pass made, enlarged already;
    elsewhere the picture, enlarged bicubically. channels, looks, encode: as for `beginning`."""
    assert first.white is not None and first.shown is not None
    pixels = np.stack([resize(one, size, Filter.BICUBIC) for one in first.pixels])
    shown = np.stack([resize(one, size, Filter.BILINEAR) for one in first.shown])
    white = np.stack([resize(one.astype(np.uint8) * 255, size, Filter.BILINEAR) > 0 for one in first.white])
    clean = _encoded(pixels, channels, encode).to(x)
    mask, beside = _masked(pixels, white, clean, channels, looks, encode)
    return Beginning(pixels, white, shown, torch.where(mask > 0, x, clean), mask, beside)


def _masked(
    pixels: np.ndarray, white: np.ndarray, clean: Tensor, channels: int, looks: bool, encode: Encode
) -> tuple[Tensor, Tensor | None]:
    """(mask (B, 1, h, w), what a network that looks sees beside the sample)"""
    ones = torch.from_numpy(white)[:, None].to(clean)
    mask = torch.nn.functional.max_pool2d(ones, pixels.shape[1] // clean.shape[-2])  # a place is painted if a pixel of it is
    if not looks:
        return mask, None
    return mask, torch.cat([mask, _encoded(pixels, channels, encode, hidden=white)], dim=1)


def _encoded(pixels: np.ndarray, channels: int, encode: Encode, hidden: np.ndarray | None = None) -> Tensor:
    """Latents of uint8 (B, H, W, 3), one at a time. hidden: bool (B, H, W), what is mid-grey instead."""
    tensors = to_tensor(pixels if channels == 3 else _grey(pixels))
    if hidden is not None:
        tensors = tensors * (1 - torch.from_numpy(hidden)[:, None].to(tensors))
    return torch.cat([encode(one[None]) for one in tensors])


def _grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, 3) -> (B, H, W, 1), by lightness."""
    return np.stack([np.asarray(Image.fromarray(one).convert("L"))[..., None] for one in pixels])


def run_over(levels: Callable[[int], Levels], steps: int, start: Start) -> Levels | None:
    """The last steps of a run, as many as the strength means; None where that is none. levels: of so many steps."""
    asked = image_start(steps, start.strength, start.program)
    spread = levels(asked.steps)
    return started(spread, max(0, spread.steps - asked.run))


class Beside:
    """A denoiser that sees channels beside its sample, the same for every branch of guidance. channels: (B, K, h, w)."""

    def __init__(self, denoise: Denoise, channels: Tensor) -> None:
        self.denoise, self.channels, self.can = denoise, channels, denoise.can

    def prepare(self, condition: Condition) -> Prepared:
        branches = (condition.rows or len(self.channels)) // len(self.channels)
        return self.denoise.prepare(replace(condition, channels=self.channels.repeat(branches, 1, 1, 1)))

    def __call__(self, x: Tensor, level: NoiseLevel, prepared: Prepared, probe: Probe | None = None) -> Tensor:
        return self.denoise(x, level, prepared, probe)
