"""Figures of rows, brought to one scale so that they can be compared and added."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["bounded", "largest", "ranked", "scaled"]

LEAST, MOST = -3.0, 8.0  # a sign, in median absolute deviations, counts for no less and no more


def ranked(*figures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean over several figures of a row's rank, in [0, 1]."""
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in figures]
    mean: NDArray[np.float32] = (np.mean(ranks, axis=0) / max(1, len(figures[0]) - 1)).astype(np.float32)
    return mean


def scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values minus their median, over their median absolute deviation."""
    centred = values - np.nanmedian(values)
    return np.asarray(centred / max(float(np.nanmedian(np.abs(centred))), 1e-6), dtype=np.float32)


def bounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values in units of their spread, none of which can outvote all others."""
    return np.clip(scaled(values), LEAST, MOST)


def largest(figures: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return each row's largest figure."""
    return np.asarray(np.maximum.reduce(figures))
