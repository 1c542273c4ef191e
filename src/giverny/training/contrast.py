"""Objective: pictures and their captions find each other (CLIP, Radford et al. 2021).

Small sets have many pictures per caption. Captions that are word for word the same are all counted as right answers: the
target of a picture is spread evenly over its caption's copies in the batch, so the loss never punishes a correct match.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Batch, Frozen, Streams, Turn

MAX_SCALE = 100.0  # largest inverse temperature, as in the paper


class ContrastRecipe(Frozen):
    shift: int = Field(0, ge=0, description="largest random shift of a picture in pixels, as augmentation")


class TwoTowers(Protocol):
    logit_scale: Tensor

    def text_features(self, ids: Tensor, end: int) -> Tensor: ...

    def image_features(self, pixels: Tensor) -> Tensor: ...


class Contrast:
    """Trains two towers on pixels (B, C, S, S) and captions. `gather` joins features over processes (identity for one)."""

    averaged: Sequence[str] = ("clip",)

    def __init__(
        self,
        clip: Any,  # nn.Module and TwoTowers
        tokenize: Callable[[Sequence[str]], Any],  # texts -> Tokens
        end: int,
        recipe: ContrastRecipe,
        gather: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.clip, self.tokenize, self.end, self.recipe, self.gather = clip, tokenize, end, recipe, gather
        self.modules: Mapping[str, nn.Module] = {"clip": clip}

    def turns(self) -> Sequence[Turn]:
        return [Turn("clip", list(self.clip.parameters()))]

    def _logits(self, pixels: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Similarities (B, B) of pictures to captions, and which pairs have the same caption (B, B)."""
        ids = self.tokenize(captions).ids.to(pixels.device)
        pictures = self.gather(self.clip.image_features(pixels).to(pixels.dtype))
        texts = self.gather(self.clip.text_features(ids, self.end).to(pixels.dtype))
        ids = self.gather(ids.double()).long()
        same = (ids[:, None] == ids[None]).all(-1)
        # Similarities are multiplied by up to 100 before they are compared: bfloat16 would round them away.
        with torch.autocast(pixels.device.type, enabled=False):
            return self.clip.logit_scale.exp().clamp(max=MAX_SCALE) * pictures @ texts.T, same

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        pixels = _shifted(batch["pixels"], self.recipe.shift, streams)
        logits, same = self._logits(pixels, batch["captions"])
        target = same.to(logits.dtype) / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        entropy = -(target * target.clamp(min=1e-12).log()).sum(1).mean()  # the least value the loss can take
        return {"loss": loss, "above_least": (loss - entropy).detach()}

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """Share of pictures whose nearest caption, among the batch's distinct ones, says what their own says."""
        captions = list(batch["captions"])
        distinct = list(dict.fromkeys(captions))
        ids = self.tokenize(distinct).ids.to(batch["pixels"].device)
        similar = self.clip.image_features(batch["pixels"]) @ self.clip.text_features(ids, self.end).T
        own = torch.tensor([distinct.index(c) for c in captions], device=similar.device)
        return {"retrieval": (similar.argmax(1) == own).float().mean()}

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        return None


def _shifted(pixels: Tensor, most: int, streams: Streams) -> Tensor:
    """Each picture moved by up to `most` pixels; the edge value fills in."""
    if not most:
        return pixels
    moves = (streams.uniform("shift", (len(pixels), 2)) * (2 * most + 1)).long() - most
    wide = F.pad(pixels, (most,) * 4, mode="replicate")
    height, width = pixels.shape[-2:]
    return torch.stack(
        [
            w[:, most + dy : most + dy + height, most + dx : most + dx + width]
            for w, (dy, dx) in zip(wide, moves.tolist(), strict=True)
        ]
    )
