"""The diffusion transformer (DiT, Peebles and Xie 2023, arXiv 2212.09748), any size, told what to paint as the U-Net is.

The design is PixArt-alpha's (Chen et al. 2023, arXiv 2310.00426): one map from time serves all blocks (adaLN-single), and
every block attends to the words. Tensors carry the names of diffusers' PixArtTransformer2DModel. Ours: a pooled vector may
join the time, as a class does in DiT; queries and keys may be normalised; every block starts as the identity (adaLN-zero).
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Condition, Probe
from ..base.errors import InputError
from ..layers.attention import Attention
from ..layers.blocks import EmbeddingMLP, sinusoid
from .prepared import Conditioned, Prepared, WordQueue, demand

FREQUENCIES = 256  # width of the sinusoid of time, as in both papers
EPS = 1e-6  # of the norms


class DiTRecipe(Conditioned):
    """Sizes of a diffusion transformer; the defaults are PixArt-alpha XL/2's at 512 px, without its variance channels."""

    family: Literal["dit"] = "dit"
    in_channels: int = Field(4, ge=1, description="channels of the latents, plus any concatenated ones")
    out_channels: int = Field(4, ge=1, description="channels of the latents")
    width: int = Field(1152, ge=4, description="channels of a place, divisible by 4 and by the heads")
    layers: int = Field(28, ge=1, description="transformer blocks")
    heads: int = Field(16, ge=1)
    patch: int = Field(2, ge=1, description="latents along a side of one place; 1, 2 or 4 are usual")
    context_width: int = Field(4096, ge=1, description="width of the text vectors (cross)")
    span: float = Field(32, gt=0, description="positions run from 0 to this along a side; usual: its places in training")
    normalise_attention: bool = Field(False, description="RMS-normalise queries and keys, against runaway attention")

    @model_validator(mode="after")
    def _consistent(self) -> "DiTRecipe":
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width = {self.width} wants to be divisible by 4 and by heads = {self.heads}")
        return self

    def build(self) -> "DiT":
        return DiT(self)


class HeadNorm(nn.RMSNorm):
    """RMS norm over a head's channels, in the precision of its weight whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:  # (B, heads, N, d)
        assert self.weight is not None
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class NormalisedAttention(Attention):
    """Attention between RMS-normalised queries and keys, per head (Dehghani et al. 2023, arXiv 2302.05442; RMS as in
    Esser et al. 2024, arXiv 2403.03206): weights cannot run away, however long the training."""

    def __init__(self, width: int, context_width: int | None, heads: int, head_width: int, bias: bool = False) -> None:
        super().__init__(width, context_width, heads, head_width, bias)
        self.norm_q, self.norm_k = HeadNorm(head_width, EPS), HeadNorm(head_width, EPS)

    def queries(self, x: Tensor) -> Tensor:
        return self.norm_q(super().queries(x))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().keys_values(context)
        return self.norm_k(keys), values


class GeluTanh(nn.Module):
    """A linear layer and GELU in its tanh form."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Four times the width, GELU, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GeluTanh(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C)
        return self.net(x)


class CaptionProjection(nn.Module):
    """Text vectors, brought to the transformer's width; the same for all blocks."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, context: Tensor) -> Tensor:  # (B, L, inputs) -> (B, L, C)
        return self.linear_2(F.gelu(self.linear_1(context), approximate="tanh"))


class PatchEmbedding(nn.Module):
    """Patches as vectors, plus sines and cosines of where they lie: the column in the first half, the row in the second.

    Place i of n lies at i * span / n, so a picture of any size is laid over the same span.
    """

    def __init__(self, channels: int, width: int, patch: int, span: float) -> None:
        super().__init__()
        self.span = span
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:  # (B, K, H, W) -> (B, H/patch * W/patch, C)
        x = self.proj(x)  # (B, C, h, w)
        width, h, w = x.shape[1:]
        across, down = (
            sinusoid(torch.arange(n, device=x.device) * (self.span / n), width // 2).roll(width // 4, -1)  # sines first
            for n in (w, h)
        )
        places = torch.cat([across.expand(h, w, -1), down[:, None].expand(h, w, -1)], dim=-1)  # (h, w, C)
        return x.flatten(2).transpose(1, 2) + places.flatten(0, 1).to(x.dtype)


class AdaLNSingle(nn.Module):
    """Time (and what joins it) -> its embedding (B, C), and the shifts, scales and gates that all blocks share (B, 6, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": EmbeddingMLP(FREQUENCIES, width)})
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, t: Tensor, added: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        time = self.emb["timestep_embedder"](sinusoid(t, FREQUENCIES).to(dtype))
        if added is not None:
            time = time + added
        return time, self.linear(F.silu(time)).unflatten(1, (6, -1))


class DiTBlock(nn.Module):
    """Self-attention, attention to the words (where there are any), feed-forward; the first and the last shifted, scaled
    and gated by time: what all blocks share, plus a table of one's own. The words are met without a norm, as in PixArt."""

    def __init__(self, recipe: DiTRecipe) -> None:
        super().__init__()
        width, head_width = recipe.width, recipe.width // recipe.heads
        attention = NormalisedAttention if recipe.normalise_attention else Attention
        self.norm1 = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.attn1 = attention(width, None, recipe.heads, head_width, bias=True)
        self.attn2 = attention(width, width, recipe.heads, head_width, bias=True) if recipe.cross else None
        self.norm2 = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.ff = FeedForward(width)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tensor, shared: Tensor, words: WordQueue, place: str) -> Tensor:  # (B, N, C), (B, 6, C)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (self.scale_shift_table + shared).chunk(6, dim=1)  # (B, 1, C) each
        x = x + gate * self.attn1(self.norm1(x) * (1 + scale) + shift, probe=words.probe, place=place + ".self")
        if self.attn2 is not None:
            x = x + self.attn2(x, words.next(), words.mask, words.probe, place + ".cross")
        return x + gate_ff * self.ff(self.norm2(x) * (1 + scale_ff) + shift_ff)


class DiT(nn.Module):
    """x (B, in_channels, H, W), t (B,) and what `prepare` made of the condition -> (B, out_channels, H, W). H and W: any
    that the patch divides.

    A condition of k * B rows (k branches of guidance, branch after branch) gives k * B rows from B samples.
    """

    def __init__(self, recipe: DiTRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        width = recipe.width
        self.pos_embed = PatchEmbedding(recipe.in_channels, width, recipe.patch, recipe.span)
        self.adaln_single = AdaLNSingle(width)
        self.caption_projection = CaptionProjection(recipe.context_width, width) if recipe.cross else None
        self.class_embedding = EmbeddingMLP(recipe.pooled_width, width) if recipe.additive else None
        self.transformer_blocks = nn.ModuleList(DiTBlock(recipe) for _ in range(recipe.layers))
        self.norm_out = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.proj_out = nn.Linear(width, recipe.patch**2 * recipe.out_channels)
        self._initialise()

    def _initialise(self) -> None:
        """The papers' first weights: Glorot's everywhere, small embeddings, and zero wherever a branch ends.

        So every block begins as the identity and the whole begins at 0. PixArt starts its shared map and its tables from
        small noise, for it takes over a trained DiT; here they are zero, as in the DiT that starts from nothing.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.pos_embed.proj.weight.view(self.recipe.width, -1))
        assert self.pos_embed.proj.bias is not None
        nn.init.zeros_(self.pos_embed.proj.bias)
        for embedding in (self.adaln_single.emb, self.caption_projection, self.class_embedding):
            for name, parameter in embedding.named_parameters() if embedding is not None else ():
                if name.endswith("weight"):
                    nn.init.normal_(parameter, std=0.02)
        for last in (self.adaln_single.linear, self.proj_out, *(a.to_out[0] for a in self.cross_attentions())):
            nn.init.zeros_(last.get_parameter("weight"))

    def cross_attentions(self) -> list[Attention]:
        """Every attention to the words, in the order a forward pass meets them."""
        return [block.attn2 for block in self.transformer_blocks if isinstance(block, DiTBlock) and block.attn2 is not None]

    def prepare(self, condition: Condition) -> Prepared:
        """The work that does not depend on the sample or the time. Differentiable: training calls it too."""
        recipe = self.recipe
        demand(condition, recipe.context_width if recipe.cross else None, recipe.pooled_width if recipe.additive else None)
        context = self.caption_projection(condition.vectors) if self.caption_projection is not None else None  # (B, L, C)
        added = self.class_embedding(condition.pooled) if self.class_embedding is not None else None
        return Prepared.of(condition, self.cross_attentions(), context, added)

    def forward(self, x: Tensor, t: Tensor, prepared: Prepared, probe: Probe | None = None) -> Tensor:
        """Raises InputError where the patch does not divide a side."""
        patch, (height, width) = self.recipe.patch, x.shape[-2:]
        if height % patch or width % patch:
            wanted = f"latents (or pixels, where there is no autoencoder) with sides divisible by the patch of {patch}"
            raise InputError(wanted, f"{width} x {height}", "Choose another size of picture.")
        words = WordQueue(prepared, probe)
        x, t = prepared.join(x, t)

        h = self.pos_embed(x)  # (B, N, C)
        time, shared = self.adaln_single(t, prepared.added, x.dtype)  # (B, C), (B, 6, C)
        for i, block in enumerate(self.transformer_blocks):
            h = block(h, shared, words, f"blocks.{i}")
        shift, scale = (self.scale_shift_table + time[:, None]).chunk(2, dim=1)  # (B, 1, C) each
        h = self.proj_out(self.norm_out(h) * (1 + scale) + shift)  # (B, N, patch * patch * out)

        h = h.unflatten(1, (height // patch, width // patch)).unflatten(3, (patch, patch, -1))  # (B, h, w, p, p, out)
        return h.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, out, H, W)
