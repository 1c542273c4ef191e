"""Decisions that look random and depend on (seed, epoch, index) alone.

Nothing here has a state: a resumed run, another process or another thread that asks the same question gets the same
answer. Numbers come from integer mixing (the finaliser of Steele, Lea and Flood's SplitMix, OOPSLA 2014), which is
fixed arithmetic and therefore the same under every version of numpy.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads consecutive integers over the whole range


def _scramble(x: np.ndarray) -> np.ndarray:
    """The 64-bit finaliser: one input bit flips about half of the output bits. Wraps modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(purpose: str, seed: int, epoch: np.ndarray | int, index: np.ndarray | int) -> np.ndarray:
    """One uniform 64-bit number per (epoch, index) pair, shape (n,) uint64.

    purpose: keeps the draws for different decisions apart ("order", "flip", ...). epoch and index broadcast.
    """
    start = int.from_bytes(blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest(), "little")
    epochs = np.atleast_1d(np.asarray(epoch, dtype=np.int64)).astype(np.uint64)
    indices = np.atleast_1d(np.asarray(index, dtype=np.int64)).astype(np.uint64)
    state = _scramble(np.uint64(start) ^ _scramble(epochs * _GOLDEN + _GOLDEN))
    return _scramble(state + indices * _GOLDEN)


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits `count` examples: int64 (count,), each index once."""
    return np.argsort(hashed("order", seed, epoch, np.arange(count)), kind="stable")
