"""CLIP (Radford et al. 2021), both towers, any size.

At Stable Diffusion 1.x's sizes (`ClipTextRecipe()`) the text tower has 123,060,480 parameters; tensor names are those of
transformers' CLIPModel, so published layouts load. Our own small CLIPs are the same code with smaller recipes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Encoded, Frozen
from ..base.errors import InputError
from ..layers.attention import attend, split_heads
from .bert import BertText
from .tokenizer import Tokenizer
from .towers import Insert, inserted

Activation = Literal["quick_gelu", "gelu"]


class TowerRecipe(Frozen):
    width: int = Field(768, ge=1)
    layers: int = Field(12, ge=1)
    heads: int = Field(12, ge=1)
    inner: int = Field(3072, ge=1, description="width inside the feed-forward part")
    activation: Activation = "quick_gelu"

    @model_validator(mode="after")
    def _consistent(self) -> TowerRecipe:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} wants to be divisible by heads = {self.heads}")
        return self


class ClipTextRecipe(TowerRecipe):
    """Sizes of a text tower; the defaults are CLIP ViT-L/14's, used by Stable Diffusion 1.x."""

    family: Literal["clip-text"] = "clip-text"
    vocabulary: int = Field(49408, ge=1)
    length: int = Field(77, ge=3, description="positions, start and end tokens included")

    def build(self) -> ClipText:
        return ClipText(self)


class ClipImageRecipe(TowerRecipe):
    """Sizes of an image tower; the defaults are CLIP ViT-L/14's."""

    family: Literal["clip-image"] = "clip-image"
    width: int = Field(1024, ge=1)
    layers: int = Field(24, ge=1)
    heads: int = Field(16, ge=1)
    inner: int = Field(4096, ge=1)
    size: int = Field(224, ge=1, description="side of the square picture in pixels")
    patch: int = Field(14, ge=1, description="side of a patch in pixels")
    channels: int = Field(3, ge=1)


class ClipRecipe(Frozen):
    """Both towers and the width of the space they share."""

    family: Literal["clip"] = "clip"
    text: ClipTextRecipe = ClipTextRecipe()
    image: ClipImageRecipe = ClipImageRecipe()
    shared_width: int = Field(768, ge=1)

    def build(self) -> Clip:
        return Clip(self)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:  # (B, N, C)
        q, k, v = (split_heads(p(x), self.heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v, causal=causal))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.quick = activation == "quick_gelu"
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class TowerLayer(nn.Module):
    """Pre-norm transformer layer: x + attention(norm x), x + feed-forward(norm x)."""

    def __init__(self, recipe: TowerRecipe) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(recipe.width)
        self.self_attn = SelfAttention(recipe.width, recipe.heads)
        self.layer_norm2 = nn.LayerNorm(recipe.width)
        self.mlp = FeedForward(recipe.width, recipe.inner, recipe.activation)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Layers(nn.Module):
    def __init__(self, recipe: TowerRecipe) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TowerLayer(recipe) for _ in range(recipe.layers))

    def forward(self, x: Tensor, causal: bool, first: int = 0, end: int | None = None) -> Tensor:
        for layer in list(self.layers)[first:end]:
            x = layer(x, causal)
        return x


class TextEmbeddings(nn.Module):
    def __init__(self, recipe: ClipTextRecipe) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(recipe.vocabulary, recipe.width)
        self.position_embedding = nn.Embedding(recipe.length, recipe.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)  # the paper's initial scale; torch's default of 1 is too loud
        nn.init.normal_(self.position_embedding.weight, std=0.01)


class ClipText(nn.Module):
    """Token ids -> one vector per token after the final norm (what Stable Diffusion's U-Net attends to)."""

    def __init__(self, recipe: ClipTextRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.embeddings = TextEmbeddings(recipe)
        self.encoder = Layers(recipe)
        self.final_layer_norm = nn.LayerNorm(recipe.width)

    def forward(self, ids: Tensor) -> Tensor:  # (B, L) -> (B, L, C)
        return self.read(ids)[0]

    def read(self, ids: Tensor, skip: int = 1, inserts: Sequence[Insert] = (), normed: bool = True) -> tuple[Tensor, Tensor]:
        """(vectors (B, L, C) to attend to, those of the last layer (B, L, C) to pool), both after the final norm.

        skip: "clip skip" as AUTOMATIC1111 counts it, the n-th layer from the end; 1 is the last one, where both are the same
        tensor. Published layers of other programs count from 0. inserts: vectors that stand in for tokens' own (textual
        inversion). normed: False leaves an earlier layer's vectors without the final norm, as Stable Diffusion XL wants them.
        Raises InputError for a skip beyond the layers there are.
        """
        below = len(self.encoder.layers) + 1 - skip
        if not 1 <= below <= len(self.encoder.layers):
            raise InputError(f"a clip skip from 1 (nothing) to {len(self.encoder.layers)}, the layers there are", str(skip))
        x = inserted(self.embeddings.token_embedding(ids), inserts)  # (B, L, C)
        x = x + self.embeddings.position_embedding.weight[: ids.shape[1]]
        x = self.encoder(x, causal=True, end=below)
        vectors = self.final_layer_norm(x) if normed or skip == 1 else x
        return vectors, vectors if skip == 1 else self.final_layer_norm(self.encoder(x, causal=True, first=below))

    def pool(self, ids: Tensor, vectors: Tensor, end: int) -> Tensor:
        """The vector at each text's first end token. (B, L), (B, L, C) -> (B, C)"""
        first = (ids == end).int().argmax(dim=1)
        return vectors[torch.arange(len(ids), device=ids.device), first]


class ImageEmbeddings(nn.Module):
    def __init__(self, recipe: ClipImageRecipe) -> None:
        super().__init__()
        places = (recipe.size // recipe.patch) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.randn(recipe.width) * recipe.width**-0.5)
        self.patch_embedding = nn.Conv2d(recipe.channels, recipe.width, recipe.patch, recipe.patch, bias=False)
        self.position_embedding = nn.Embedding(places, recipe.width)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:  # (B, C, S, S) -> (B, 1 + patches, W)
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class ClipImage(nn.Module):
    """Pictures -> (vectors (B, 1 + patches, W), pooled (B, W)); pixels as the weights expect them (see the card)."""

    def __init__(self, recipe: ClipImageRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.embeddings = ImageEmbeddings(recipe)
        self.pre_layrnorm = nn.LayerNorm(recipe.width)  # spelt as in the published layout
        self.encoder = Layers(recipe)
        self.post_layernorm = nn.LayerNorm(recipe.width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.encoder(self.pre_layrnorm(self.embeddings(pixels)), causal=False)
        return vectors, self.post_layernorm(vectors[:, 0])


class Clip(nn.Module):
    """Both towers and the temperature; `similarity` is what training and scoring use."""

    def __init__(self, recipe: ClipRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.text_model = ClipText(recipe.text)
        self.vision_model = ClipImage(recipe.image)
        self.text_projection = nn.Linear(recipe.text.width, recipe.shared_width, bias=False)
        self.visual_projection = nn.Linear(recipe.image.width, recipe.shared_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def text_features(self, ids: Tensor, end: int) -> Tensor:  # (B, L) -> (B, shared), unit length
        vectors = self.text_model(ids)
        return F.normalize(self.text_projection(self.text_model.pool(ids, vectors, end)), dim=-1)

    def image_features(self, pixels: Tensor) -> Tensor:  # (B, C, S, S) -> (B, shared), unit length
        return F.normalize(self.visual_projection(self.vision_model(pixels)[1]), dim=-1)

    def looking(self) -> nn.Module:
        """What the words' side lacks, as one network under the same names: picture tower, its projection, temperature."""
        side = nn.Module()
        side.vision_model, side.visual_projection, side.logit_scale = (
            self.vision_model, self.visual_projection, self.logit_scale,
        )  # fmt: skip
        return side


class ClipTextEncoder:
    """`TextEncoder` over a text tower: what a denoiser is given to read. Each distinct text is encoded once per call."""

    def __init__(self, tower: ClipText | BertText, tokenizer: Tokenizer, projection: nn.Linear | None = None) -> None:
        self.tower, self.tokenizer, self.projection = tower, tokenizer, projection
        self.width = tower.recipe.width
        self.widths: tuple[int, ...] = (self.width,)  # of each tower's part of the vectors
        self.layers = tower.recipe.layers  # from which words can be read
        self.pooled_width = projection.out_features if projection is not None else tower.recipe.width

    def encode(self, texts: Sequence[str]) -> Encoded:
        """vectors are the tower's output at every position; pooled what it makes of them, projected where that is asked for."""
        distinct = list(dict.fromkeys(texts))
        tokens = self.tokenizer(distinct)
        device = next(self.tower.parameters()).device
        ids = tokens.ids.to(device)
        vectors, pooled = self.read(ids)
        rows = torch.tensor([distinct.index(t) for t in texts])
        spans = tuple(tokens.spans[i] for i in rows.tolist())
        rows = rows.to(device)
        return Encoded(ids[rows], vectors[rows], tokens.mask.to(device)[rows], pooled[rows], spans)

    def read(self, ids: Tensor, skip: int = 1, inserts: Sequence[Insert] = ()) -> tuple[Tensor, Tensor]:
        """(vectors (B, L, C) to attend to, what stands for each text as a whole (B, P)); skip and inserts as of the tower."""
        vectors, last = self.tower.read(ids, skip, inserts)
        pooled = self.tower.pool(ids, last, self.tokenizer.end)
        return vectors, pooled if self.projection is None else self.projection(pooled)
