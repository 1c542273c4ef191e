"""The random numbers of a CUDA device, on any machine: Philox 4x32-10 and what torch makes of it.

Philox is Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"): ten rounds that mix a counter under a key. torch's
`randn` on CUDA gives each number its own counter, and turns its first two words into a normal number (Box and Muller 1958).
Pictures whose infotext names no RNG, or "NV", were made from these numbers (AUTOMATIC1111, modules/rng_philox.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # added to the key after each round
ROUNDS = 10
LOW = 0xFFFFFFFF


def philox(counter: np.ndarray, key: int) -> np.ndarray:
    """Philox 4x32-10. counter: uint32 (4, N); key: 64 bits. Returns uint32 (4, N)."""
    a, b, c, d = (word.astype(np.uint64) for word in counter)
    low, high = key & LOW, key >> 32
    for _ in range(ROUNDS):
        left, right = a * np.uint64(MULTIPLIERS[0]), c * np.uint64(MULTIPLIERS[1])
        a, b, c, d = (right >> 32) ^ b ^ np.uint64(low), right & LOW, (left >> 32) ^ d ^ np.uint64(high), left & LOW
        low, high = (low + WEYL[0]) & LOW, (high + WEYL[1]) & LOW
    return np.stack([a, b, c, d]).astype(np.uint32)


class Philox:
    """A random stream of normal numbers as a CUDA device of torch draws them. seed: whole, taken modulo 2^64."""

    def __init__(self, seed: int) -> None:
        self.seed, self.draws = seed % 2**64, 0

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next draw: unit noise, float32 on the CPU. Number i of draw n has the counter (n, 0, i, 0)."""
        count = math.prod(shape)
        counter = np.zeros((4, count), np.uint32)
        counter[0], counter[2] = self.draws, np.arange(count, dtype=np.uint32)
        self.draws += 1
        first, second = philox(counter, self.seed)[:2].astype(np.float64)
        part, turn = 2.0**-32, float(np.float32(2.0**-32 * 6.2831855))
        drawn = np.sqrt(-2 * np.log(first * part + part / 2)) * np.sin(second * turn + turn / 2)
        return torch.from_numpy(drawn.astype(np.float32)).reshape(tuple(shape))
