"""The company an example keeps: figures of its nearest neighbours of the same label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from untaint import rng, run

__all__ = ["company", "neighbours", "side_by_side"]

BLOCK = 2_048
MOST = 20_000  # rows of a class that may be somebody's neighbours; a larger class is sampled


def side_by_side(files: Sequence[Path], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return features of several epochs, each normalised to length one, next to each other: (rows, sum of dims)."""
    parts = []
    for path in files:
        part = np.asarray(run.load_array(path)[rows], dtype=np.float32)
        parts.append(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6))
    return np.concatenate(parts, axis=1)


def neighbours(features: NDArray[np.float32], rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return for each row of one class its nearest others: int64 (rows, at most count), entries of ``rows``.

    ``features``: float32 (rows, dims). Exact for classes up to 20,000 rows.
    """
    points = torch.from_numpy(features)
    pool = np.arange(len(rows))
    if len(rows) > MOST:
        pool = np.searchsorted(rows, rng.choose(0, "neighbours", rows, MOST))
    candidates = points[torch.from_numpy(pool)]
    squares = candidates.square().sum(1)
    found = []
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        distance = squares - 2 * block @ candidates.T  # up to the block's own square, which changes no order
        own = torch.from_numpy(pool)[None, :] == torch.arange(start, start + len(block))[:, None]
        distance[own] = float("inf")
        found.append(distance.topk(min(count, len(pool) - 1), dim=1, largest=False).indices)
    near: NDArray[np.int64] = rows[pool[torch.cat(found).numpy()]]
    return near


def company(values: NDArray[np.float32], near: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return for each row the median value of its neighbours (its own if it has none), float32 (rows,)."""
    if near.shape[1] == 0:
        return values[rows]
    return np.asarray(np.nanmedian(values[near], axis=1), dtype=np.float32)
