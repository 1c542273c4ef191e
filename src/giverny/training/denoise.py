"""Objective: a denoiser (Ho et al. 2020), predicting noise, velocity or the sample, with optional min-SNR weights.

Times are spread evenly over the batch with one random offset, which lowers the variance of the loss. Captions are dropped
with a small probability, so that the same network also learns to paint without words (classifier-free guidance, Ho &
Salimans 2022).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from ..base.contracts import Batch, Condition, Frozen, NoiseLevel, Streams, Turn
from ..base.table import level_of
from ..denoisers.precondition import Network, Prediction, min_snr_weight, targets


class DenoiseRecipe(Frozen):
    prediction: Prediction = "v"
    error: Literal["squared", "absolute"] = Field("squared", description="of a prediction: squared as usual, or absolute (L1)")
    min_snr_gamma: float | None = Field(None, gt=0, description="cap of the signal-to-noise weight (5 is usual); None: off")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="share of examples trained without their caption")
    noise_offset: float = Field(0.0, ge=0, description="size of a constant added to each channel's noise")


class DenoiseObjective:
    """Trains a denoiser on batches with "latents" (B, z, h, w) (and "spread" of the same shape, the encoder's standard
    deviation, where latents are beliefs) and "captions".

    condition: texts -> Condition, from a frozen text encoder; None trains without words.
    paint: called for previews with the network in its averaged weights -> (B, C, H, W) in [-1, 1].
    """

    averaged: Sequence[str] = ("denoiser",)

    def __init__(
        self,
        denoiser: nn.Module,
        table: Tensor,  # (T,) alphas_cumprod
        recipe: DenoiseRecipe,
        condition: Callable[[Sequence[str]], Condition] | None = None,
        paint: Callable[[], Tensor] | None = None,
    ) -> None:
        self.denoiser, self.table, self.recipe = denoiser, table, recipe
        self.condition, self.paint = condition, paint
        self.modules: Mapping[str, nn.Module] = {"denoiser": denoiser}
        self.prepare: Callable[[Condition], Any] = cast(Network, denoiser).prepare

    def turns(self) -> Sequence[Turn]:
        return [Turn("denoiser", list(self.denoiser.parameters()))]

    def _errors(self, batch: Batch, streams: Streams, dropout: float) -> tuple[Tensor, NoiseLevel]:
        """Mean error of each picture (B,), and the levels they were at."""
        clean = batch["latents"]
        rows = len(clean)
        if "spread" in batch:
            clean = clean + batch["spread"] * streams.normal("belief", clean.shape)
        noise = noise_for(clean, self.recipe, streams)
        times = (streams.spread("time", rows) * len(self.table)).floor()
        level = level_of(self.table, times.cpu())
        alpha, sigma = level.for_sample(clean)
        told = Condition()
        if self.condition is not None:
            kept = (streams.uniform("drop", (rows,)) >= dropout).tolist()
            told = self.condition([c if k else "" for c, k in zip(batch["captions"], kept, strict=True)])
        prepared = self.prepare(_like(told, clean))
        out = self.denoiser(alpha * clean + sigma * noise, times.to(clean), prepared)
        return error_of(out, clean, noise, level, self.recipe), level

    def loss(self, turn: str, batch: Batch, scratch: dict[str, Any], streams: Streams) -> dict[str, Tensor]:
        errors, level = self._errors(batch, streams, self.recipe.caption_dropout)
        weights = min_snr_weight(self.recipe.prediction, level, self.recipe.min_snr_gamma).to(errors)
        return {"loss": (weights * errors).mean(), "error": errors.mean().detach()}

    def validate(self, batch: Batch, streams: Streams) -> dict[str, Tensor]:
        """Unweighted error on a fixed batch with fixed noise and times: comparable between steps and between runs."""
        errors, _ = self._errors(batch, streams, dropout=0.0)
        return {"error": errors.mean()}

    def preview(self, batch: Batch, streams: Streams) -> Tensor | None:
        """What `paint` makes, in float32 whatever is trained in; the loop puts the weights back."""
        if self.paint is None:
            return None
        precision = next(self.denoiser.parameters()).dtype
        self.denoiser.float()
        try:
            return self.paint()
        finally:
            self.denoiser.to(precision)


def noise_for(clean: Tensor, recipe: DenoiseRecipe, streams: Streams) -> Tensor:
    """What is added to clean samples, of their shape (B, C, h, w)."""
    noise = streams.normal("noise", clean.shape)
    if not recipe.noise_offset:
        return noise
    return noise + recipe.noise_offset * streams.normal("offset", (*clean.shape[:2], 1, 1))


def error_of(out: Tensor, clean: Tensor, noise: Tensor, level: NoiseLevel, recipe: DenoiseRecipe) -> Tensor:
    """Mean error of each picture's prediction, (B,)."""
    error = out.to(clean.dtype) - targets(recipe.prediction, clean, noise, level)
    return (error.square() if recipe.error == "squared" else error.abs()).flatten(1).mean(1)


def _like(condition: Condition, x: Tensor) -> Condition:
    """A condition on a sample's device and, but for its mask, in its precision."""
    mask = None if condition.mask is None else condition.mask.to(x.device)
    vectors, pooled, channels = (
        None if part is None else part.to(x) for part in (condition.vectors, condition.pooled, condition.channels)
    )
    return Condition(vectors, mask, pooled, channels)
