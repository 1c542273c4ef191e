"""The space that words and pictures share: a trained CLIP with all it takes to ask it (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..base.contracts import Picture
from ..base.errors import InputError
from ..base.images import fit
from .clip import Clip
from .tokenizer import Tokenizer

BATCH = 256  # texts or pictures looked at together
MOST = 100.0  # largest inverse temperature, as in training


class SharedSpace:
    """Texts and pictures -> vectors of length 1; the closer two are, the better the words fit the picture.

    mean, deviation: of values from 0 to 1, per channel or one for all, by which pictures are brought to the tower.
    """

    def __init__(
        self,
        clip: Clip,
        tokenizer: Tokenizer,
        device: torch.device = torch.device("cpu"),
        mean: Sequence[float] = (0.5,),
        deviation: Sequence[float] = (0.5,),
    ) -> None:
        self.clip, self.tokenizer = clip.to(device).eval().requires_grad_(False), tokenizer
        self.device, self.size = device, clip.recipe.image.size  # side of the square that pictures are brought to
        self._mean, self._deviation = (
            torch.tensor(v, dtype=torch.float32, device=device)[:, None, None] for v in (mean, deviation)
        )

    @property
    def scale(self) -> float:
        """What similarities are multiplied by before a softmax over them."""
        return min(float(self.clip.logit_scale.exp()), MOST)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, d), rows of length 1; of a text that is too long, what fits."""
        ids = [self.tokenizer(texts[i : i + BATCH]).ids.to(self.device) for i in range(0, len(texts), BATCH)]
        return torch.cat([self._none(), *(self.clip.text_features(part, self.tokenizer.end) for part in ids)])

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Picture | np.ndarray] | np.ndarray) -> Tensor:
        """Pictures, uint8 arrays (H, W, 1 or 3), or one array (N, H, W, 1 or 3), of any size -> (N, d), rows of length 1.

        Each is scaled until it covers the tower's square, and what stands over is cut off.
        """
        parts = [self._seen(pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH)]
        return torch.cat([self._none(), *(self.clip.image_features(part) for part in parts)])

    def _none(self) -> Tensor:
        """(0, d)"""
        return torch.empty(0, self.clip.recipe.shared_width, device=self.device)

    def _seen(self, pictures: Sequence[Picture | np.ndarray] | np.ndarray) -> Tensor:
        """float32 (N, C, S, S), as the tower was taught them."""
        arrays = [self._fitted(p.pixels if isinstance(p, Picture) else p) for p in pictures]
        values = torch.from_numpy(np.stack(arrays)).to(self.device).movedim(-1, 1).float() / 255
        return (values - self._mean) / self._deviation

    def _fitted(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 1 or 3) -> (S, S, C)."""
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
            wanted = f"uint8 pictures (H, W, 1 or 3), which are brought to {self.size} x {self.size}"
            raise InputError(wanted, f"{pixels.dtype} {tuple(pixels.shape)}")
        fitted = fit(pixels, (self.size, self.size), "crop")
        channels = self.clip.recipe.image.channels
        if fitted.shape[2] == channels:
            return fitted
        return np.asarray(Image.fromarray(fitted).convert("L"))[..., None] if channels == 1 else fitted.repeat(3, axis=2)
