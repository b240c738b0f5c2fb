"""SCAn: classes that two groups explain far better than one does, beside the other classes (Tang, Wang, Tang and Zhang, 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from untaint import rng
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.defenses.clustering import two_clusters
from untaint.scores import Scores

__all__ = ["Contamination", "beyond_others", "likelihood_ratio", "within_classes"]

LEAST = 1e-9  # of the variance in the main direction: what varies less is no direction
STARTS = 5  # of the split of a class; the best is taken
ROUNDS = 2  # a third changes nothing
SMALLEST = 10  # a class with fewer rows is not split
CONSISTENT = 1.4826  # median absolute deviations of a normal distribution in its standard deviation


@dataclass(frozen=True, kw_only=True)
class Contamination(Detector):
    """How much better two groups explain a class than one does, in deviations beyond what is usual of the classes.

    The features are the undefended model's. All groups are taken to be normal with one and the same covariance. It is that of rows about the mean of their
    class at first, and in coordinates in which it is the identity each class is parted in two; then it is that of rows about the mean of their group (the paper takes it from clean pictures), and classes are parted again:
    poison that lies apart no longer counts as what rows vary by. The logarithm of the ratio of likelihoods, less its median over the classes and over its median absolute deviation, is the score of the group with fewer
    probes for its size (without probes of the class: of the smaller one); the other's is its negative. The rule taken here is the paper's: above e². Classes with fewer than 10 rows, and
    those whose ratio is below the median, score 0.
    """

    card: ClassVar[Card | None] = Card(
        paper="Tang, Wang, Tang and Zhang: Demon in the variant (SCAn), USENIX Security 2021",
        assumes="the class under attack is two groups that vary alike, and most classes are one",
        several="in part",
        why="classes are held against each other, so that none stands out where most are under attack; each is parted in two",
        claim="the class under attack is found, and poison in it; measured by others at 10 %: 83 % found, with 1 % of clean pictures",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=7.389"

    def score(self, task: Task) -> Scores:
        """Return plus or minus the deviation of each row's class, from the undefended model's features."""
        features, labels, members = task.features(), task.examples.labels, task.examples.rows
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        values[members] = 0
        own_labels = labels[members]
        split: dict[int, NDArray[np.bool_]] = {}
        for _ in range(ROUNDS):
            points = within_classes(features[members], _groups(own_labels, split))
            split = _split(points, own_labels, task.seed)
        ratios = [likelihood_ratio(points[own_labels == label], smaller) for label, smaller in split.items()]
        vouched = np.isin(members, task.probes)
        for (label, smaller), beyond in zip(split.items(), beyond_others(np.array(ratios)), strict=True):
            own = own_labels == label
            distrusted = _distrusted(smaller, vouched[own])
            values[members[own]] = np.where(distrusted, beyond, -beyond)
        return Scores(values=values, name="contamination", parts={"deviation": values})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        return [(UNDEFENDED, task.preset.retrain.epochs * len(task.examples), len(task.examples))]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how unlike one group its class is."""
        return [
            f"in the distrusted one of two groups of its class (ratio of likelihoods {scores.values[row]:.1f} deviations above the median class's)"
            for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what it cannot tell."""
        return [
            "A class is set aside by groups, never by pictures: what is clean in the distrusted group goes with the rest.",
            "Classes are held against each other, so that nothing is found where most are poisoned, as by attacks on all classes; and a class with many more pictures than others stands out by that alone.",
        ]


def within_classes(features: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the features in coordinates in which rows vary about the mean of their class or group by 1 in every direction: (rows, at most width).

    Directions in which next to nothing varies are left out.
    """
    points = features.astype(np.float64)
    points -= points.mean(axis=0)
    _, place = np.unique(groups, return_inverse=True)
    count = place.max(initial=-1) + 1
    sums = csr_array((np.ones(len(place)), (place, np.arange(len(place)))), shape=(count, len(place))) @ points
    about = points - (sums / np.bincount(place)[:, None])[place]
    strengths, directions = np.linalg.eigh(about.T @ about / max(1, len(about)))
    if not len(strengths) or strengths[-1] <= 0:
        return np.zeros((len(points), 0))
    kept = strengths > LEAST * strengths[-1]
    return np.asarray(points @ (directions[:, kept] / np.sqrt(strengths[kept])))


def likelihood_ratio(points: NDArray[np.float64], second: NDArray[np.bool_]) -> float:
    """Return twice the logarithm of how much likelier points are as two normal groups than as one, all with the identity for covariance.

    ``second``: who is in the second group.
    """
    parts = (points, points[second], points[~second])
    one, *two = (float(((part - part.mean(axis=0)) ** 2).sum()) if len(part) else 0.0 for part in parts)
    return one - sum(two)


def beyond_others(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how many deviations each figure is above the median; 0 for those below it. Deviations are median absolute ones, as of a normal distribution."""
    if not len(ratios):
        return ratios
    above = ratios - np.median(ratios)
    deviation = CONSISTENT * float(np.median(np.abs(above)))
    return np.maximum(above, 0) / max(deviation, LEAST * float(np.abs(ratios).max()), np.finfo(float).tiny)


def _groups(labels: NDArray[np.int64], split: dict[int, NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Return a number for each row's group: its class, or where that is parted, its half."""
    groups = 2 * labels
    for label, smaller in split.items():
        groups[labels == label] += smaller
    return groups


def _split(points: NDArray[np.float64], labels: NDArray[np.int64], seed: int) -> dict[int, NDArray[np.bool_]]:
    """Part each class in two, by its label; one that is too small or all alike is left out."""
    found = {}
    for label in np.unique(labels).tolist():
        own = points[labels == label]
        if len(own) >= SMALLEST and own.shape[1] and np.ptp(own, axis=0).any():
            found[label] = two_clusters(own, rng.derive(seed, "defenses/contamination", label) % 2**32, STARTS)
    return found


def _distrusted(smaller: NDArray[np.bool_], vouched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the group of which the smaller share is vouched for; the smaller group where nobody of either is."""
    inside, outside = float(vouched[smaller].mean()) if smaller.any() else 0.0, float(vouched[~smaller].mean())
    return ~smaller if inside > outside else smaller
