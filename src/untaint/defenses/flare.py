"""FLARE: rows whose extreme activations, in all hidden layers together, form a small cluster apart from most others' (Hou, Luo, Hua, Chen, Zhang and Li, 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.defenses._extremes import Pool, extremes
from untaint.defenses._perturbed import beside
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.defenses.clustering import reduced
from untaint.errors import SpecError
from untaint.scores import Scores

__all__ = ["Flare", "nearer", "split"]

CLUSTERED = 20_000  # rows that are clustered; the others are held against these
FEWEST = 25  # rows of a cluster
CORE = 10  # the neighbours by which is told how dense it is about a row
LARGE = 0.25  # of all rows is in the largest cluster at least; others may be in none
STEPS = 5  # so many densities are looked at while it grows by the factor that a gap is
DEPTH = 10.0  # logarithm of how much nearer rows are looked at than the furthest are
NEIGHBOURS = 5  # how far a cluster is, the distance to the fifth nearest of its rows tells
LEAST = 1e-9  # of a distance


@dataclass(frozen=True, kw_only=True)
class Flare(Detector):
    """How much nearer a row lies to a small cluster than to the one that most rows form: the logarithm of the ratio of the distances, and 0 where nothing comes apart.

    What enters each batch normalisation of the undefended model is brought to one scale by that layer's running mean and deviation, and the extreme values of each feature map are taken (``pool=layer``: the most extreme of all maps of a layer, as the authors' program has it).
    Rows of all classes are clustered by them together. As the density grows, clusters come off the largest; where it then stays whole while the density grows by a factor of exp(``gap``), it is held for clean, and the others for poison. The largest has
    a quarter of all rows at least, and half of those that are in clusters. Where nothing comes off, the last layer is left out, then the one before it, and so on.

    So far the paper (IEEE TIFS 2025); it reduces to two dimensions by UMAP, and takes clusters of 100 in 50,000 and a gap of 0.02 in the density after that. Ours are principal components in its place, the logarithms that they are taken of,
    how many there are (10 a layer, ``dimensions`` of all layers), a gap that does not depend on the scale, clusters of at least 25 and a share ``smallest`` of at most 20,000 rows that are clustered, and the score: what is in no cluster, which the paper keeps,
    goes to the nearer one. It needs no clean pictures; where there are probes, a cluster with half as many of them as others have is not held for poison. Models without batch normalisation are scaled by what is usual in 2,000 rows. The rule taken here is above 0.
    """

    pool: Pool = "map"
    dimensions: int = 10
    smallest: float = 0.002
    gap: float = 0.1

    card: ClassVar[Card | None] = Card(
        paper="Hou, Luo, Hua, Chen, Zhang and Li: FLARE: toward universal dataset purification against backdoor attacks, IEEE TIFS 2025",
        assumes="a trigger makes activations in some hidden layer that no clean picture makes, and most pictures are clean",
        claim="patch and blend found whole, warp 94 %, all-to-all and random labels 99.6 % and more, with hardly a clean picture; 3 % of them where there is no poison",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=0"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.pool not in ("map", "layer"):
            raise SpecError(f"pool is '{self.pool}'; give map or layer.")
        if self.dimensions < 1:
            raise SpecError(f"dimensions is {self.dimensions}; give at least 1, such as 10.")
        if not 0 < self.smallest < 0.5:
            raise SpecError(f"smallest is {self.smallest}; give a share of the rows above 0 and below 0.5.")
        if not 0.01 <= self.gap <= DEPTH:
            raise SpecError(f"gap is {self.gap}; give a number from 0.01 to {DEPTH:g}, such as 0.1.")

    def score(self, task: Task) -> Scores:
        """Return how much nearer each row lies to small clusters; 0 for all if there are none."""
        looked = f"flare-{self.pool}-{task.seed}"
        folder = beside(task, f"{looked}-{self.dimensions}-{self.smallest:g}-{self.gap:g}", task.probes)
        values = task.once(folder, lambda: self._judged(task, looked))
        return Scores(values=values, name="flare", parts={"nearer": values})

    def _judged(self, task: Task, looked: str) -> NDArray[np.float32]:
        """Return the scores, in as many layers as there are clusters in."""
        seen, rows = task.once(beside(task, looked), lambda: extremes(task, self.pool)), task.examples.rows
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        values[rows] = 0
        clustered = np.searchsorted(rows, rng.choose(task.seed, "defenses/flare", rows, CLUSTERED))
        with task.progress.step("look for clusters", seen.shape[1], unit="layers") as step:
            for layers in range(seen.shape[1], 0, -1):
                points = reduced(seen[rows, :layers].reshape(len(rows), -1), self.dimensions, "pca", task.seed)
                found = split(points[clustered], max(FEWEST, round(self.smallest * len(clustered))), self.gap)
                step.advance(1)
                apart = _unvouched(found, np.isin(rows[clustered], task.probes))
                if apart.any():
                    values[rows] = nearer(points, points[clustered[apart]], points[clustered[found == 0]])
                    break
        return values

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        return [(UNDEFENDED, task.preset.retrain.epochs * len(task.examples), len(task.examples))]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how much nearer to a small cluster it is."""
        return [
            f"what is extreme in the model's layers is {np.exp(scores.values[row]):.1f} times as near to a small cluster as to most pictures"
            for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what FLARE cannot tell."""
        return [
            "Poison that is the larger part of all pictures is taken for what is clean, poison of fewer than 25 pictures, or than the option smallest says, is not found, and a white trigger in a bright picture is not extreme.",
            "Clean pictures that have something very unusual in common, as a class that is like no other or many copies of one picture, may be taken for poison where no probe is among them.",
        ]


def split(points: NDArray[np.float64], fewest: int, gap: float) -> NDArray[np.int64]:
    """Return who is in the largest cluster, 0, and who in one of the others, 1 and on, where these come apart and stay so; -1 for the rest, and for all if they never do: (rows,).

    Clusters are those of HDBSCAN (Campello, Moulavi and Sander, 2013) at one density for all, the inverse of a distance, looked for from the lowest up. They stay so if there are as many others, of ``fewest`` rows at least, and the largest is
    large, while the density grows by a factor of exp(``gap``); of these densities the one is taken at which the most rows are in the others.
    """
    from sklearn.cluster import HDBSCAN
    from sklearn.neighbors import NearestNeighbors

    best = nothing = np.full(len(points), -1)
    if len(points) < 2 * fewest or not np.ptp(points, axis=0).any():
        return nothing
    around = NearestNeighbors(n_neighbors=CORE).fit(points).kneighbors(points)[0][:, -1]
    tree = HDBSCAN(min_cluster_size=fewest, min_samples=CORE, copy=True).fit(points)
    furthest = 2 * float(np.linalg.norm(points - points.mean(axis=0), axis=1).max())
    nearest = max(float(np.quantile(around, LARGE)), np.exp(-DEPTH) * furthest)
    before, steady = 0, 0
    for level in np.arange(np.log(furthest), np.log(nearest), -gap / STEPS):
        found = _by_size(tree.dbscan_clustering(float(np.exp(level)), min_cluster_size=fewest))
        large, small = (int(np.count_nonzero(who)) for who in (found == 0, found > 0))
        others = max(0, int(found.max())) if large >= max(LARGE * len(points), small) else 0
        if others != before:
            if steady > STEPS:
                return best
            before, steady, best = others, 0, nothing
        if others > 0:
            steady += 1
            best = found if small > np.count_nonzero(best > 0) else best
    return best if steady > STEPS else nothing


def _by_size(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of clusters, the largest first, and of no cluster -1."""
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    place = np.empty(len(sizes) + 1, dtype=np.int64)
    place[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    place[-1] = -1
    return np.asarray(place[labels])


def _unvouched(clusters: NDArray[np.int64], vouched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return who is in a cluster, not the largest, with less than half as many probes as are in as many rows elsewhere, or none: bool (rows,)."""
    apart = clusters > 0
    for number in range(1, int(clusters.max(initial=0)) + 1):
        own = clusters == number
        if vouched[own].sum() >= max(1.0, own.sum() * vouched.mean() / 2):
            apart[own] = False
    return apart


def nearer(points: NDArray[np.float64], small: NDArray[np.float64], large: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of how many times further points are from one cluster, ``large``, than from another: (rows,)."""
    from sklearn.neighbors import NearestNeighbors

    away = [
        NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(cluster))).fit(cluster).kneighbors(points)[0][:, -1]
        for cluster in (large, small)
    ]
    return np.asarray(np.log(away[0] + LEAST) - np.log(away[1] + LEAST))
