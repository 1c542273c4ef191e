"""Features of any number of pictures in constant memory, the same whatever the order, the batches or the processes.

Sums run over all pictures. Of the features themselves only those of a sample are kept: the pictures whose keys are the
smallest. A key is a hash of the pixels, so that the sample is random to what the pictures show, yet the same set of pictures
always gives the same sample, in the same order. Parts gathered in several processes are joined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..base.errors import InputError
from .moments import Moments

KEEP = 10_000  # rows: 80 MB of Inception's features
PENDING = 1024  # rows whose products are summed at once


def key_of(pixels: np.ndarray) -> int:
    """Of a picture uint8 (H, W, C): 63 bits of BLAKE2 over its size and pixels."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest(), "big") >> 1


class Gathered:
    """What is known of a set of pictures: `rows` (k, d) of a sample in the order of their `keys` (k,), `tags` (k,) that say
    which pictures these are, and, where wanted, `moments` of all `count`."""

    def __init__(self, width: int, keep: int = KEEP, moments: bool = True) -> None:
        if width < 1 or keep < 2:
            raise InputError("features of one number or more, and two rows or more to keep", f"{width} and {keep}")
        self.width, self.keep, self.count = width, keep, 0
        self._moments = Moments(width) if moments else None
        self._pending: list[Tensor] = []
        self._rows = torch.empty(0, width)
        self._keys, self._tags = np.empty(0, np.int64), np.empty(0, np.int64)
        self._more: list[tuple[Tensor, np.ndarray, np.ndarray]] = []
        self._waiting = 0

    def add(self, features: Tensor, keys: Sequence[int], tags: Sequence[int] | None = None) -> None:
        """features: (B, d); keys: `key_of` each picture; tags: numbers of one's own (default: how many came before).
        Raises InputError for features that are no numbers."""
        rows = features.detach().to("cpu", torch.float32)
        if rows.shape != (len(keys), self.width):
            raise InputError(f"features ({len(keys)}, {self.width})", str(tuple(rows.shape)))
        if not torch.isfinite(rows).all():
            bad = int((~torch.isfinite(rows)).any(1).sum())
            raise InputError("features that are numbers", f"{bad} of {len(rows)} rows with NaN or infinity",
                             "Look at the weights and the precision of the network that looked.")  # fmt: skip
        numbers = range(self.count, self.count + len(rows)) if tags is None else tags
        self._more.append((rows, np.asarray(keys, np.int64), np.asarray(numbers, np.int64)))
        self.count += len(rows)
        self._waiting += len(rows)
        if self._moments is not None:
            self._pending.append(rows)
            if sum(map(len, self._pending)) >= PENDING:
                self._flush()
        if self._waiting >= self.keep:
            self._settle()

    def join(self, other: Gathered) -> None:
        """Take in what was gathered elsewhere."""
        if (other.width, other.keep, other._moments is None) != (self.width, self.keep, self._moments is None):
            raise InputError("parts gathered alike", "other widths, samples or sums")
        other._settle()
        self._more.append((other._rows, other._keys, other._tags))
        self.count += other.count
        self._settle()
        if self._moments is not None:
            self._flush()
            other._flush()
            assert other._moments is not None
            self._moments = Moments.joined([self._moments, other._moments])

    @property
    def rows(self) -> Tensor:  # (k, d) float32
        self._settle()
        return self._rows

    @property
    def keys(self) -> np.ndarray:  # (k,) int64
        self._settle()
        return self._keys

    @property
    def tags(self) -> np.ndarray:  # (k,) int64
        self._settle()
        return self._tags

    @property
    def moments(self) -> Moments:
        """Raises InputError where none were asked for."""
        if self._moments is None:
            raise InputError("sums over all pictures", "a set gathered without them")
        self._flush()
        return self._moments

    @property
    def summed(self) -> bool:
        """Whether there are `moments`."""
        return self._moments is not None

    @property
    def alike(self) -> int:
        """How many rows of the sample are of a picture that stands there already."""
        return len(self.keys) - len(np.unique(self.keys))

    def halves(self) -> tuple[Tensor, Tensor]:
        """Every second row of the sample each."""
        return self.rows[::2], self.rows[1::2]

    def _flush(self) -> None:
        if self._pending and self._moments is not None:
            self._moments.add(torch.cat(self._pending))
            self._pending = []

    def _settle(self) -> None:
        """Keep the smallest keys of all that came, in order; equal pictures by what they were called."""
        if not self._more:
            return
        parts = [(self._rows, self._keys, self._tags), *self._more]
        rows, keys, tags = torch.cat([p[0] for p in parts]), *(np.concatenate([p[i] for p in parts]) for i in (1, 2))
        kept = np.lexsort((tags, keys))[: self.keep]
        self._rows, self._keys, self._tags = rows[torch.from_numpy(kept)], keys[kept], tags[kept]
        self._more, self._waiting = [], 0


def gathered(features: Tensor, keys: Iterable[int] | None = None) -> Gathered:
    """Of features (n, d) that are there already; keys: those of their pictures (default: their places)."""
    whole = Gathered(features.shape[1], max(2, len(features)))
    whole.add(features, list(keys) if keys is not None else list(range(len(features))))
    return whole


# ---------------------------------------------------------------------------------------------------------------------
# On disk: a reference is looked at once


def pack(whole: Gathered) -> dict[str, Tensor]:
    """All of it as tensors."""
    found = {"rows": whole.rows, "keys": torch.from_numpy(whole.keys), "tags": torch.from_numpy(whole.tags),
             "counts": torch.tensor([whole.count, whole.keep])}  # fmt: skip
    if whole.summed:
        found |= {"total": whole.moments.total, "products": whole.moments.products}
    return {name: tensor.contiguous() for name, tensor in found.items()}


def unpack(tensors: dict[str, Tensor]) -> Gathered:
    """What `pack` packed."""
    rows, (count, keep) = tensors["rows"], tensors["counts"].tolist()
    whole = Gathered(rows.shape[1], keep, moments=False)
    whole._more.append((rows, tensors["keys"].numpy(), tensors["tags"].numpy()))
    whole.count = count
    if "total" in tensors:
        whole._moments = Moments(rows.shape[1])
        whole._moments.count, whole._moments.total, whole._moments.products = count, tensors["total"], tensors["products"]
    return whole
