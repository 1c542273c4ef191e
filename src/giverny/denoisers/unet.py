"""The U-Net of latent diffusion (Rombach et al. 2022), any size, told what to paint by cross-attention, by addition, or both.

At Stable Diffusion 1.x's sizes (`UNetRecipe()`) it has 859,520,964 parameters and its tensors carry the names of a diffusers
folder. `prepare` does the work that is the same at every step (text keys and values, pooled embedding); `forward` the rest.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Condition, Probe
from ..layers.attention import Attention
from ..layers.blocks import Downsample, EmbeddingMLP, ResidualBlock, Upsample, sinusoid
from .prepared import Conditioned, Prepared, WordQueue, demand


class UNetRecipe(Conditioned):
    """Sizes of a U-Net; the defaults are Stable Diffusion 1.x."""

    family: Literal["unet"] = "unet"
    in_channels: int = Field(4, ge=1, description="channels of the latents, plus any concatenated ones")
    out_channels: int = Field(4, ge=1, description="channels of the latents")
    channels: tuple[int, ...] = Field((320, 640, 1280, 1280), min_length=1, description="width of each level")
    blocks: int = Field(2, ge=1, description="residual blocks per level on the way down (one more on the way up)")
    attention: tuple[bool, ...] = Field((True, True, True, False), description="levels that attend")
    depth: tuple[int, ...] = Field((1, 1, 1, 1), description="transformer blocks per attending place, by level")
    heads: tuple[int, ...] | None = Field((8, 8, 8, 8), description="attention heads by level, or")
    head_width: int | None = Field(None, ge=1, description="channels per head, the same everywhere")
    linear_projection: bool = Field(False, description="linear instead of 1x1 convolution around transformers (SD 2.x)")
    middle_attention: bool = True
    groups: int = Field(32, ge=1, description="groups of each GroupNorm")
    time_width: int | None = Field(None, description="width of the time embedding; None: four times the first level")
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> "UNetRecipe":
        levels = len(self.channels)
        for name in ("attention", "depth"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"{name} wants one entry per level ({levels}), given {len(getattr(self, name))}")
        if self.head_width is None and self.heads is not None and len(self.heads) != levels:
            raise ValueError(f"heads wants one entry per level ({levels}), given {len(self.heads)}")
        if self.heads is None and self.head_width is None:
            raise ValueError("one of heads and head_width is wanted, given neither")
        for i, c in enumerate(self.channels):
            if c % self.groups or c % self.heads_at(i):
                raise ValueError(f"channels[{i}] = {c} wants to be divisible by groups = {self.groups} and its heads")
        return self

    def heads_at(self, level: int) -> int:
        if self.head_width is not None:
            return max(1, self.channels[level] // self.head_width)
        assert self.heads is not None
        return self.heads[level]

    def build(self) -> "UNet":
        return UNet(self)


class GatedFeedForward(nn.Module):
    """GEGLU (Shazeer 2020): value * gelu(gate), then back to the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.Module(), nn.Identity(), nn.Linear(4 * width, width)])
        self.net[0].proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C)
        value, gate = self.net[0].proj(x).chunk(2, dim=-1)
        return self.net[2](value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the words (where there are any), feed-forward; each on a normalised residual."""

    def __init__(self, width: int, heads: int, context_width: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, None, heads, width // heads)
        if context_width:
            self.norm2 = nn.LayerNorm(width)
            self.attn2 = Attention(width, context_width, heads, width // heads)
        self.crosses = bool(context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = GatedFeedForward(width)

    def forward(self, x: Tensor, words: WordQueue, place: str) -> Tensor:  # (B, N, C)
        x = x + self.attn1(self.norm1(x), probe=words.probe, place=place + ".self")
        if self.crosses:
            x = x + self.attn2(self.norm2(x), words.next(), words.mask, words.probe, place + ".cross")
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A picture as a sequence of its places: norm, project in, transformer blocks, project out, residual."""

    def __init__(self, width: int, heads: int, depth: int, context_width: int | None, groups: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(width, heads, context_width) for _ in range(depth))
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, words: WordQueue, place: str) -> Tensor:  # (B, C, H, W)
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # (B, HW, C)
        if self.linear:
            h = self.proj_in(h)
        for i, block in enumerate(self.transformer_blocks):
            h = block(h, words, f"{place}.{i}")
        if self.linear:
            h = self.proj_out(h)
        h = h.transpose(1, 2).unflatten(2, x.shape[-2:])  # (B, C, H, W)
        return x + (h if self.linear else self.proj_out(h))


class Level(nn.Module):
    """One level of either way: residual blocks, each followed by a transformer where the level attends."""

    def __init__(self, recipe: UNetRecipe, level: int, inputs: list[int], time_width: int, way: str) -> None:
        super().__init__()
        width = recipe.channels[level]
        self.resnets = nn.ModuleList(ResidualBlock(c, width, time_width, recipe.groups, 1e-5, recipe.dropout) for c in inputs)
        self.attentions = nn.ModuleList(
            transformer(recipe, level) for _ in range(len(inputs) if recipe.attention[level] else 0)
        )
        self.place = f"{way}.{level}"

    def run(self, i: int, x: Tensor, time: Tensor, words: WordQueue) -> Tensor:
        x = self.resnets[i](x, time)
        return self.attentions[i](x, words, f"{self.place}.{i}") if len(self.attentions) else x


def transformer(recipe: UNetRecipe, level: int) -> SpatialTransformer:
    return SpatialTransformer(
        recipe.channels[level],
        recipe.heads_at(level),
        recipe.depth[level],
        recipe.context_width if recipe.cross else None,
        recipe.groups,
        recipe.linear_projection,
    )


class Middle(nn.Module):
    """The lowest point: residual block, transformer, residual block."""

    def __init__(self, recipe: UNetRecipe, time_width: int) -> None:
        super().__init__()
        last = len(recipe.channels) - 1
        width = recipe.channels[last]
        self.attentions = nn.ModuleList([transformer(recipe, last)] if recipe.middle_attention else [])
        self.resnets = nn.ModuleList(
            ResidualBlock(width, width, time_width, recipe.groups, 1e-5, recipe.dropout) for _ in range(2)
        )

    def forward(self, x: Tensor, time: Tensor, words: WordQueue) -> Tensor:
        x = self.resnets[0](x, time)
        for attention in self.attentions:
            x = attention(x, words, "middle.0")
        return self.resnets[1](x, time)


class UNet(nn.Module):
    """x (B, in_channels, H, W), t (B,) and what `prepare` made of the condition -> (B, out_channels, H, W). Any H and W.

    A condition of k * B rows (k branches of guidance, branch after branch) gives k * B rows from B samples.
    """

    def __init__(self, recipe: UNetRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        widths, last = recipe.channels, len(recipe.channels) - 1
        time_width = recipe.time_width or 4 * widths[0]
        self.conv_in = nn.Conv2d(recipe.in_channels, widths[0], 3, padding=1)
        self.time_embedding = EmbeddingMLP(widths[0], time_width)
        self.class_embedding = EmbeddingMLP(recipe.pooled_width, time_width) if recipe.additive else None

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        for level, width in enumerate(widths):
            inputs = [skips[-1]] + [width] * (recipe.blocks - 1)
            block = Level(recipe, level, inputs, time_width, "down")
            block.downsamplers = nn.ModuleList([Downsample(width)] if level < last else [])
            self.down_blocks.append(block)
            skips += [width] * (recipe.blocks + (level < last))

        self.mid_block = Middle(recipe, time_width)

        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for level in reversed(range(len(widths))):
            width = widths[level]
            inputs = [(below if i == 0 else width) + skips.pop() for i in range(recipe.blocks + 1)]
            block = Level(recipe, level, inputs, time_width, "up")
            block.upsamplers = nn.ModuleList([Upsample(width)] if level > 0 else [])
            self.up_blocks.append(block)
            below = width

        self.conv_norm_out = nn.GroupNorm(recipe.groups, widths[0], 1e-5)
        self.conv_out = nn.Conv2d(widths[0], recipe.out_channels, 3, padding=1)

    def cross_attentions(self) -> list[Attention]:
        """Every attention to the words, in the order a forward pass meets them."""
        places = [*self.down_blocks, self.mid_block, *self.up_blocks]
        blocks = [b for place in places for a in place.attentions for b in a.transformer_blocks]
        return [b.attn2 for b in blocks if b.crosses]

    def prepare(self, condition: Condition) -> Prepared:
        """The work that does not depend on the sample or the time. Differentiable: training calls it too."""
        recipe = self.recipe
        demand(condition, recipe.context_width if recipe.cross else None, recipe.pooled_width if recipe.additive else None)
        added = self.class_embedding(condition.pooled) if self.class_embedding is not None else None
        return Prepared.of(condition, self.cross_attentions(), condition.vectors, added)

    def forward(self, x: Tensor, t: Tensor, prepared: Prepared, probe: Probe | None = None) -> Tensor:
        words = WordQueue(prepared, probe)
        x, t = prepared.join(x, t)
        time = self.time_embedding(sinusoid(t, self.recipe.channels[0]).to(x.dtype))  # (B, T)
        if prepared.added is not None:
            time = time + prepared.added
        time = F.silu(time)

        h = self.conv_in(x)  # (B, C0, H, W)
        skips = [h]
        for block in self.down_blocks:
            for i in range(len(block.resnets)):
                h = block.run(i, h, time, words)
                skips.append(h)
            for down in block.downsamplers:
                h = down(h)  # (B, C, H/2, W/2)
                skips.append(h)

        h = self.mid_block(h, time, words)

        for block in self.up_blocks:
            for i in range(len(block.resnets)):
                h = block.run(i, torch.cat([h, skips.pop()], dim=1), time, words)
            for up in block.upsamplers:
                h = up(h, skips[-1].shape[-2:])  # (B, C, 2H, 2W)

        return self.conv_out(F.silu(self.conv_norm_out(h)))  # (B, out, H, W)
