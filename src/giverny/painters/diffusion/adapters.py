"""A model under LoRAs, for one request or many: networks of its own over the model's tensors, of which those that are changed
are new and all others shared. The model itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...checkpoints.lora import Lora, merged
from ...checkpoints.native import fill
from .recipe import Parts, assemble


def adapted(parts: Parts, adapters: Sequence[tuple[Lora, float | Mapping[str, float]]]) -> Parts:
    """The parts with LoRAs added, each times a weight, or one for each of "denoiser" and "text". Raises InputError."""
    encoder = parts.encoder
    before = {"denoiser": parts.network.state_dict(), "text": encoder.tower.state_dict()}
    after = merged(before, adapters)
    with torch.device("meta"):
        network, tower = parts.recipe.denoiser.build(), parts.recipe.text.build()
    fill(network, after["denoiser"], "denoiser")
    fill(tower, after["text"], "text")
    return assemble(parts.recipe, encoder.tokenizer, tower, encoder.projection, network, parts.autoencoder)
