"""Objective: say of a picture what it shows, attribute by attribute (cross-entropy; label smoothing as in Szegedy et al. 2016,
arXiv 1512.00567). What nobody has named is not learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Batch, Frozen, Streams, Turn
from .augment import mirrored, recoloured, shifted

UNKNOWN = -1  # the value of an attribute that nobody named


class ClassifyRecipe(Frozen):
    smoothing: float = Field(0.0, ge=0, lt=1, description="share of a target that is spread over all values")
    rare: float = Field(0.0, ge=0, le=1, description="a value that n pictures show weighs n to the minus this in the loss")
    shift: int = Field(0, ge=0, description="largest random shift of a picture in pixels")
    ground: int | None = Field(None, ge=0, le=255, description="grey that a shift lays bare; None: the picture's edge goes on")
    mirror: bool = Field(False, description="mirror half of the pictures")
    recolour: float = Field(0.0, ge=0, le=1, description="share of pictures whose colour channels change places")
    of_colour: tuple[str, ...] = Field((), description="attributes that are not learnt from pictures in changed colours")


def value_weights(counts: Tensor, rare: float) -> Tensor:
    """What each value counts in the loss: n ** -rare, 1 on average over the pictures. counts: how many show it (K,) -> (K,)."""
    each = counts.clamp(min=1).double() ** -rare
    return (each * counts.sum() / (each * counts).sum().clamp(min=1e-9)).float()


class Classify:
    """Trains a network (B, C, H, W) -> {attribute: logits (B, K)} on batches with "pixels" in [-1, 1] and "values", int64
    (B, attributes) in the network's order, UNKNOWN where nobody named one. weights: {attribute: (K,)}, 1 where left out."""

    averaged: Sequence[str] = ("classifier",)

    def __init__(self, network: nn.Module, recipe: ClassifyRecipe, weights: Mapping[str, Tensor] | None = None) -> None:
        self.network, self.recipe, self.weights = network, recipe, weights or {}
        self.modules: Mapping[str, nn.Module] = {"classifier": network}

    def turns(self) -> Sequence[Turn]:
        return [Turn("classifier", list(self.network.parameters()))]

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        """Sums over named values, divided by all pictures: so the parts of a split batch add up to the whole."""
        recipe, values = self.recipe, batch["values"]
        ground = None if recipe.ground is None else recipe.ground / 127.5 - 1
        pixels = shifted(batch["pixels"], recipe.shift, streams, ground)
        if recipe.mirror:
            pixels = mirrored(pixels, streams)
        true_colours = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
        if recipe.recolour:
            pixels, true_colours = recoloured(pixels, recipe.recolour, streams)
        losses = {}
        for (attribute, logits), told in zip(self.network(pixels).items(), values.unbind(1), strict=True):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            weight = self.weights[attribute].to(logits) if attribute in self.weights else None
            told = told.where(true_colours, UNKNOWN) if attribute in recipe.of_colour else told
            crossed = F.cross_entropy(
                logits, told, weight, ignore_index=UNKNOWN, reduction="sum", label_smoothing=recipe.smoothing
            )
            losses[attribute] = crossed / len(told)
        return {"loss": torch.stack(list(losses.values())).sum()} | {f"loss_{k}": v.detach() for k, v in losses.items()}

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """accuracy_<attribute>: share of the pictures with a named value that are given it."""
        told = zip(self.network(batch["pixels"]).items(), batch["values"].unbind(1), strict=True)
        right = {name: (logits.argmax(1) == values)[values != UNKNOWN] for (name, logits), values in told}
        return {f"accuracy_{name}": found.double().mean() for name, found in right.items() if len(found)}

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        return None
