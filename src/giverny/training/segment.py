"""Objective: thing or ground, pixel by pixel: cross-entropy, and overlap (soft Dice, Milletari et al. 2016) so that small
things count as much as large ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Batch, Streams, Turn


class Segment:
    """Trains a network (B, 3, H, W) -> logits (B, 1, H, W) on batches with "pixels" and "masks" (B, 1, H, W) in 0..1."""

    averaged: Sequence[str] = ("foreground",)

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modules: Mapping[str, nn.Module] = {"foreground": network}

    def turns(self) -> Sequence[Turn]:
        return [Turn("foreground", list(self.network.parameters()))]

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        logits, masks = self.network(batch["pixels"]).float(), batch["masks"].float()
        crossed = F.binary_cross_entropy_with_logits(logits, masks)
        found = logits.sigmoid()
        shared, both = (found * masks).flatten(1).sum(1), (found + masks).flatten(1).sum(1)
        overlap = 1 - ((2 * shared + 1) / (both + 1)).mean()
        return {"loss": crossed + overlap, "crossed": crossed.detach(), "overlap": overlap.detach()}

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """iou: intersection over union of the cut with the true one, mean over pictures."""
        found, true = self.network(batch["pixels"]) > 0, batch["masks"] > 0.5
        union = (found | true).flatten(1).sum(1).clamp(min=1)
        return {"iou": ((found & true).flatten(1).sum(1) / union).mean()}

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        """Rows of eight pictures, each above its cut on white."""
        pixels = batch["pixels"][:16].float()
        alone = torch.where(self.network(batch["pixels"][:16]) > 0, pixels, torch.ones_like(pixels))
        return torch.cat([part for i in range(0, len(pixels), 8) for part in (pixels[i : i + 8], alone[i : i + 8])])
