"""Activation clustering: the smaller of two clusters of a class, if the two are well apart (Chen et al., 2018)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores

__all__ = ["Clustering", "reduced", "silhouette", "two_clusters"]

LOOKED_AT = 5_000  # rows of a class by which the silhouette is measured
NOTHING = 1e-9  # of the variance in the main direction
STARTS = 20  # of 2-means; the best is taken: in a class that does not fall apart, each start ends elsewhere
SMALLEST = 10  # a class with fewer rows is not clustered
BLOCK = 256  # rows whose distances to all others are held at once


@dataclass(frozen=True, kw_only=True)
class Clustering(Detector):
    """How well the rows of a class fall into two clusters: the silhouette for the smaller one, its negative for the larger.

    The features are the undefended model's, of each class by itself, reduced to ``dimensions`` by
    independent (``ica``) or principal (``pca``) components and parted by 2-means. Silhouettes run
    from -1 to 1; the rule taken here sets the smaller cluster aside where it is above 0.15, as
    Alex et al. (2025) do. Classes with fewer than 10 rows score 0.
    """

    dimensions: int = 10
    reduce: Literal["ica", "pca"] = "ica"

    card: ClassVar[Card | None] = Card(
        paper="Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy and Srivastava: Detecting backdoor attacks on deep neural networks by activation clustering, SafeAI at AAAI 2019",
        assumes="poison and the rest of its class form two clusters, of which poison is the smaller",
        several="in part",
        why="each class is parted in two, so that of several attackers on it the smaller cluster shows the strongest alone",
        claim="nearly all poison found on digits and traffic signs; measured by others on CIFAR-10: 0 to 62 % of it, with under 1 % of clean pictures",
    )
    version: ClassVar[int] = 2
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=0.15"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.dimensions < 1:
            raise SpecError(f"dimensions is {self.dimensions}; give at least 1.")

    def score(self, task: Task) -> Scores:
        """Return plus or minus the silhouette of each row's class, from the undefended model's features."""
        features, labels, members = task.features(), task.examples.labels, task.examples.rows
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        values[members] = 0
        for label in np.unique(labels[members]):
            rows = members[labels[members] == label]
            seed = rng.derive(task.seed, "defenses/clustering", int(label)) % 2**32
            if len(rows) < SMALLEST or not np.ptp(features[rows], axis=0).any():
                continue
            points = reduced(features[rows], self.dimensions, self.reduce, seed)
            smaller = two_clusters(points, seed)
            width = silhouette(points, smaller, seed)
            values[rows] = np.where(smaller, width, -width)
        return Scores(values=values, name="clustering", parts={"silhouette": values})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        return [(UNDEFENDED, task.preset.retrain.epochs * len(task.examples), len(task.examples))]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how well its class falls apart."""
        return [f"in the smaller of two clusters of its class (silhouette {scores.values[row]:.2f})" for row in rows]

    def limits(self) -> list[str]:
        """Return what clustering cannot tell."""
        return [
            "A class is set aside by clusters, never by pictures: what is clean in the smaller cluster goes with the rest."
        ]


def reduced(features: NDArray[np.float32], dimensions: int, how: str, seed: int) -> NDArray[np.float64]:
    """Return the features in a few dimensions: (rows, at most ``dimensions``).

    Principal components first, but for those in which next to nothing varies; independent ones are
    sought among them.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    strengths, directions = np.linalg.eigh(centred.T @ centred)
    chosen = np.flatnonzero(strengths > NOTHING * strengths[-1])[::-1][:dimensions]
    points = centred @ directions[:, chosen]
    if how == "pca":
        return np.asarray(points)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # components nearly found are as good for two clusters
        tool = FastICA(max_iter=1000, tol=0.005, fun=_bounded, whiten_solver="eigh", random_state=seed)
        return np.asarray(tool.fit_transform(points))


def _bounded(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the hyperbolic tangent, and its derivative's mean over each line: what scikit-learn's own returns, to the bit, in four fifths of the time."""
    np.tanh(values, out=values)
    slopes = np.square(values)
    return values, np.subtract(1, slopes, out=slopes).mean(axis=-1)


def two_clusters(points: NDArray[np.float64], seed: int, starts: int = STARTS) -> NDArray[np.bool_]:
    """Return who is in the smaller of two clusters, by the best of so many starts of 2-means: bool (rows,)."""
    from sklearn.cluster import KMeans

    second: NDArray[np.bool_] = KMeans(2, n_init=starts, random_state=seed).fit_predict(points).astype(bool)
    return ~second if second.mean() > 0.5 else second


def silhouette(points: NDArray[np.float64], second: NDArray[np.bool_], seed: int) -> float:
    """Return the mean silhouette of rows in two clusters, over 5,000 of them drawn by lot where there are more.

    ``second``: who is in the second cluster; neither may be empty. A row that is alone in its cluster counts 0 (Rousseeuw, 1987).
    """
    looked = np.random.RandomState(seed).permutation(len(points))[:LOOKED_AT]  # as scikit-learn draws
    for side in (second, ~second):
        if not side[looked].any():  # a cluster of a few, of whom none was drawn
            looked = np.concatenate([looked, np.flatnonzero(side)])
    parts = [points[looked][side[looked]] for side in (~second, second)]
    across = _summed(*parts)
    widths = 0.0
    for own, other, to_other in zip(parts, parts[::-1], across, strict=True):
        if len(own) > 1:
            inside, outside = _summed(own, own)[0] / (len(own) - 1), to_other / len(other)
            most = np.maximum(inside, outside)
            widths += float(((outside - inside) / np.where(most > 0, most, 1)).sum())
    return widths / len(looked)


def _summed(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums of the distances from each row of one to all of the other, and from each of the other to all of the one."""
    rows, columns = np.zeros(len(one)), np.zeros(len(other))
    lengths = np.square(other).sum(axis=1)
    for start in range(0, len(one), BLOCK):
        some = one[start : start + BLOCK]
        apart = some @ (-2 * other.T)
        apart += lengths
        apart += np.square(some).sum(axis=1)[:, None]
        np.sqrt(np.maximum(apart, 0, out=apart), out=apart)
        if one is other:
            np.fill_diagonal(apart[:, start:], 0)  # but for rounding
        rows[start : start + BLOCK] = apart.sum(axis=1)
        columns += apart.sum(axis=0)
    return rows, columns
