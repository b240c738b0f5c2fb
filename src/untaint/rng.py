"""Randomness keyed by (seed, purpose, epoch, row), never drawn from a stream.

The same example gets the same draw for any batch size, order, worker count or number of
processes, and a resumed run needs no saved generator state. The generator is the splitmix64
finaliser chained over the key (Steele, Lea, Flood, 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["bits", "choose", "derive", "order", "uniform"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SECOND = np.uint64(0xD1B54A32D192ED03)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def derive(seed: int, *words: str | int) -> int:
    """Return a 63-bit seed for one purpose, for generators that only take a seed."""
    text = "\x1f".join([str(int(seed)), *map(str, words)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def bits(seed: int, purpose: str, epoch: int, rows: NDArray[np.integer], draws: int = 1) -> NDArray[np.uint64]:
    """Return 64 random bits per row and draw: uint64 (rows, draws)."""
    key = np.uint64(derive(seed, purpose, epoch))
    with np.errstate(over="ignore"):
        per_row = _mix(key + (np.asarray(rows).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        steps = np.arange(1, draws + 1, dtype=np.uint64) * _SECOND
        return _mix(_mix(per_row)[:, None] + steps[None, :])


def uniform(seed: int, purpose: str, epoch: int, rows: NDArray[np.integer], draws: int = 1) -> NDArray[np.float64]:
    """Return numbers in [0, 1) per row and draw: float64 (rows, draws)."""
    return (bits(seed, purpose, epoch, rows, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def order(seed: int, purpose: str, epoch: int, rows: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the given rows shuffled: the same order however the rows were given."""
    ascending: NDArray[np.int64] = np.sort(np.asarray(rows, dtype=np.int64))
    return ascending[np.argsort(bits(seed, purpose, epoch, ascending)[:, 0], kind="stable")]


def choose(seed: int, purpose: str, rows: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """Return ``count`` of the given rows, drawn uniformly without replacement, ascending."""
    return np.sort(order(seed, purpose, 0, rows)[:count])
