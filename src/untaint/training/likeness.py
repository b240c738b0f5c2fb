"""Which pictures look alike: by their colours on a coarse grid, whatever their brightness and contrast."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from untaint.examples import Examples

__all__ = ["Likeness", "looks"]

GRID = 8  # cells per side
NEAREST = 10  # pictures
BLOCK = 4096


def looks(examples: Examples) -> NDArray[np.float32]:
    """Return what the members look like: float32 (members, channels * 64), means over a grid of 8 x 8 cells, less the picture's mean and over its deviation."""
    parts = []
    for start in range(0, len(examples.rows), BLOCK):
        images = torch.from_numpy(np.asarray(examples.images[examples.rows[start : start + BLOCK]])).float()
        coarse = torch.nn.functional.adaptive_avg_pool2d(images, GRID).flatten(1)
        coarse = coarse - coarse.mean(1, keepdim=True)
        parts.append((coarse / coarse.std(1, keepdim=True).clamp(min=1e-3)).numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


class Likeness:
    """Says of some members how many of the ten others that they look most like have their label."""

    def __init__(self, examples: Examples) -> None:
        """Nothing is compared before it is asked for."""
        self.examples = examples
        self.labels = np.asarray(examples.labels)[examples.rows]
        self._looks: NDArray[np.float32] | None = None
        self._known: dict[int, NDArray[np.float64]] = {}

    def __call__(self, members: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return a share for each of ``members``, places among the members of the examples that are all of the members of one class."""
        label = int(self.labels[members[0]])
        if label not in self._known:
            self._known[label] = self._share(members)
        return self._known[label]

    def _share(self, members: NDArray[np.int64]) -> NDArray[np.float64]:
        from sklearn.neighbors import NearestNeighbors

        if self._looks is None:
            self._looks = looks(self.examples)
        most = min(NEAREST + 1, len(self._looks))
        near = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(self._looks)
        found = near.kneighbors(self._looks[members], return_distance=False)
        other = found != members[:, None]
        same = (self.labels[found] == self.labels[members][:, None]) & other
        return np.asarray(same.sum(axis=1) / np.maximum(other.sum(axis=1), 1), dtype=np.float64)
