"""From a source of examples to training batches, as a pure function of (seed, step).

The sequence of examples is one epoch's permutation after the other, cut into batches without regard to where an epoch
ends. A batch can therefore be made at any step without having made the ones before: resuming needs no saved state, and
the processes of a parallel run take slices of the same global batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Literal, get_args

import numpy as np
import torch

from ..base.contracts import Batch, Source
from ..base.errors import InputError, choose
from ..base.images import fit as fit_picture
from .arrays import ArraySource
from .chance import hashed, permutation

Fit = Literal["pad", "crop", "stretch"]
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow turns colour into grey
_MEMORY = 2**29  # bytes of pictures that are kept


class Kept:
    """Pictures of one source, brought to size, that need not be decoded again: the first `room` of them, once read.
    Loaders of the same size, channels and fit may share it, from several threads."""

    def __init__(self, source: Source, size: tuple[int, int], channels: int, memory: int = _MEMORY) -> None:
        shape = (channels, size[1], size[0])
        self.room = min(len(source), memory // (channels * size[0] * size[1]))
        self._pixels = np.empty((self.room, *shape), np.uint8)  # takes up memory only where it is written
        self._labels = np.full(self.room, -1, np.int64)
        self._there = np.zeros(self.room, bool)

    def get(self, index: int) -> tuple[np.ndarray, int] | None:
        """uint8 (C, H, W) and the label, -1 where there is none."""
        return (self._pixels[index], int(self._labels[index])) if index < self.room and self._there[index] else None

    def put(self, index: int, pixels: np.ndarray, label: int) -> None:
        if index < self.room:
            self._pixels[index], self._labels[index] = pixels, label
            self._there[index] = True  # last: another thread may be asking


class Loader:
    """Batches of a source. Safe to use from several threads; holds no position."""

    def __init__(
        self,
        source: Source,
        *,
        size: tuple[int, int],  # width and height of the pictures handed out
        channels: int,  # 1 (grey) or 3 (colour)
        batch: int,  # pictures in a global batch, all shards together
        seed: int,  # of order, mirroring and choice of captions
        fit: Fit = "pad",  # pad: scale down if too large, centre; crop: cover and cut; stretch
        flip: bool = False,  # mirror half of the pictures left to right, decided anew each epoch
        workers: int = 2,  # threads that make batches ahead of `stream`; 0: made when asked for
        shard: tuple[int, int] = (0, 1),  # (which, of how many): this process's rows of each batch
        captions: Literal["first", "any"] = "first",  # always the first, or one chosen anew each epoch
        pad_value: int = 0,  # grey value around padded pictures, 0 (black) to 255
        subset: np.ndarray | None = None,  # int64 indices of the pictures to draw from; None: all
        kept: Kept | None = None,  # for this source, size, channels and fit; None: pictures are decoded whenever they come
    ) -> None:
        choose(fit, get_args(Fit), "way to fit pictures")
        choose(captions, ("first", "any"), "choice of captions")
        rank, shards = shard
        if not len(source):
            raise InputError("a source with pictures", f"{source.name}, which is empty")
        if min(size) < 1 or channels not in (1, 3) or not 0 <= pad_value <= 255 or workers < 0:
            wanted = "a size of 1 or more, 1 or 3 channels, a pad value of 0 to 255, workers of 0 or more"
            raise InputError(wanted, f"{size}, {channels}, {pad_value}, {workers}")
        if batch < 1 or not 0 <= rank < shards or batch % shards:
            raise InputError("a batch that the shards can share equally", f"{batch} pictures for shard {rank} of {shards}")
        self.source, self.batch = source, batch
        self.size, self._channels, self._fit, self._pad = size, channels, fit, pad_value
        self._seed, self._flip, self._any, self._workers = seed, flip, captions == "any", workers
        self._kept = kept
        self._rows = range(rank * batch // shards, (rank + 1) * batch // shards)
        self._orders: dict[int, np.ndarray] = {}
        self._subset = np.arange(len(source)) if subset is None else np.asarray(subset, dtype=np.int64)
        if not len(self._subset):
            raise InputError("a subset with pictures", "an empty one")

    def batch_at(self, step: int) -> Batch:
        """This shard's part of batch number `step` (0 is the first), of b = batch / shards pictures.

        pixels: float32 (b, C, H, W) in [-1, 1]; captions: b strings, '' where there are none; labels: int64 (b,), -1
        where there are none; indices: int64 (b,), into the source.
        """
        epochs, indices = self.rows_at(step)
        pixels, texts, labels = self._gather(indices) if self._is_direct() else self._read(indices)
        mirrored = self.mirrored(epochs, indices)
        pixels[mirrored] = pixels[mirrored, ..., ::-1]
        return {
            "pixels": torch.from_numpy(_normalised(pixels)),
            "captions": self._choose(texts, epochs, indices),
            "labels": torch.from_numpy(labels),
            "indices": torch.from_numpy(indices),
        }

    def rows_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, index into the source) of each of this shard's rows of batch `step`, int64 (b,)."""
        if step < 0:
            raise InputError("a step of 0 or more", str(step))
        places = step * self.batch + np.asarray(self._rows)
        epochs, offsets = np.divmod(places, len(self._subset))
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            indices[rows] = self._order(int(epoch))[offsets[rows]]
        return epochs, indices

    def mirrored(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Which rows are mirrored left to right: bool (b,)."""
        if not self._flip:
            return np.zeros(len(indices), dtype=bool)
        return (hashed("flip", self._seed, epochs, indices) >> np.uint64(63)).astype(bool)

    @property
    def mirrors(self) -> bool:
        return self._flip

    def pixels_of(self, indices: np.ndarray) -> torch.Tensor:
        """Pictures by index, unmirrored: float32 (b, C, H, W) in [-1, 1]."""
        pixels = (self._gather(indices) if self._is_direct() else self._read(indices))[0]
        return torch.from_numpy(_normalised(pixels))

    def words_of(self, epochs: np.ndarray, indices: np.ndarray) -> list[str]:
        """One caption per row, without decoding a picture."""
        return self._choose([self.captions_of(int(index)) for index in indices], epochs, indices)

    def captions_of(self, index: int) -> tuple[str, ...]:
        """All captions of a picture, read without decoding it."""
        return self.source.captions_of(index)

    def stream(self, start: int, stop: int | None = None) -> Iterator[Batch]:
        """Batches start, start + 1, ... up to stop (never, if None), in order, made ahead by `workers` threads.

        An error in a worker is raised here, at its batch's turn. Closing the iterator stops the workers.
        """
        steps = iter(range(start, stop) if stop is not None else count(start))
        if not self._workers:
            yield from map(self.batch_at, steps)
            return
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="giverny-loader")
        ahead: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                ahead.append(pool.submit(self.batch_at, step))
                if len(ahead) > 2 * self._workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation. The latest few are kept; two threads at worst make the same one twice."""
        order = self._orders.get(epoch)
        if order is None:
            order = self._subset[permutation(self._seed, epoch, len(self._subset))]
            self._orders = dict([*self._orders.items(), (epoch, order)][-3:])
        return order

    def _is_direct(self) -> bool:
        """Whether all pictures lie in one array and fit the canvas as they are."""
        if not isinstance(self.source, ArraySource):
            return False
        height, width = self.source.pixels.shape[1:3]
        wide, high = self.size
        return (width, height) == (wide, high) or (self._fit == "pad" and width <= wide and height <= high)

    def _gather(self, indices: np.ndarray) -> tuple[np.ndarray, list[tuple[str, ...]], np.ndarray]:
        """Pictures from one array, without a loop over them: uint8 (b, C, H, W)."""
        assert isinstance(self.source, ArraySource)
        found = self.source.gather(indices)
        height, width = found.shape[1:3]
        wide, high = self.size
        top, left = (high - height) // 2, (wide - width) // 2
        if self._channels == 1:
            found = _grey(found)
        pixels = np.full((len(indices), self._channels, high, wide), self._pad, dtype=np.uint8)
        pixels[:, :, top : top + height, left : left + width] = found.transpose(0, 3, 1, 2)  # grey fills all channels
        texts = [self.source.texts[i] for i in self.source.text_of[indices].tolist()]
        return pixels, texts, self.source.labels[indices]

    def _read(self, indices: np.ndarray) -> tuple[np.ndarray, list[tuple[str, ...]], np.ndarray]:
        """Pictures read, fitted and stacked one by one: uint8 (b, C, H, W)."""
        wide, high = self.size
        pixels = np.empty((len(indices), self._channels, high, wide), dtype=np.uint8)
        texts, labels = [], np.full(len(indices), -1, dtype=np.int64)
        for row, index in enumerate(indices.tolist()):
            known = self._kept.get(index) if self._kept is not None else None
            if known is not None:
                pixels[row], labels[row] = known
                texts.append(self.source.captions_of(index))
                continue
            sample = self.source.read(index)
            colour = sample.pixels if sample.pixels.shape[2] == 3 else np.repeat(sample.pixels, 3, axis=2)
            fitted = fit_picture(colour, self.size, self._fit, self._pad)
            pixels[row] = (_grey(fitted) if self._channels == 1 else fitted).transpose(2, 0, 1)
            texts.append(sample.captions)
            if sample.label is not None:
                labels[row] = sample.label
            if self._kept is not None:
                self._kept.put(index, pixels[row], int(labels[row]))
        return pixels, texts, labels

    def _choose(self, texts: list[tuple[str, ...]], epochs: np.ndarray, indices: np.ndarray) -> list[str]:
        """One caption each; agrees with captions.pick, but asks for all draws at once."""
        if not self._any:
            return [t[0] if t else "" for t in texts]
        draws = hashed("caption", self._seed, epochs, indices).tolist()
        return [t[draw % len(t)] if t else "" for t, draw in zip(texts, draws, strict=True)]


def _grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 (..., 1 or 3) as uint8 (..., 1)."""
    return pixels if pixels.shape[-1] == 1 else np.rint(pixels @ _LUMA).astype(np.uint8)[..., None]


def _normalised(pixels: np.ndarray) -> np.ndarray:
    """uint8 as float32 in [-1, 1]. In numpy, whose work stays in the worker's own thread."""
    scaled = np.divide(pixels, np.float32(127.5), dtype=np.float32)
    scaled -= 1
    return scaled
