"""What colour a garment is called: a small model from the colours inside its cut to one of the basic names.

A histogram over bins in Lab (soft, so that a shade between two bins counts for both) goes through multinomial logistic
regression. It is fitted to photographs whose seller named the colour; what people call "grey" or "beige" has no formula.
Ours; numbers only, no picture is kept in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources

import numpy as np
import torch
from torch.nn import functional as F

from ...base.errors import InputError
from ...base.lab import to_lab
from ...base.runtime import derive_seed

LEVELS = 16  # of each channel: colours are counted on a grid of 4096
WIDTH = 9.0  # Lab units over which a bin is soft


@dataclass(frozen=True, eq=False)
class ColourModel:
    """names: the colours it knows. bins: (K, 3) Lab. weights (2K, C) and bias (C,) of the regression."""

    names: tuple[str, ...]
    bins: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    note: str = ""  # what it was fitted to, and how well it agrees with that

    def features(self, counts: np.ndarray) -> np.ndarray:
        """Colour counts (N, 4096) -> (N, 2K): the share of each bin, and its root, which lets small parts count."""
        shares = counts @ self._belongs
        return np.concatenate([np.sqrt(shares), shares], axis=1)

    @cached_property
    def _belongs(self) -> np.ndarray:
        """How much each cell of the grid belongs to each bin: (4096, K), rows summing to 1."""
        squared = ((_grid()[:, None] - self.bins[None]) ** 2).sum(-1)
        near = np.exp(-(squared - squared.min(axis=1, keepdims=True)) / (2 * WIDTH**2))
        return (near / near.sum(axis=1, keepdims=True)).astype(np.float32)

    def probabilities(self, counts: np.ndarray) -> np.ndarray:
        """Colour counts (N, 4096) -> (N, C), rows summing to 1."""
        logits = self.features(counts) @ self.weights + self.bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def to_json(self) -> str:
        numbers = {"bins": self.bins.round(2), "weights": self.weights.round(3), "bias": self.bias.round(3)}
        return json.dumps({"names": self.names, "note": self.note} | {k: v.tolist() for k, v in numbers.items()})

    @staticmethod
    def from_json(text: str) -> ColourModel:
        held = json.loads(text)
        bins, weights, bias = (np.array(held[key], np.float32) for key in ("bins", "weights", "bias"))
        return ColourModel(tuple(held["names"]), bins, weights, bias, held["note"])


@lru_cache(1)
def colour_model() -> ColourModel:
    """The model that ships with the package."""
    return ColourModel.from_json(resources.files(__package__).joinpath("colours.json").read_text("utf-8"))


def colour_counts(pixels: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Share of each colour of the grid inside a cut: float32 (4096,), summing to 1 (to 0 for an empty cut)."""
    cells = (pixels // (256 // LEVELS)).astype(np.int64) @ np.array([LEVELS**2, LEVELS, 1])
    weights = cut.astype(np.float32)
    counts = np.bincount(cells.ravel(), weights.ravel(), LEVELS**3)
    return (counts / max(counts.sum(), 1e-9)).astype(np.float32)


def fit_colours(
    counts: np.ndarray,  # (N, 4096), as colour_counts makes them
    labels: Sequence[str],  # the colour of each
    names: Sequence[str],
    bins: int = 96,
    decay: float = 1e-5,  # weight of the squared weights
    seed: int = 0,
    note: str = "",
) -> ColourModel:
    """Fit the model. The same data and seed give the same model up to rounding."""
    unknown = sorted(set(labels) - set(names))
    if unknown or len(labels) != len(counts) or len(labels) < 2:
        raise InputError("counts and as many labels out of the names", f"{len(counts)}, {len(labels)}, unknown {unknown}")
    centres = _clusters(np.sqrt(counts.mean(axis=0)) + 1e-4, bins, np.random.default_rng(seed))
    model = ColourModel(tuple(names), centres, np.zeros((2 * bins, len(names)), np.float32), np.zeros(len(names), np.float32))
    inputs = torch.from_numpy(model.features(counts).astype(np.float32))
    wanted = torch.tensor([list(names).index(label) for label in labels])
    weights = torch.zeros(inputs.shape[1], len(names), requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    solver = torch.optim.LBFGS([weights, bias], max_iter=150, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = F.cross_entropy(inputs @ weights + bias, wanted) + decay * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return ColourModel(tuple(names), centres, weights.detach().numpy(), bias.detach().numpy(), note)


def held_out(
    counts: np.ndarray, labels: Sequence[str], names: Sequence[str], share: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a model fitted to the rest says of a share of the pictures: (said, told, how sure it is), (n,) each."""
    held = np.random.default_rng(derive_seed("colours", seed)).random(len(labels)) < share
    told = np.array(labels)
    odds = fit_colours(counts[~held], told[~held].tolist(), names).probabilities(counts[held])
    return np.array(names)[odds.argmax(1)], told[held], odds.max(1)


@lru_cache(1)
def _grid() -> np.ndarray:
    """Lab of the middle of each cell, (4096, 3)."""
    step = 256 // LEVELS
    axis = np.arange(LEVELS) * step + step // 2
    return to_lab(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3).astype(np.uint8))


def _clusters(mass: np.ndarray, count: int, chance: np.random.Generator) -> np.ndarray:
    """k-means of the grid's cells by their mass: (count, 3) Lab."""
    cells = _grid()
    centres = cells[chance.choice(len(cells), count, replace=False, p=mass / mass.sum())].astype(np.float64)
    for _ in range(30):
        nearest = ((cells[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        for k in range(count):
            mine = nearest == k
            if mass[mine].sum() > 0:
                centres[k] = np.average(cells[mine], axis=0, weights=mass[mine])
    return centres.astype(np.float32)
