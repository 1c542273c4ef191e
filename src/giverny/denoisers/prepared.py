"""What a denoising network makes of its condition before the first step, and how a forward pass takes it up.

The same for every network of this room: what of a condition it cannot do without, what stays the same over all steps, and
in which order its cross-attentions meet the words.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..base.contracts import Condition, Frozen, Probe
from ..base.errors import InputError
from ..layers.attention import Attention


class Conditioned(Frozen):
    """How a network is told what to paint."""

    conditioning: Literal["cross", "additive", "both", "none"] = "cross"
    context_width: int = Field(768, ge=1, description="width of the text vectors (cross)")
    pooled_width: int = Field(768, ge=1, description="width of the pooled text vector (additive)")

    @property
    def cross(self) -> bool:
        return self.conditioning in ("cross", "both")

    @property
    def additive(self) -> bool:
        return self.conditioning in ("additive", "both")


def demand(condition: Condition, context_width: int | None, pooled_width: int | None) -> None:
    """Raises InputError where text vectors or a pooled vector of the wanted width are not there. None: not wanted."""
    for part, width, what in (
        (condition.vectors, context_width, "text vectors"),
        (condition.pooled, pooled_width, "a pooled vector"),
    ):
        if width is not None and (part is None or part.shape[-1] != width):
            given = "none" if part is None else f"width {part.shape[-1]}"
            raise InputError(f"{what} of width {width}", given, "Use this model's text encoder.")


@dataclass(frozen=True)
class Prepared:
    """What stays the same over all steps of a picture."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]  # per cross-attention, in the order they are met
    mask: Tensor | None  # (B, 1, 1, L) bool
    added: Tensor | None  # (B, T) pooled embedding, joins the time embedding
    channels: Tensor | None  # (B, K, H, W) concatenated to the sample
    rows: int | None  # rows of the condition, a multiple of the sample's: guidance's branches share their sample

    @staticmethod
    def of(condition: Condition, attentions: Iterable[Attention], context: Tensor | None, added: Tensor | None) -> "Prepared":
        """context (B, L, C): the words as the cross-attentions take them; None: there are none."""
        return Prepared(
            tuple(a.keys_values(context) for a in attentions) if context is not None else (),
            None if condition.mask is None else condition.mask[:, None, None, :],
            added,
            condition.channels,
            condition.rows,
        )

    def join(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Sample (B, K, H, W) and time (B,), repeated for every branch of guidance, with the concatenated channels."""
        if self.rows is not None and self.rows != len(x):  # one sample, several branches
            branches = self.rows // len(x)
            x, t = x.repeat(branches, 1, 1, 1), t.repeat(branches)
        return (x if self.channels is None else torch.cat([x, self.channels], dim=1)), t


class WordQueue:
    """Hands each cross-attention its prepared keys and values, in the order they are met; one per forward pass."""

    def __init__(self, prepared: Prepared, probe: Probe | None) -> None:
        self.mask, self.probe = prepared.mask, probe
        self._left = iter(prepared.keys_values)

    def next(self) -> tuple[Tensor, Tensor]:
        return next(self._left)
