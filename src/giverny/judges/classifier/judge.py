"""A judge at work: pictures of any size in, features and probabilities out. Always in float32, so that an instrument reads the
same whoever asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...perception.classifier import Classifier
from ...perception.instruments import Instrument
from .recipe import ModelRecipe

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in training


@dataclass(frozen=True, eq=False)
class Looked:
    """What a judge says of N pictures. probabilities: attribute -> (N, values)."""

    features: np.ndarray  # float32 (N, d), of the layer below the words
    probabilities: dict[str, np.ndarray]  # float32, each row sums to 1


class ClassifierJudge:
    """A contracts.Instrument that also says what it sees. attributes: the values of each, in the order of the probabilities."""

    family = "classifier"

    def __init__(
        self,
        network: Classifier,
        recipe: ModelRecipe,
        name: str,
        fingerprint: str,
        data: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self.network = network.to(device, torch.float32).eval().requires_grad_(False)
        self.recipe, self.name, self.fingerprint, self.data = recipe, name, fingerprint, dict(data)
        self.attributes, self.width = dict(recipe.attributes), network.width
        everything = network.width + sum(network.values.values())
        self._eye = Instrument(name, everything, recipe.size, recipe.resizer, self._see, fingerprint, device)

    def look(self, pixels: np.ndarray) -> Looked:
        """pixels: uint8 (N, H, W, 3), or (N, H, W, 1) in grey; another size is brought to the judge's by its resizer."""
        seen = self._eye(pixels)
        found = self.network.apart(seen[:, self.width :])
        return Looked(seen[:, : self.width].numpy(), {name: logits.softmax(1).numpy() for name, logits in found.items()})

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 (N, H, W, 1 or 3) -> features float32 (N, d)."""
        return self._eye(pixels)[:, : self.width]

    def conditions(self) -> dict[str, Any]:
        """What a score that was measured with this judge depends on."""
        return {
            **self._eye.conditions(),
            "width": self.width,
            "judge": self.name,
            "architecture": self.recipe.network.family,
            "channels": self.recipe.channels,
            "trained_on": {**self.data, **self.recipe.trained},
        }

    def _see(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) in 0..255 -> features and logits beside each other."""
        if self.recipe.channels == 1:
            x = (x * x.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)
        features = self.network.features(x / 127.5 - 1)
        return torch.cat([features, self.network.head(features)], 1)
