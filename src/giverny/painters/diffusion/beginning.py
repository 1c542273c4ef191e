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
from ...base.images import to_tensor
from ...sampling.starts import image_start, started

PURE = NoiseLevel(torch.tensor(0.0), torch.tensor(1.0))
Encode = Callable[[Tensor], Tensor]  # pixels (B, C, H, W) in [-1, 1] -> latents (B, z, h, w)


@dataclass(frozen=True, eq=False)
class Beginning:
    """What B requests of one kind start from. Masks are 1 where is painted."""

    pixels: np.ndarray  # uint8 (B, H, W, 3)
    white: np.ndarray | None  # bool (B, H, W)
    clean: Tensor  # (B, z, h, w)
    mask: Tensor | None  # (B, 1, h, w)
    channels: Tensor | None  # (B, 1 + z, h, w), mask and masked latents, for a network that looks at them
    empty: bool  # whether nothing of the picture is left under the mask

    def noised(self, level: NoiseLevel, noise: Tensor) -> Tensor:
        """The sample at a level. noise: unit noise (B, z, h, w). Where nothing is left of the picture, noise is."""
        x = self._at(level, noise)
        if not self.empty or self.mask is None:
            return x
        alpha, sigma = level.for_sample(x)
        return torch.where(self.mask > 0, torch.hypot(alpha, sigma) * noise, x)

    @property
    def keeps(self) -> bool:
        """Whether what is not painted has to be put back at every step."""
        return self.mask is not None and self.channels is None

    def kept(self, x: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
        """The sample, with the picture put back where it is not painted."""
        return x if self.mask is None else torch.where(self.mask > 0, x, self._at(level, noise))

    def pasted(self, pixels: np.ndarray) -> np.ndarray:
        """Painted pixels, uint8 (B, H, W, 3), with those of the picture where it was not to be painted."""
        return pixels if self.white is None else np.where(self.white[..., None], pixels, self.pixels)

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
    read = [start.at(size) for start in alone]
    rows = [alone.index(start) for start in starts]
    pixels = np.stack([seen for seen, _ in read])
    tensors = to_tensor(pixels if channels == 3 else _grey(pixels))
    clean = torch.cat([encode(one[None]) for one in tensors])
    masks = [white for _, white in read if white is not None]
    if not masks:
        return Beginning(pixels[rows], None, clean[rows], None, None, False)
    white = np.stack(masks)
    ones = torch.from_numpy(white)[:, None].to(clean)
    mask = torch.nn.functional.max_pool2d(ones, size[1] // clean.shape[-2])  # a place is painted if a pixel of it is
    beside = None
    if looks:
        hidden = tensors * (1 - ones.to(tensors))
        beside = torch.cat([mask, torch.cat([encode(one[None]) for one in hidden])], dim=1)[rows]
    return Beginning(pixels[rows], white[rows], clean[rows], mask[rows], beside, starts[0].fill == "noise")


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
