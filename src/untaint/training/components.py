"""Independent components of features, and those among them that only a few pictures of one class have: mathematics on arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from untaint import rng

__all__ = ["Independent", "Rare", "independent", "rare", "two_groups"]

MOST_ROUNDS = 100  # of the fixed-point iteration, for each component
STILL = 1e-3
ASIDE = 0.01  # by which a row is moved before it is begun from: none is at the middle, or where another is
FEWER, MORE = 0.75, 1.1  # times as much company of the same label: clearly fewer, clearly more


class Independent(NamedTuple):
    """``values``: (rows, k), each of variance 1, mean 0 and a longer tail to the right; ``reading``: (k, width), so that values are ``(features - mean) @ reading.T``."""

    values: NDArray[np.float32]
    reading: NDArray[np.float32]
    mean: NDArray[np.float32]


class Rare(NamedTuple):
    """A component that some pictures of a class have and the others have not.

    ``component``: which; ``label``: of the class; ``apart``: how far the two groups of the class are apart, in deviations within them; ``cut``: between them; ``rows``: how
    many of the class are above it, and ``others``: of all other classes.
    """

    component: int
    label: int
    apart: float
    cut: float
    rows: int
    others: int


def independent(features: NDArray[np.float32], k: int, seed: int = 0) -> Independent:
    """Return independent components in the ``k`` strongest directions of (rows, width): fewer where the rank is lower.

    FastICA (Hyvarinen, 1999) with a contrast that far outliers cannot dominate, one component after the other, each from a row drawn by the seed: all at once from
    anywhere, it may go round for ever beside the strongest of them. What few rows have and what says nothing of the rest of a row comes out as one component, however weak it is beside what most rows differ by.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.extmath import randomized_svd

    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = features - mean
    most = max(1, min(k, *centred.shape))
    _, lengths, along = randomized_svd(centred, most, n_iter=4, random_state=seed % 2**32)
    there = lengths > lengths.max(initial=0) * 1e-5
    if not there.any():
        return Independent(np.zeros((len(features), 0), np.float32), np.zeros((0, features.shape[1]), np.float32), mean)
    white = along[there] / lengths[there, None] * len(features) ** 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last rounds change nothing that matters
        points = (centred @ white.T).astype(np.float64)
        drawn = rng.choose(seed, "components", np.arange(len(points)), points.shape[1])
        begin = points[drawn] + ASIDE * rng.uniform(seed, "components/aside", 0, drawn, len(drawn))
        found = FastICA(algorithm="deflation", whiten=False, fun="exp", max_iter=MOST_ROUNDS, tol=STILL, w_init=begin)
        values = found.fit_transform(points)
    reading = found.components_ @ white
    scale = np.sign((values**3).mean(axis=0)) / np.maximum(values.std(axis=0), 1e-12)
    scale[scale == 0] = 1
    return Independent((values * scale).astype(np.float32), (reading * scale[:, None]).astype(np.float32), mean)


def two_groups(values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return for each column of (rows, columns): how far apart the two groups are that it falls into best, the cut between them, and how many are above it.

    The cut is Otsu's (1979), that of the least variance within both groups; apart is measured in standard deviations within. A normal column has 2.65, a uniform one 3.46: more is two peaks.
    """
    rows = len(values)
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=0)
    sums = np.cumsum(ordered, axis=0)
    low = np.arange(1, rows)[:, None]
    between = sums[:-1] / low - (sums[-1] - sums[:-1]) / (rows - low)
    explained = low * (rows - low) * between**2 / rows
    best = explained.argmax(axis=0)
    columns = np.arange(values.shape[1])
    total = np.square(ordered - sums[-1] / rows).sum(axis=0)
    within = np.sqrt(np.maximum(total - explained[best, columns], 1e-12 * np.maximum(total, 1e-30)) / rows)
    return (
        np.abs(between[best, columns]) / within,
        (ordered[best, columns] + ordered[best + 1, columns]) / 2,
        rows - best - 1,
    )


def rare(
    values: NDArray[np.float32],
    labels: NDArray[np.int64],
    apart: float,
    few: int,
    company: Callable[[NDArray[np.int64]], NDArray[np.float64]],
) -> list[Rare]:
    """Return the components that part a class in two groups at least ``apart``, where no more of all other classes are above the cut than of this one.

    Each for the class that it parts best, those furthest apart first. At least ``few`` rows are above the cut; classes of fewer than twice as many are not looked at.
    A kind of picture parts its class too, and where poison is much of a class, so does the class's own mark. ``company`` says of rows how many of the pictures that they look most like
    have their label: where clearly more do for those above the cut than for the rest of the class, these are natural, and where not clearly fewer do, they have to be one deviation further apart.
    """
    best: dict[int, Rare] = {}
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) < 2 * few or not values.shape[1]:
            continue
        gaps, cuts, above = two_groups(values[own])
        for number in np.flatnonzero((gaps >= apart) & (above >= few)):
            has = values[:, number] > cuts[number]
            others = int(np.count_nonzero(has)) - int(above[number])
            known = best.get(int(number))
            if others > above[number] or (known is not None and known.apart >= gaps[number]):
                continue
            near = company(own)
            if gaps[number] >= apart + _more(near[has[own]].mean(), near[~has[own]].mean()):
                found = (int(number), int(label), float(gaps[number]), float(cuts[number]), int(above[number]), others)
                best[int(number)] = Rare(*found)
    return sorted(best.values(), key=lambda one: -one.apart)


def _more(above: float, below: float) -> float:
    """How many deviations further apart two groups have to be, by the company of either."""
    if above < FEWER * below:
        return 0.0
    return 1.0 if above <= MORE * below else np.inf
