"""Figures of rows, brought to one scale so that they can be compared and added."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["beside_class", "beside_probes", "bounded", "largest", "ranked", "scaled"]

PRIOR = 12.0  # so many probes that lie where all probes do are counted to each class
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


def beside_probes(
    values: NDArray[np.float32], labels: NDArray[np.int64], probes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return values less how much further the probes of the label lie than all probes: what a whole class has is no sign.

    In units of the spread; few probes of a label take little away. Poison moves no probe, however
    much of its class it is.
    """
    result = scaled(values)
    beyond = result[probes] - np.nanmedian(result[probes])
    sums = np.bincount(labels[probes], weights=np.nan_to_num(beyond), minlength=int(labels.max()) + 1)
    offsets = sums / (np.bincount(labels[probes], minlength=len(sums)) + PRIOR)
    return np.asarray(result - offsets[labels], dtype=np.float32)


def beside_class(values: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return values less the median of their label: poison moves it where it is much of its class."""
    result = scaled(values)
    for label in np.unique(labels):
        members = labels == label
        result[members] -= np.nanmedian(result[members])
    return result


def bounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values in units of their spread, none of which can outvote all others."""
    return np.clip(scaled(values), LEAST, MOST)


def largest(figures: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return each row's largest figure."""
    return np.asarray(np.maximum.reduce(figures))
