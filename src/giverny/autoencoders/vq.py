"""The VQ autoencoder: latents are put in place of the nearest of K learnt codes (van den Oord et al. 2017; Esser et al. 2021).

A denoiser works on the latents before the codebook; `decode` does the replacing, as latent diffusion does (Rombach et al.
2022, VQ-regularised). Encoder and decoder are those of kl.py; tensors carry the names of diffusers' VQModel. Codes follow
their gradient, or the running mean of the latents they are nearest to (van den Oord et al. 2017, appendix A.1). Codes
and latents of unit length follow Yu et al. 2022, codes that begin anew where they lie idle Dhariwal et al. 2020. Ours: a
new run takes all its codes from its first batch; idle codes are chosen alike however a batch is shared out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.contracts import Streams
from .kl import Sizes, Trunk

SMOOTHING = 1e-5  # of the running counts (Laplace), so that a code without latents divides by something
ROWS = 1 << 14  # latents compared with the codebook at once, to save memory


class VQRecipe(Sizes):
    """Sizes of a VQ autoencoder, and how its codebook learns. latent_channels is the width of a code."""

    family: Literal["vq"] = "vq"
    codes: int = Field(512, ge=2, description="entries of the codebook")
    inner_channels: int | None = Field(None, ge=1, description="between encoder or decoder and latent; None: latent_channels")
    learning: Literal["gradient", "average"] = Field("average", description="how codes follow the latents nearest to them")
    commitment: float = Field(0.25, ge=0, description="weight of the latents' pull to their codes")
    legacy: bool = Field(False, description="the commitment's weight on the codes' term instead, as in some older recipes")
    unit: bool = Field(False, description="latents and codes of length 1, compared by their angle")
    decay: float = Field(0.99, ge=0, lt=1, description="of the running use, and of the running means")
    restart: float = Field(0.1, ge=0, lt=1, description="codes used below this part of a fair share begin anew; 0: never")

    def build(self) -> "VQAutoencoder":
        return VQAutoencoder(self)


class Quantizer(nn.Module):
    """(B, D, h, w) -> the nearest codes, same shape; the gradient passes straight through to the latents."""

    def __init__(self, recipe: VQRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.embedding = nn.Embedding(recipe.codes, recipe.latent_channels)
        nn.init.uniform_(self.embedding.weight, -1 / recipe.codes, 1 / recipe.codes)
        self.embedding.weight.requires_grad_(recipe.learning == "gradient")

    def sized(self, x: Tensor) -> Tensor:
        """Vectors along dimension 1, of unit length where the recipe says so."""
        return F.normalize(x, dim=1) if self.recipe.unit else x

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the code nearest to each latent, (B, D, h, w) -> (B, h, w); float32 or better."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            exact = torch.promote_types(z.dtype, torch.float32)
            codes = self.sized(self.embedding.weight.to(exact))
            rows = self.sized(z.to(exact)).movedim(1, -1).flatten(0, -2)  # (N, D)
            # |z - e|^2 without |z|^2, which is the same for all codes
            squares = codes.square().sum(1)
            found = [torch.addmm(squares, part, codes.T, alpha=-2).argmin(1) for part in rows.split(ROWS)]
        return torch.cat(found).view(len(z), *z.shape[2:])

    def look_up(self, indices: Tensor) -> Tensor:
        """(B, h, w) -> (B, D, h, w)"""
        return F.embedding(indices, self.sized(self.embedding.weight)).movedim(-1, 1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.sized(z)
        return z + (self.look_up(self.nearest(z)).to(z.dtype) - z).detach()


@dataclass(frozen=True)
class Codes:
    """What the encoder makes of pictures: latents (B, D, h, w) before the codebook, which are certain, and their codes."""

    mean: Tensor
    quantizer: Quantizer

    @property
    def spread(self) -> Tensor:
        """The standard deviation: none."""
        return torch.zeros_like(self.mean)

    @cached_property
    def indices(self) -> Tensor:
        """(B, h, w), as the codebook is when they are first asked for."""
        return self.quantizer.nearest(self.mean)

    def to(self, dtype: torch.dtype) -> "Codes":
        return Codes(self.mean.to(dtype), self.quantizer)

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean

    def loss_terms(self) -> dict[str, Tensor]:
        """Mean squared distances of codes from latents and of latents from codes (van den Oord et al. 2017, eq. 3)."""
        recipe = self.quantizer.recipe
        found = self.quantizer.look_up(self.indices)
        commitment = (found.detach() - self.mean).square().mean()
        if recipe.learning == "average":
            return {"codebook": recipe.commitment * commitment}
        pull = (found - self.mean.detach()).square().mean()
        light, full = (pull, commitment) if recipe.legacy else (commitment, pull)
        return {"codebook": recipe.commitment * light + full}

    def figures(self) -> dict[str, Tensor]:
        """perplexity: how many codes, evenly used, would say as much as these (at most K); and its share of K."""
        codes = self.quantizer.recipe.codes
        use = torch.bincount(self.indices.flatten(), minlength=codes).to(self.mean) / self.indices.numel()
        perplexity = torch.special.entr(use).sum().exp()
        return {"perplexity": perplexity, "perplexity_share": perplexity / codes}


class CodebookKeeper(nn.Module):
    """What a codebook's training remembers from step to step, over all processes. It belongs to no model.

    What a step finds out takes effect at the start of the next one. So a step that is not kept (it was not finite, or an
    error ended it) has changed no code: codes that are written again are the same.
    """

    tally: Tensor  # (K, 1 + D) running number of latents per code and step, and their running sum
    target: Tensor  # (K, D) what codes become at the start of the next step,
    due: Tensor  # (K,) where this is 1
    seen: Tensor  # (K, 1 + D) number and sum of this step's latents so far
    pool: Tensor  # (K, 1 + D) latents of this step that idle codes may begin from: chance in (0, 1], latent; 0: none

    def __init__(self, recipe: VQRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        codes, width = recipe.codes, recipe.latent_channels
        self.register_buffer("tally", torch.zeros(codes, 1 + width))
        self.register_buffer("target", torch.zeros(codes, width))
        self.register_buffer("due", torch.zeros(codes))
        self.register_buffer("seen", torch.zeros(codes, 1 + width), persistent=False)
        self.register_buffer("pool", torch.zeros(codes, 1 + width), persistent=False)

    @torch.no_grad()
    def learn(self, belief: Codes, streams: Streams, gather: Callable[[Tensor], Tensor]) -> None:
        """Take in this process's part of a batch, before it is decoded; with its last part the step is complete.

        gather: rows of all processes, in rank order.
        """
        codes = belief.quantizer.embedding.weight
        codes.copy_(torch.where(self.due[:, None] > 0, self.target, codes))
        self.due.zero_()
        rows = belief.mean.movedim(1, -1).flatten(0, -2).to(self.tally)  # (N, D)
        with torch.autocast(rows.device.type, enabled=False):  # bfloat16 cannot count beyond 256
            # a product instead of scattered additions, whose order a GPU does not keep
            chosen = rows.new_zeros(len(rows), len(codes)).scatter_(1, belief.indices.flatten()[:, None], 1)
            self.seen += gather((chosen.T @ F.pad(rows, (1, 0), value=1.0))[None]).sum(0)
        places = belief.indices[0].numel() * streams.total
        fair = places / len(codes)
        if self.recipe.restart and bool((self.recipe.decay * self.tally[:, 0] < self.recipe.restart * fair).any()):
            self._offer(rows, streams, belief.indices.shape, gather)
        if round(float(self.seen[:, 0].sum())) == places:
            self._settle(fair)

    def _offer(self, rows: Tensor, streams: Streams, shape: torch.Size, gather: Callable[[Tensor], Tensor]) -> None:
        """Keep the latents with the highest chances of all that this step has seen: the same whoever sees them."""
        chance = 1 - streams.uniform("restart", (shape[0], shape[1:].numel())).flatten().to(rows)
        best = chance.topk(min(len(self.pool), len(rows)))
        offered = torch.cat([self.pool, gather(torch.cat([best.values[:, None], rows[best.indices]], 1))])
        self.pool.copy_(offered[offered[:, 0].topk(len(self.pool)).indices])

    def _settle(self, fair: float) -> None:
        """The step is complete: running means, and which codes begin anew. fair: latents per code and step."""
        width = self.recipe.latent_channels
        self.tally.lerp_(self.seen, 1 - self.recipe.decay)
        idle = (self.tally[:, 0] < self.recipe.restart * fair).nonzero().flatten()
        fresh = self.pool[self.pool[:, 0] > 0, 1:][: len(idle)]  # (n, D)
        idle = idle[: len(fresh)]
        self.tally[idle] = fair * F.pad(fresh, (1, 0), value=1.0)
        if self.recipe.learning == "gradient":
            self.target[idle] = fresh
            self.due[idle] = 1
        else:
            count, total = self.tally.split([1, width], 1)
            whole = count.sum()
            smooth = (count + SMOOTHING) / (whole + len(count) * SMOOTHING) * whole
            self.due.copy_(count[:, 0] > 0)  # a code that nothing was ever near to stays where it is
            self.target.copy_(total / smooth.clamp(min=torch.finfo(smooth.dtype).tiny))
        self.seen.zero_()
        self.pool.zero_()


class VQAutoencoder(Trunk):
    """Pixels in [-1, 1] -> `Codes` -> pixels. Scaling to unit size is the codec's business."""

    def __init__(self, recipe: VQRecipe) -> None:
        inner = recipe.inner_channels or recipe.latent_channels
        super().__init__(recipe, inner, recipe.latent_channels, inner)
        self.recipe = recipe
        self.quantize = Quantizer(recipe)

    def keeper(self) -> CodebookKeeper:
        """What remembers, while this is trained, how its codes are used. On its device, in its precision."""
        return CodebookKeeper(self.recipe).to(self.quantize.embedding.weight)

    def encode(self, pixels: Tensor) -> Codes:
        return Codes(self.quantize.sized(self._beliefs(pixels)), self.quantize)

    def open(self, latents: Tensor) -> tuple[Tensor, ...]:
        """(B, D, h, w) anywhere in the latent space -> maps of the nearest codes."""
        return super().open(self.quantize(latents))
