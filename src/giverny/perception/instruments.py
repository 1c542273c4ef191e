"""Instruments: a frozen network together with how pictures are brought to it, as one thing with a name and conditions.

Scores of two instruments cannot be compared, so whatever moves a number is named: weights, layer, resizer, size. Pictures
are always looked at in batches of one size, the last filled up with grey: convolutions of another batch size round
differently, and a score must not depend on how its pictures were handed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import InputError
from .inception import SIDE as INCEPTION_SIDE
from .inception import TAPS, FIDInception
from .resizers import get_resizer
from .vgg import LPIPS, MEAN, SPREAD, VGG16
from .vgg import SIDE as VGG_SIDE

BATCH = 32


@dataclass(frozen=True, eq=False)
class Instrument:
    """contracts.Instrument over `look`: float32 (B, 3, side, side) in 0..255, as the resizer gives them -> (B, width)."""

    name: str
    width: int
    side: int
    resizer: str
    look: Callable[[Tensor], Tensor]
    weights: str  # fingerprint of them; "none" where there are none
    device: torch.device = torch.device("cpu")
    facts: dict[str, Any] = field(default_factory=dict)  # what else moves its numbers

    def conditions(self) -> dict[str, Any]:
        return {
            "features": self.name, "width": self.width, "weights": self.weights, "resizer": self.resizer,
            "looked_at": f"{self.side} x {self.side}", **self.facts,
        }  # fmt: skip

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 1 or 3) of one size -> float32 (B, width)."""
        colour = colours(pixels)
        resize, found = get_resizer(self.resizer), []
        for first in range(0, len(colour), BATCH):
            part = resize(colour[first : first + BATCH], self.side)
            filled = torch.full((BATCH, *part.shape[1:]), 128.0)
            filled[: len(part)] = part
            found.append(self.look(filled.to(self.device))[: len(part)].float().cpu())
        return torch.cat(found)


def colours(pixels: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, 1 or 3) -> (B, H, W, 3). Raises InputError for other arrays and for none at all."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or not pixels.size:
        raise InputError("pictures uint8 (B, H, W, 1 or 3)", f"{pixels.dtype} {tuple(pixels.shape)}")
    return pixels if pixels.shape[3] == 3 else pixels.repeat(3, axis=3)


# ---------------------------------------------------------------------------------------------------------------------
# What there is


def inception(
    network: FIDInception, weights: str, resizer: str = "clean", tap: str = "2048", device: str = "cpu"
) -> Instrument:
    """Features of FID's network. weights: their fingerprint."""
    place = torch.device(device)
    network.to(place)

    def look(x: Tensor) -> Tensor:
        return network((x - 128) / 128, (tap,))[tap]

    return Instrument(f"inception-{tap}", TAPS[tap], INCEPTION_SIDE, resizer, look, weights, place)


def vgg(network: VGG16, weights: str, resizer: str = "clean", device: str = "cpu") -> Instrument:
    """The second hidden layer of VGG16, with which precision and recall were published."""
    place = torch.device(device)
    network.to(place)
    mean, spread = (torch.tensor(v, device=place).view(1, 3, 1, 1) for v in (MEAN, SPREAD))
    if network.classifier is None:
        raise InputError("VGG16 with its upper layers", "one without them")
    hidden: Any = network.classifier[3]
    width = int(hidden.out_features)

    def look(x: Tensor) -> Tensor:
        return network.below_logits((x / 255 - mean) / spread)

    return Instrument("vgg16-fc2", width, VGG_SIDE, resizer, look, weights, place)


def small_pixels(side: int = 16) -> Instrument:
    """The pictures themselves, made small: needs no weights and sees colour and outline, but neither texture nor meaning."""
    return Instrument(f"pixels-{side}", 3 * side * side, side, "antialiased", lambda x: x.flatten(1) / 255, "none")


def perceptual_distance(network: LPIPS, ours: np.ndarray, theirs: np.ndarray, device: str = "cpu") -> Tensor:
    """LPIPS (B,) of pairs of pictures uint8 (B, H, W, 1 or 3), as they are: nothing is resized."""
    place = torch.device(device)
    network.to(place)
    found = []
    with torch.inference_mode():
        for first in range(0, len(ours), BATCH):
            sides = (torch.from_numpy(colours(p[first : first + BATCH])).movedim(-1, 1).to(place) for p in (ours, theirs))
            found.append(network(*(side.float() / 127.5 - 1 for side in sides)).cpu())
    return torch.cat(found)
