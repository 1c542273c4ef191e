"""Stable Diffusion's inpainting networks under words alone: they look at a mask and at what is left of a picture beside the
sample, nine channels in all (Rombach et al. 2022). Where no picture is given, all is masked: ones, and the latent of grey.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...base.contracts import Codec, Condition, Prepared, Probe
from ...denoisers.precondition import Network


class Unmasked:
    """A network that is fed the whole mask wherever the condition brings no channels of its own."""

    def __init__(self, network: Network, codec: Codec) -> None:
        self.network, self.codec = network, codec
        self._grey: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}  # by size of a latent

    def prepare(self, condition: Condition) -> Prepared:
        return condition.channels is not None, self.network.prepare(condition)

    def __call__(self, x: Tensor, t: Tensor, prepared: Prepared, probe: Probe | None = None) -> Tensor:
        brings, inner = prepared
        if not brings:
            x = torch.cat([x, self._beside(x).expand(len(x), -1, -1, -1)], dim=1)
        return self.network(x, t, inner, probe)

    def _beside(self, x: Tensor) -> Tensor:
        """Mask and grey picture, (1, 1 + z, h, w)."""
        key = (x.shape[-2:], x.dtype, x.device)
        if key not in self._grey:
            height, width = (side * self.codec.factor for side in x.shape[-2:])
            with torch.no_grad():
                grey = self.codec.encode(x.new_zeros(1, 3, height, width))
            self._grey = {key: torch.cat([torch.ones_like(grey[:, :1]), grey], dim=1)}  # of the last size: pictures are large
        return self._grey[key]


def fed(network: Network, enters: int, codec: Codec) -> Network:
    """The network, given what it lacks if it takes a mask and a picture beside the sample. enters: channels it takes."""
    return Unmasked(network, codec) if enters == 2 * codec.channels + 1 else network
