"""How strange an example's features are to the probes, compared with how strange they are to everybody.

Two squared Mahalanobis distances to what is usual for the example's label, one by the mean and the
spread of the probes, one by those of all examples. A direction of the features along which many
examples differ and no probe does, as a trigger makes it, is wide for everybody and narrow for the
probes; the logarithm of the ratio is large there. A hard clean picture is strange to both. A class
that happens to have few probes would be strange as a whole: each probe counts by how much rarer its
class is among the probes than among all examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from untaint import run

__all__ = ["strangeness"]

SHRINK = 0.1  # share of the mean variance that is added in every direction
PRIOR = 10.0  # a class's mean over all examples counts as so many probes
RARER = 3.0  # a probe counts for no more, and one over it for no less
BLOCK = 16_384


def strangeness(
    files: Sequence[Path],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    probes: NDArray[np.int64],
    near: Sequence[NDArray[np.int64]] = (),
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Return the mean log ratio over several files of features, and what it is near each probe.

    ``files``: float arrays (rows, dims), one per model and epoch. ``near``: one array per probe,
    its neighbours of its label. First: float32 (rows of the file,), nan outside ``rows``; a probe is
    compared with the others alone. Second: one array per entry of ``near``, each neighbour as it would
    be were that probe none: a probe makes familiar what lies around it, and would otherwise
    keep better company than other clean rows.
    """
    weights = _weights(labels, rows, probes)
    total = np.zeros(len(labels))
    around = [np.zeros(len(others)) for others in near]
    for path in files:
        features = run.load_array(path)
        everybody = _Usual.of(features, labels, rows)
        probed = _Usual.of(features, labels, probes, everybody.means, weights)
        for part in _parts(rows):
            familiar, usual = probed.squared(features, labels, part), everybody.squared(features, labels, part)
            mine = np.isin(part, probes)
            familiar[mine] = probed.without(familiar[mine], labels[part[mine]])
            total[part] += _log_ratio(familiar, usual)
        for probe, others, sums in zip(probes, near, around, strict=bool(near)):
            familiar = probed.squared_without(features, labels, others, int(probe))
            mine = np.isin(others, probes)
            familiar[mine] = probed.without(familiar[mine], labels[others[mine]])
            sums += _log_ratio(familiar, everybody.squared(features, labels, others))
    result = np.full(len(labels), np.nan, dtype=np.float32)
    result[rows] = total[rows] / max(1, len(files))
    return result, [(sums / max(1, len(files))).astype(np.float32) for sums in around]


def _weights(labels: NDArray[np.int64], rows: NDArray[np.int64], probes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return what a probe of each label counts, float64 (labels,); the mean over the probes is 1."""
    classes = int(labels.max()) + 1
    wanted, there = (np.bincount(labels[members], minlength=classes) / len(members) for members in (rows, probes))
    weights = np.clip(wanted / np.maximum(there, 1e-9), 1 / RARER, RARER)
    return np.asarray(weights / weights[labels[probes]].mean())


def _log_ratio(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(np.maximum(one, 1e-12) / np.maximum(other, 1e-12)))


def _parts(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


@dataclass(frozen=True)
class _Usual:
    """What is usual for each label among some members: means (labels, dims), and one spread within labels."""

    means: NDArray[np.float64]
    inverse: NDArray[np.float64]  # of the shrunk covariance (dims, dims)
    counts: NDArray[np.float64]  # members per label, the prior included
    members: int
    weights: NDArray[np.float64]  # of a member of each label in the spread

    @classmethod
    def of(
        cls,
        features: NDArray[np.float16],
        labels: NDArray[np.int64],
        members: NDArray[np.int64],
        prior: NDArray[np.float64] | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> _Usual:
        """Measure some members; with ``prior`` (labels, dims) every mean is drawn towards it."""
        classes, dims = int(labels.max()) + 1, features.shape[1]
        weights = np.ones(classes) if weights is None else weights
        weight = 0.0 if prior is None else PRIOR
        sums = np.zeros((classes, dims)) if prior is None else weight * prior
        counts = np.full(classes, weight)
        for part in _parts(members):
            order = np.argsort(labels[part], kind="stable")
            present, starts = np.unique(labels[part][order], return_index=True)
            sums[present] += np.add.reduceat(features[part[order]].astype(np.float64), starts)
            counts += np.bincount(labels[part], minlength=classes)
        means = sums / np.maximum(counts, 1)[:, None]
        scatter = np.zeros((dims, dims))
        for part in _parts(members):
            residual: NDArray[np.float64] = features[part].astype(np.float64) - means[labels[part]]
            scatter += residual.T @ (residual * weights[labels[part], None])
        covariance = scatter / max(1, len(members))
        covariance[np.diag_indices(dims)] += SHRINK * float(np.trace(covariance)) / dims + 1e-9
        return cls(means, np.asarray(np.linalg.inv(covariance)), counts, len(members), weights)

    def squared(
        self, features: NDArray[np.float16], labels: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the squared distance of some rows from what is usual for their labels."""
        residual = features[rows].astype(np.float64) - self.means[labels[rows]]
        return np.asarray(np.einsum("rd,rd->r", residual @ self.inverse, residual))

    def squared_without(
        self, features: NDArray[np.float16], labels: NDArray[np.int64], rows: NDArray[np.int64], member: int
    ) -> NDArray[np.float64]:
        """Return the squared distance of rows of a member's label, had that member not been measured."""
        label = labels[member]
        weight = self.weights[label]
        own = features[member].astype(np.float64) - self.means[label]
        moved = own / max(self.counts[label] - 1, 1e-6)
        residual = features[rows].astype(np.float64) - self.means[label] + moved
        towards = self.inverse @ own
        more = weight * np.square(residual @ towards) / max(self.members - weight * float(own @ towards), 1e-6)
        squared = np.einsum("rd,rd->r", residual @ self.inverse, residual) + more
        return np.asarray(squared * (self.members - weight) / self.members)

    def without(self, squared: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the squared distances of members as they would be had each not been measured itself.

        Sherman and Morrison's formula for the spread, and the mean moved away; what shrinks the
        spread stays as it was.
        """
        share = self.counts[labels] / np.maximum(self.counts[labels] - 1, 1e-6)
        weights = self.weights[labels]
        left = squared / np.maximum(1 - weights * squared / self.members, 1e-6)
        return np.asarray(left * share**2 * (self.members - weights) / self.members)
