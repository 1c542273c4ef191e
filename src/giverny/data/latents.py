"""Latents encoded once and kept in a file: a denoiser then trains without looking at a pixel again.

The encoder's mean and spread are both kept (half precision, memory-mapped), so that training can still draw from the
encoder's belief. The file's name holds the fingerprint of encoder and data; a file that exists is whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.contracts import Batch
from ..base.files import atomic_path
from .loader import Loader

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]  # pixels -> raw mean and standard deviation, (B, z, h, w) each


BATCH = 256  # pictures encoded together at most,
PIXELS = 2**20  # and pixels of them, since memory goes by these: 256 of 64 x 64, 4 of 512 x 512


def write_latents(path: Path, loader: Loader, encode: Encode, pixels_at_once: int = PIXELS) -> Iterator[float]:
    """Encode every picture of the loader's source in order, and once more mirrored where the loader mirrors; yields the
    share done. An existing file is left alone."""
    if path.exists():
        return
    count = len(loader.source)
    batch = max(1, min(BATCH, pixels_at_once // math.prod(loader.size)))
    views = 2 if loader.mirrors else 1
    with atomic_path(path) as temporary:
        array: np.memmap | None = None
        for first in range(0, count, batch):
            indices = np.arange(first, min(first + batch, count))
            pixels = loader.pixels_of(indices)
            for view in range(views):
                with torch.no_grad():
                    both = torch.stack(encode(pixels.flip(-1) if view else pixels), dim=1)  # (b, 2, z, h, w)
                if array is None:
                    array = np.lib.format.open_memmap(temporary, "w+", np.float16, (views * count, *both.shape[1:]))
                start = view * count + first
                array[start : start + len(indices)] = both.cpu().to(torch.float16).numpy()
            yield (first + len(indices)) / count
        assert array is not None
        array.flush()
        del array


class LatentLoader:
    """A loader's batches with latents instead of pixels: the same order, the same captions.

    Batches hold latents and spread, float32 (b, z, h, w), scaled as the codec does; captions; indices.
    """

    def __init__(self, loader: Loader, path: Path, scale: float, shift: float) -> None:
        self.loader, self.scale, self.shift = loader, scale, shift
        self.array = np.load(path, mmap_mode="r")

    def batch_of(self, epochs: np.ndarray, indices: np.ndarray) -> Batch:
        rows = indices + len(self.loader.source) * self.loader.mirrored(epochs, indices)
        raw = torch.from_numpy(self.array[rows]).float()  # (b, 2, z, h, w)
        return {
            "latents": (raw[:, 0] - self.shift) * self.scale,
            "spread": raw[:, 1] * self.scale,
            "captions": self.loader.words_of(epochs, indices),
            "indices": torch.from_numpy(indices),
        }

    def stream(self, start: int) -> Iterator[Batch]:
        """Batches from step `start` on, without end."""
        step = start
        while True:
            yield self.batch_of(*self.loader.rows_at(step))
            step += 1


def statistics(path: Path) -> tuple[float, float]:
    """(mean, standard deviation) of all latent values in a file, float64, read in pieces."""
    array = np.load(path, mmap_mode="r")
    total = squares = 0.0
    for part in np.array_split(array[:, 0], max(1, len(array) // 4096)):
        values = part.astype(np.float64)
        total += float(values.sum())
        squares += float((values**2).sum())
    size = array[:, 0].size
    return total / size, float(np.sqrt(squares / size - (total / size) ** 2))
