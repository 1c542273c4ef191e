"""Two CLIP text towers as one encoder, as Stable Diffusion XL reads (Podell et al. 2023, arXiv 2307.01952): what a token comes
to in both, side by side, and the second's pooled vector.

Both are read at their last layer but one, without the final norm; the pooled vector comes from the second's last layer, through
its projection. Facts: Stability-AI generative-models, sgm/modules/encoders/modules.py; diffusers,
pipeline_stable_diffusion_xl.py. The towers share their tokens, and not what fills up the rest of a text's places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .clip import ClipText, ClipTextEncoder
from .tokenizer import Tokenizer
from .towers import Insert

LATEST = 2  # the layer from the end that is read, unless an earlier one is asked for


class ClipPairEncoder(ClipTextEncoder):
    """`TextEncoder` over two towers. pad: the token after a text's end in the second; the tokenizer's is the first's.

    Vectors that stand in for tokens' own have both towers' parts side by side, as the vectors that come out.
    """

    def __init__(self, tower: ClipText, second: ClipText, tokenizer: Tokenizer, projection: nn.Linear, pad: int) -> None:
        super().__init__(tower, tokenizer, projection)
        self.first, self.second, self.pad = tower, second, pad
        self.widths = tower.recipe.width, second.recipe.width
        self.width = sum(self.widths)
        self.layers = min(tower.recipe.layers, second.recipe.layers)

    def read(self, ids: Tensor, skip: int = 1, inserts: Sequence[Insert] = ()) -> tuple[Tensor, Tensor]:
        """(vectors (B, L, C1 + C2), pooled (B, P)). skip: the n-th layer from the end; 1 and 2 are both the last but one."""
        assert self.projection is not None
        apart = [(i.row, i.start, i.vectors.split(list(self.widths), -1)) for i in inserts]
        skip = max(skip, LATEST)
        one, _ = self.first.read(ids, skip, [Insert(row, start, v[0]) for row, start, v in apart], normed=False)
        other = self._refilled(ids)
        two, last = self.second.read(other, skip, [Insert(row, start, v[1]) for row, start, v in apart], normed=False)
        return torch.cat([one, two], -1), self.projection(self.second.pool(other, last, self.tokenizer.end))

    def _refilled(self, ids: Tensor) -> Tensor:
        """Tokens (B, L) with the second tower's padding after the first end."""
        ends = ids == self.tokenizer.end
        return torch.where(ends.cumsum(1) - ends.long() > 0, self.pad, ids)
