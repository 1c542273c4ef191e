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
from .augment import shifted

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
        pixels = shifted(batch["pixels"], self.recipe.shift, streams)
        logits, same = self._logits(pixels, batch["captions"])
        target = same.to(logits.dtype) / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        entropy = -(target * target.clamp(min=1e-12).log()).sum(1).mean()  # the least value the loss can take
        return {"loss": loss, "above_least": (loss - entropy).detach()}

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """How well pictures and the batch's distinct captions find each other.

        retrieval: share of pictures with their own caption nearest; retrieval_5: among the five nearest; retrieval_back and
        retrieval_back_5: share of captions with a picture of theirs nearest, or among the five nearest.
        Where two or more classes are labelled, zero_shot: share of pictures nearest to their own class, which is the mean
        of its captions, averaged over classes so that rare ones count as much; zero_shot_least: of the worst class.
        """
        captions = list(batch["captions"])
        distinct = list(dict.fromkeys(captions))
        ids = self.tokenize(distinct).ids.to(batch["pixels"].device)
        pictures, texts = self.clip.image_features(batch["pixels"]), self.clip.text_features(ids, self.end)
        own = torch.tensor([distinct.index(c) for c in captions], device=texts.device)
        similar, right = pictures @ texts.T, F.one_hot(own, len(distinct)).bool()  # (B, distinct) both
        values = _recalls("retrieval", similar, right) | _recalls("retrieval_back", similar.T, right.T)
        labels = batch["labels"].to(texts.device) if "labels" in batch else torch.full_like(own, -1)
        known = labels >= 0
        classes, place = labels[known].unique(return_inverse=True)
        if len(classes) > 1:
            member = F.one_hot(place).to(texts.dtype)  # (K, C): which of the K labelled pictures is of which class
            belongs = (member.T @ right[known].to(texts.dtype) > 0).to(texts.dtype)  # (C, distinct)
            nearest = (pictures[known] @ F.normalize(belongs @ texts, dim=-1).T).argmax(1)
            shares = (nearest == place).to(texts.dtype) @ member / member.sum(0)  # (C,)
            values |= {"zero_shot": shares.mean(), "zero_shot_least": shares.min()}
        return values

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        return None


def _recalls(name: str, similar: Tensor, right: Tensor) -> dict[str, Tensor]:
    """Share of queries with a right answer nearest, and among the five nearest. similar: (Q, A); right: (Q, A) bool."""
    best = similar.topk(min(5, similar.shape[1]), dim=1).indices
    found = right.gather(1, best).to(similar.dtype)  # (Q, 5)
    return {name: found[:, 0].mean(), f"{name}_5": found.amax(1).mean()}
