"""Things cut out of plain pictures, laid on the grounds of others: training examples whose true cut is known.

A ground is made from the corner of a picture, where the thing rarely reaches, mirrored until it fills the canvas: carpets,
floors, bedding and walls as people have them. Some examples are the plain pictures as they were taken. Every batch is a
pure function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...base.contracts import Batch
from ...base.images import resize
from ...base.runtime import derive_seed

AS_TAKEN = 0.3  # share of examples left as they were photographed


@dataclass(frozen=True)
class Composites:
    """things: (picture uint8 (H, W, 3), cut bool (H, W)) pairs. grounds: pictures uint8 (H, W, 3) to take corners from."""

    things: Sequence[tuple[np.ndarray, np.ndarray]]
    grounds: Sequence[np.ndarray]
    size: int
    batch: int
    seed: int

    def stream(self, start: int) -> Iterator[Batch]:
        while True:
            yield self.batch_at(start)
            start += 1

    def batch_at(self, step: int) -> Batch:
        """pixels (B, 3, S, S) in [-1, 1]; masks (B, 1, S, S) in 0..1, soft at the edge."""
        chance = np.random.default_rng(derive_seed("composites", self.seed, step))
        made = [self._example(chance) for _ in range(self.batch)]
        pixels, masks = torch.stack([p for p, _ in made]), torch.stack([m for _, m in made])
        return {"pixels": pixels * 2 - 1, "masks": masks}

    def _example(self, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
        picture, cut = self.things[int(chance.integers(len(self.things)))]
        layers = square(picture, cut, self.size)  # (4, S, S) in 0..1
        if chance.random() < AS_TAKEN:
            moved = _moved(layers, chance, zoom=(0.9, 1.4), padding="reflection")
            return _lit(moved[:3], chance), moved[3:].clamp(0, 1)
        thing = _moved(layers, chance, zoom=(0.6, 1.3), padding="zeros")
        mask = thing[3:].clamp(0, 1)
        ground = _ground(self.grounds[int(chance.integers(len(self.grounds)))], self.size, chance)
        shadow = 1 - chance.uniform(0, 0.5) * F.avg_pool2d(mask.roll((2, 2), (1, 2))[None], 7, 1, 3)[0]
        laid = mask * _lit(thing[:3], chance) + (1 - mask) * shadow * _lit(ground, chance)
        return laid.clamp(0, 1), mask


def square(picture: np.ndarray, cut: np.ndarray | None, size: int) -> Tensor:
    """Picture and cut in the middle of a square, its edge pixels carried on: float (4 or 3, S, S) in 0..1."""
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    layers = [torch.from_numpy(resize(picture, inner)).permute(2, 0, 1).float() / 255]
    if cut is not None:
        layers.append(torch.from_numpy(resize(cut.astype(np.uint8) * 255, inner)).float()[None] / 255)
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    sides = (left, size - inner[0] - left, top, size - inner[1] - top)
    return F.pad(torch.cat(layers)[None], sides, mode="replicate")[0]


def unsquare(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The way back: values (S, S) of a square made by `square` -> (H, W) of the picture it was made from."""
    size, (height, width) = len(mask), shape
    scale = size / max(height, width)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size - wide) // 2, (size - high) // 2
    inner = (np.clip(mask[top : top + high, left : left + wide], 0, 1) * 255).astype(np.uint8)
    return resize(inner, (width, height)).astype(np.float32) / 255


def _ground(picture: np.ndarray, size: int, chance: np.random.Generator) -> Tensor:
    """(3, S, S) in 0..1: one corner of a picture, mirrored over the canvas, or one even colour with a little grain."""
    if chance.random() < 0.1:
        colour = torch.from_numpy(chance.uniform(0, 1, (3, 1, 1))).float()
        return (colour + 0.02 * torch.from_numpy(chance.standard_normal((3, size, size))).float()).clamp(0, 1)
    height, width = picture.shape[:2]
    high, wide = (max(8, int(side * chance.uniform(0.15, 0.35))) for side in (height, width))
    top, left = (0 if chance.random() < 0.5 else height - high), (0 if chance.random() < 0.5 else width - wide)
    corner = resize(picture[top : top + high, left : left + wide], (size // 3, size // 3))
    tile = np.concatenate([corner, corner[:, ::-1]], axis=1)
    tile = np.concatenate([tile, tile[::-1]], axis=0)
    across = np.tile(tile, (3, 3, 1))
    y, x = chance.integers(0, len(tile), 2)
    return torch.from_numpy(across[y : y + size, x : x + size].copy()).permute(2, 0, 1).float() / 255


def _moved(layers: Tensor, chance: np.random.Generator, zoom: tuple[float, float], padding: str) -> Tensor:
    """Mirrored, turned a little, scaled and shifted."""
    angle, scale = chance.normal(0, 0.15), chance.uniform(*zoom)
    mirror = -1.0 if chance.random() < 0.5 else 1.0
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    dx, dy = chance.uniform(-0.2, 0.2, 2)
    turn = torch.tensor([[[mirror * cos, -sin, dx], [mirror * sin, cos, dy]]], dtype=torch.float32)
    places = F.affine_grid(turn, [1, *layers.shape], align_corners=False)
    return F.grid_sample(layers[None], places, padding_mode=padding, align_corners=False)[0]


def _lit(colours: Tensor, chance: np.random.Generator) -> Tensor:
    """Under another light: each channel's gain, and a common gamma."""
    gain = torch.from_numpy(chance.uniform(0.75, 1.25) * chance.uniform(0.93, 1.07, (3, 1, 1))).float()
    return (colours.clamp(0, 1) ** float(np.exp(chance.normal(0, 0.25))) * gain).clamp(0, 1)
