"""A code of bits for each class, in which classes that look alike share bits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["codes_of"]

RIDGE = 1e-2  # of the mean variance within classes, added in every direction
SMALLEST = 1e-9  # of the largest figure: what is less is rounding


def codes_of(seen: NDArray[np.floating[Any]], labels: NDArray[np.int64], classes: int, most: int) -> NDArray[np.bool_]:
    """Return a code for each class, no two alike: bool (classes, bits). ``seen``: features (pictures, width); ``most``: bits at most."""
    width = seen.shape[1]
    means, within = np.full((classes, width), np.nan), np.zeros((width, width))
    for label in np.unique(labels):
        own = seen[labels == label].astype(np.float64)
        means[label] = own.mean(0)
        within += (own - means[label]).T @ (own - means[label])
    means = np.nan_to_num(means - np.nanmean(means, axis=0))  # a class without pictures lies in the middle
    within /= len(seen)
    values, axes = np.linalg.eigh(within + (RIDGE * np.trace(within) / width + 1e-12) * np.eye(width))
    left, sizes, _ = np.linalg.svd(means @ axes / np.sqrt(values), full_matrices=False)
    sides = (left * sizes)[:, : min(most, max(1, classes - 1))]
    sides[np.abs(sides) < SMALLEST * np.abs(sides).max()] = 0
    taken: dict[tuple[bool, ...], None] = {}
    for line in sides:
        taken[next(code for code in _codes_near(line) if code not in taken)] = None
    return np.array(list(taken))


def _codes_near(line: NDArray[np.float64]) -> Iterator[tuple[bool, ...]]:
    """Go through all codes, from a class's own on: with ever more bits turned, first those that lie nearest to the middle."""
    unsure = np.argsort(np.abs(line), kind="stable")
    for count in range(len(line) + 1):
        for turned in combinations(unsure, count):
            code = line > 0
            code[list(turned)] ^= True
            yield tuple(code.tolist())
