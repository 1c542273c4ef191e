"""What every network that reads words for a denoiser can do, whatever it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Insert:
    """Vectors (k, C) that are read in place of the embeddings of k tokens of a row (textual inversion)."""

    row: int
    start: int
    vectors: Tensor


def inserted(embeddings: Tensor, inserts: Sequence[Insert]) -> Tensor:
    """Embeddings of tokens (B, L, C) with others in their places."""
    if not inserts:
        return embeddings
    x = embeddings.clone()
    for insert in inserts:
        x[insert.row, insert.start : insert.start + len(insert.vectors)] = insert.vectors.to(x)
    return x
