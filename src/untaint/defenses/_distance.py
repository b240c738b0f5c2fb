"""How far each example's trajectory lies from those of trusted examples: the mathematics of BaDLoss.

Alex, Siddiqui, Sanyal, Krueger, "Protecting against simultaneous data poisoning attacks" (ICLR
2025): an example's score is the mean Euclidean distance from its loss trajectory to the 50 nearest
of the probes' trajectories. The paper then takes log(0.01 + d), scales to [0, 1] and ranks, none of
which changes the order; the distance itself is returned here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from untaint import rng
from untaint.errors import InputError, ProbeError, did_you_mean
from untaint.progress import Progress, Silent
from untaint.trajectories import Observable, Trajectories

__all__ = ["Centre", "Standardise", "class_medians", "distances", "epoch_filter", "mean_losses"]

Centre = Literal["none", "class"]
Standardise = Literal["none", "probes"]

READ = 16_384  # rows read at a time by one thread: 2 MB an observable at 30 epochs
MULTIPLY = 1_024  # rows multiplied at a time: their 250 squared distances stay in the second-level cache
THREADS = min(os.cpu_count() or 1, 8)
MEDIAN_ROWS = 4_000_000  # class medians are exact up to so many rows, then taken over a sample of this size


def mean_losses(trajectories: Trajectories, observable: Observable = "ce") -> NDArray[np.float64]:
    """Return the mean over all rows seen, per epoch: float64 (epochs,), nan where no row was seen."""
    total = np.zeros(trajectories.epochs)
    seen = np.zeros(trajectories.epochs, dtype=np.int64)
    for _, table in trajectories.blocks(observable, size=READ):
        total += np.nansum(table, axis=0, dtype=np.float64)
        seen += np.count_nonzero(~np.isnan(table), axis=0)
    means = np.full(len(total), np.nan)
    np.divide(total, seen, out=means, where=seen > 0)
    return means


def epoch_filter(mean_losses: Sequence[float] | NDArray[np.float64], factor: float = 2.0, window: int = 3) -> list[int]:
    """Return the epochs to compare: those in which the loss did not jump.

    The first ``window`` epochs are always kept, a later one only if its mean loss is below
    ``factor`` times the mean of the last ``window`` kept ones (BaDLoss, footnote on loss spikes).
    An epoch whose mean is not finite (nobody was seen, or the loss overflowed) is never kept.
    """
    if window < 1:
        raise InputError(f"window is {window}; give at least 1.")
    kept: list[int] = []
    for epoch, loss in enumerate(mean_losses):
        recent = [float(mean_losses[index]) for index in kept[-window:]]
        if np.isfinite(loss) and (len(recent) < window or loss < factor * np.mean(recent)):
            kept.append(epoch)
    return kept


def distances(
    trajectories: Trajectories,
    probes: NDArray[np.int64],
    *,
    observable: Observable = "ce",
    epochs: Sequence[int] | None = None,
    k: int = 50,
    centre: Centre = "none",
    labels: NDArray[np.int64] | None = None,
    standardise: Standardise = "none",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return each row's mean Euclidean distance to the k nearest probes' trajectories: float32 (rows,).

    ``probes``: row numbers of the trusted examples; each is scored without itself among its
    neighbours. ``epochs``: which to compare (default all; see ``epoch_filter``). ``k`` is lowered to
    one less than the number of probes where there are fewer. ``centre="class"`` first takes away
    the median over the example's labelled class, per epoch (``class_medians``; needs ``labels``,
    int64 (rows,)). ``standardise="probes"`` then divides by the probes' standard deviation, per
    epoch (their mean, taken away too, changes no distance); an epoch in which all probes agree is
    left as it is.

    A row that was not seen in one of the epochs gets nan; such a probe serves as nobody's neighbour.
    The result is as exact as float32 trajectories allow, also for near-duplicates. Memory beyond
    the result does not grow with the number of rows, except for class medians (see there).

    Raises:
        ProbeError: fewer than two probes were seen in all epochs, or a probe is no row.
        InputError: another setting cannot be used.
    """
    chosen = list(range(trajectories.epochs) if epochs is None else epochs)
    _check(trajectories, chosen, k, centre, labels, standardise)
    trusted = np.unique(np.asarray(probes, dtype=np.int64))
    if trusted.size and (trusted[0] < 0 or trusted[-1] >= trajectories.rows):
        wrong = trusted[0] if trusted[0] < 0 else trusted[-1]
        raise ProbeError(f"probe row {wrong} is not among the {trajectories.rows} rows recorded. Give rows from 0.")
    view = _View(trajectories, observable, chosen)
    if centre == "class" and labels is not None:
        view = _View(trajectories, observable, chosen, labels, class_medians(trajectories, observable, chosen, labels))
    of_probes = view.read(trusted)
    usable = np.logical_not(np.isnan(of_probes).any(axis=1))
    trusted, of_probes = trusted[usable], of_probes[usable]
    if len(trusted) < 2:
        raise ProbeError(
            f"{len(trusted)} of {len(usable)} probes were seen in all {len(chosen)} epochs compared. Give at least 2, better 250."
        )
    neighbours = _Neighbours.of(of_probes, min(k, len(trusted) - 1), standardise)
    result = _all_rows(view, neighbours, progress or Silent())
    result[trusted] = neighbours.without_itself()
    return result


def class_medians(
    trajectories: Trajectories, observable: Observable, epochs: Sequence[int], labels: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the median per labelled class and epoch: float32 (classes, epochs), nan for a class never seen.

    One epoch a thread is held at a time. Exact up to four million rows; beyond, a class with more than its
    even share of four million rows is represented by a random sample of about that share (the
    sampling error of the median is then below 0.2 % of the class's spread for up to ten classes).
    """
    counts = np.bincount(labels)
    share = np.ones(len(counts))
    if len(labels) > MEDIAN_ROWS:
        share = np.minimum(1.0, MEDIAN_ROWS / np.count_nonzero(counts) / np.maximum(counts, 1))
    parts = []
    for start in range(0, len(labels), READ):
        rows = np.arange(start, min(start + READ, len(labels)))
        sampled = (
            slice(None) if share.min() == 1 else rng.uniform(0, "class median", 0, rows)[:, 0] < share[labels[rows]]
        )
        parts.append(rows[sampled])
    rows = np.concatenate(parts)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    ends = np.cumsum(np.bincount(labels[rows], minlength=len(counts)))[:-1]

    def of_epoch(epoch: int) -> list[float]:
        values = trajectories.block(observable, rows, [epoch])[:, 0]
        seen = (members[~np.isnan(members)] for members in np.split(values, ends))
        return [float(np.median(members)) if members.size else np.nan for members in seen]

    with ThreadPoolExecutor(THREADS) as pool:
        return np.array(list(pool.map(of_epoch, epochs)), dtype=np.float32).T.copy()


def _check(
    trajectories: Trajectories,
    epochs: list[int],
    k: int,
    centre: str,
    labels: NDArray[np.int64] | None,
    standardise: str,
) -> None:
    if not epochs:
        raise InputError("no epochs to compare are left. Record more epochs, or name some.")
    if min(epochs) < 0 or max(epochs) >= trajectories.epochs:
        raise InputError(f"epochs {epochs} were asked for, but {trajectories.epochs} were recorded. Count from 0.")
    if k < 1:
        raise InputError(f"k is {k}; give at least 1 neighbour.")
    for what, value, known in (("centre", centre, ("none", "class")), ("standardise", standardise, ("none", "probes"))):
        if value not in known:
            raise InputError(f"{what} is '{value}', which is not known.{did_you_mean(value, known)}")
    if centre == "class" and labels is None:
        raise InputError("centre='class' needs labels, but none were given. Give one label per row.")
    if centre == "class" and labels is not None and labels.shape != (trajectories.rows,):
        raise InputError(f"labels have the shape {labels.shape} for {trajectories.rows} rows. Give one label per row.")


@dataclass(frozen=True)
class _View:
    """Trajectories of the chosen epochs, minus their class medians if there are any."""

    trajectories: Trajectories
    observable: Observable
    epochs: list[int]
    labels: NDArray[np.int64] | None = None
    medians: NDArray[np.float32] | None = None

    def read(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 (rows, epochs)."""
        table = self.trajectories.block(self.observable, rows, self.epochs)
        if self.labels is not None and self.medians is not None:
            table -= self.medians[self.labels[rows]]
        return table


@dataclass(frozen=True)
class _Neighbours:
    """The probes' trajectories, ready to be compared with others.

    Squared distances are taken as |a|^2 + |b|^2 - 2ab by one matrix product, in float64 and with
    the probes' mean as the origin: the error of a distance is then about 1e-8 of the trajectory's
    length, less than float32 trajectories carry themselves. In float32 it would be 1e-3 of it.
    """

    origin: NDArray[np.float64]  # (epochs,)
    factor: NDArray[np.float64]  # (epochs,): one over the probes' standard deviation, or one
    points: NDArray[np.float64]  # (probes, epochs): b, origin taken away and scaled
    right: NDArray[np.float64]  # (epochs + 2, probes): -2b, 1, |b|^2, to be multiplied with a, |a|^2, 1
    k: int

    @classmethod
    def of(cls, table: NDArray[np.float32], k: int, standardise: Standardise) -> _Neighbours:
        """Prepare the probes' trajectories, float32 (probes, epochs)."""
        exact = table.astype(np.float64)
        origin, factor = exact.mean(axis=0), np.ones(exact.shape[1])
        if standardise == "probes":
            spread = exact.std(axis=0)
            factor = 1 / np.where(spread > 0, spread, 1.0)
        points = (exact - origin) * factor
        right = np.concatenate([-2 * points.T, np.ones((1, len(points))), (points**2).sum(axis=1)[None]])
        return cls(origin, factor, points, right, k)

    def mean_distance(self, table: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean distance to the k nearest probes, of float32 (rows, epochs): float32 (rows,)."""
        epochs, probes = len(self.origin), len(self.points)
        result = np.empty(len(table), dtype=np.float32)
        left = np.ones((MULTIPLY, epochs + 2))  # a, |a|^2, 1
        squared = np.empty((MULTIPLY, probes))
        for start in range(0, len(table), MULTIPLY):
            part = table[start : start + MULTIPLY]
            count = len(part)
            points = left[:count, :epochs]
            np.subtract(part, self.origin, out=points)
            points *= self.factor
            np.einsum("re,re->r", points, points, out=left[:count, epochs])
            np.matmul(left[:count], self.right, out=squared[:count])
            result[start : start + count] = self._nearest(squared[:count])
        return result

    def without_itself(self) -> NDArray[np.float32]:
        """Return each probe's mean distance to the k nearest others: float32 (probes,)."""
        result = np.empty(len(self.points), dtype=np.float32)
        for index, point in enumerate(self.points):
            squared = ((self.points - point) ** 2).sum(axis=1)
            squared[index] = np.inf
            result[index] = self._nearest(squared[None])[0]
        return result

    def _nearest(self, squared: NDArray[np.float64]) -> NDArray[np.float32]:
        near = np.empty(squared.shape, dtype=np.float32)
        np.maximum(squared, 0, out=near, casting="same_kind")
        near.partition(self.k - 1, axis=1)
        means: NDArray[np.float32] = np.sqrt(near[:, : self.k]).mean(axis=1)
        return means


def _all_rows(view: _View, neighbours: _Neighbours, progress: Progress) -> NDArray[np.float32]:
    total = view.trajectories.rows
    result = np.empty(total, dtype=np.float32)

    def fill(start: int) -> int:
        rows = slice(start, min(start + READ, total))
        result[rows] = neighbours.mean_distance(view.read(rows))
        return rows.stop - rows.start

    # numpy releases the interpreter in all the long steps, so threads share the work; the matrix
    # products are too small to be shared once more, within each thread
    with (
        threadpool_limits(1, "blas"),
        ThreadPoolExecutor(THREADS) as pool,
        progress.step("distances", total) as step,
    ):
        for count in pool.map(fill, range(0, total, READ)):
            step.advance(count)
    return result
