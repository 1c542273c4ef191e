"""Noise of a run: every picture draws from its own random stream, so that no picture depends on its batch.

Where the numbers come from is the streams' business: `base.runtime.PictureStreams`, or for pictures of other programs
`webui.WebuiStreams` (AUTOMATIC1111) and `comfyui.ComfyStreams`. `brownian.TreeNoise` is the same with a Brownian tree for the
later draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..base.contracts import NoiseLevel


class Streams(Protocol):
    """Random numbers of B pictures, one stream each."""

    seeds: tuple[int, ...]
    source: str  # of the numbers: "cpu" or "nv"
    toward: tuple[tuple[int, float] | None, ...]  # per picture, another seed and the share of the way to it

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next draw of each: unit noise, float32 (B, *shape) on the CPU."""
        ...

    def again(self) -> Streams:
        """The streams of a second pass over the same pictures."""
        ...


class PictureNoise:
    """The noise source of one run over B pictures: call `initial` once, then hand the object to a sampler.

    streams: one random stream per picture. shape: of one picture's sample, (C, H, W).
    Draws are made in float32 on the CPU, and only then moved, so that they are the same on every device and precision.
    """

    def __init__(
        self,
        streams: Streams,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.streams, self.shape, self.dtype, self.device = streams, tuple(shape), dtype, device

    @property
    def name(self) -> str:
        """Where the numbers come from, for `Provenance.noise`."""
        return self.streams.source

    def initial(self, level: NoiseLevel, full: bool = False) -> Tensor:
        """The sample a run starts from, (B, C, H, W): sigma * noise, the clean part alpha * clean being unknown.

        At alpha = 0 nothing is left out. A table that ends short of pure noise loses that part (for Stable Diffusion
        alpha = 0.068), as in k-diffusion: its sigma_max * noise is this very sample divided by alpha.
        full: noise takes the place of the clean part as well, so that the sample has its whole size (1 if the level is variance
        preserving). So begin CompVis's DDIM, PLMS and UniPC, and k-diffusion's under AUTOMATIC1111's "SGM noise multiplier".
        """
        size = torch.hypot(level.alpha, level.sigma) if full else level.sigma
        return self._draw() * size.to(self.device, self.dtype).reshape(-1, *(1,) * len(self.shape))

    def __call__(self, here: NoiseLevel, there: NoiseLevel) -> Tensor:
        """Fresh unit noise (B, C, H, W) for the step between two levels."""
        return self._draw()

    def _draw(self) -> Tensor:
        return self.streams.normal(self.shape).to(self.device, self.dtype)
