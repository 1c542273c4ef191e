"""Noise of a run: every picture draws from its own random stream, so that no picture depends on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base.contracts import NoiseLevel
from ..base.runtime import PictureStreams


class PictureNoise:
    """The noise source of one run over B pictures: call `initial` once, then hand the object to a sampler.

    streams: one random stream per picture. shape: of one picture's sample, (C, H, W).
    Draws are made in float32 on the CPU, and only then moved, so that they are the same on every device and precision.
    """

    def __init__(
        self,
        streams: PictureStreams,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.streams, self.shape, self.dtype, self.device = streams, tuple(shape), dtype, device

    def initial(self, level: NoiseLevel) -> Tensor:
        """The sample a run starts from, (B, C, H, W): sigma * noise, the clean part alpha * clean being unknown.

        At alpha = 0 nothing is left out. A table that ends short of pure noise loses that part (for Stable Diffusion
        alpha = 0.068), as in k-diffusion: its sigma_max * noise is this very sample divided by alpha.
        """
        sigma = level.sigma.to(self.device, self.dtype)
        return self(level, level) * sigma.reshape(-1, *(1,) * len(self.shape))

    def __call__(self, here: NoiseLevel, there: NoiseLevel) -> Tensor:
        """Fresh unit noise (B, C, H, W) for the step between two levels."""
        return self.streams.normal(self.shape).to(self.device, self.dtype)
