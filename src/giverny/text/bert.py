"""BERT's encoder (Devlin et al. 2018, arXiv 1810.04805): reads words in both directions, learnt from text alone.

What a denoiser may read instead of CLIP: sentence encoders such as all-MiniLM-L6-v2 have this form (Wang et al. 2020, arXiv
2002.10957; Reimers and Gurevych 2019, arXiv 1908.10084). Tensor names are those of transformers' BertModel, so that
published weights load. It is used as it comes: nothing here trains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Frozen
from ..base.errors import InputError
from ..layers.attention import attend, split_heads
from .towers import Insert, inserted

EPSILON = 1e-12  # of every norm
PADDING = 0  # the token id of what is no text


class BertRecipe(Frozen):
    """Sizes of an encoder; the defaults are all-MiniLM-L6-v2's."""

    family: Literal["bert"] = "bert"
    width: int = Field(384, ge=1)
    layers: int = Field(6, ge=1)
    heads: int = Field(12, ge=1)
    inner: int = Field(1536, ge=1, description="width inside the feed-forward part")
    vocabulary: int = Field(30522, ge=1)
    positions: int = Field(512, ge=3, description="rows of the table of positions")
    length: int = Field(32, ge=3, description="tokens that are read, start and end included")

    @model_validator(mode="after")
    def _consistent(self) -> BertRecipe:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} wants to be divisible by heads = {self.heads}")
        if self.length > self.positions:
            raise ValueError(f"length {self.length} wants to be at most positions = {self.positions}")
        return self

    def build(self) -> BertText:
        return BertText(self)


class Dense(nn.Module):
    def __init__(self, width: int, into: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, into)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class Joined(Dense):
    """norm(x + dense(new)): how every part of a layer joins what was there before."""

    def __init__(self, width: int, into: int) -> None:
        super().__init__(width, into)
        self.LayerNorm = nn.LayerNorm(into, EPSILON)

    def forward(self, new: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.LayerNorm(x + self.dense(new))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        return attend(q, k, v, mask)


class BertAttention(nn.Module):
    def __init__(self, recipe: BertRecipe) -> None:
        super().__init__()
        self.self, self.output = SelfAttention(recipe.width, recipe.heads), Joined(recipe.width, recipe.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.output(self.self(x, mask), x)


class BertLayer(nn.Module):
    """Post-norm transformer layer: norm(x + attention(x)), norm(x + feed-forward(x))."""

    def __init__(self, recipe: BertRecipe) -> None:
        super().__init__()
        self.attention = BertAttention(recipe)
        self.intermediate, self.output = Dense(recipe.width, recipe.inner), Joined(recipe.inner, recipe.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # (B, L, C), (B, 1, 1, L)
        x = self.attention(x, mask)
        return self.output(F.gelu(self.intermediate(x)), x)


class BertEmbeddings(nn.Module):
    def __init__(self, recipe: BertRecipe) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(recipe.vocabulary, recipe.width, padding_idx=PADDING)
        self.position_embeddings = nn.Embedding(recipe.positions, recipe.width)
        self.token_type_embeddings = nn.Embedding(2, recipe.width)  # of a first and of a second text; ours is the first
        self.LayerNorm = nn.LayerNorm(recipe.width, EPSILON)

    def forward(self, ids: Tensor, inserts: Sequence[Insert]) -> Tensor:  # (B, L) -> (B, L, C)
        places = self.position_embeddings.weight[: ids.shape[1]] + self.token_type_embeddings.weight[0]
        return self.LayerNorm(inserted(self.word_embeddings(ids), inserts) + places)


class BertText(nn.Module):
    """Token ids -> one vector per token. Padding (id 0) is neither looked at nor part of the pooled vector."""

    def __init__(self, recipe: BertRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.embeddings = BertEmbeddings(recipe)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(BertLayer(recipe) for _ in range(recipe.layers))

    def forward(self, ids: Tensor) -> Tensor:  # (B, L) -> (B, L, C)
        return self.read(ids)[0]

    def read(self, ids: Tensor, skip: int = 1, inserts: Sequence[Insert] = ()) -> tuple[Tensor, Tensor]:
        """(vectors (B, L, C) to attend to, those of the last layer (B, L, C) to pool).

        skip: the n-th layer from the end; 1 is the last one, where both are the same tensor. inserts: vectors that stand in for
        tokens' own. Raises InputError for a skip beyond the layers there are.
        """
        layers = list(self.encoder.layer.children())  # type: ignore[union-attr]
        if not 1 <= skip <= len(layers):
            raise InputError(f"a clip skip from 1 (nothing) to {len(layers)}, the layers there are", str(skip))
        x, mask, seen = self.embeddings(ids, inserts), (ids != PADDING)[:, None, None], []
        for layer in layers:
            x = layer(x, mask)
            seen.append(x)
        return seen[-skip], seen[-1]

    def pool(self, ids: Tensor, vectors: Tensor, end: int) -> Tensor:
        """The mean over what is no padding, of unit length, as sentence encoders have it. (B, L), (B, L, C) -> (B, C)"""
        told = (ids != PADDING).unsqueeze(-1).to(vectors.dtype)
        return F.normalize((vectors * told).sum(1) / told.sum(1), dim=-1)


class Bert(nn.Module):
    """An encoder in the place of a `Clip`, as far as a painter needs one: it reads, and has no picture side."""

    text_projection = None

    def __init__(self, recipe: BertRecipe) -> None:
        super().__init__()
        self.text_model = BertText(recipe)

    def looking(self) -> None:
        """CLIP's picture side: none."""
