"""Triggers that models have learned, whether pixels show them or not: a warp, a reflection, what differs from picture to picture.

Poison with one trigger lies together in the watchers' features, and its label comes out even of the watcher that did not train on the row: the other
poison taught it. The witness saw no poison and says what the pictures show, which is now this class and now that. A hard clean picture is also known
to watchers alone; but those like it are hard for the same reason, and the witness takes them for the same one or two classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from untaint.defenses._view import View

__all__ = ["learned"]

MANY = 3.5  # classes, for which the witness takes a row's company, in effect
HALF = 0.6  # of a row's company the label is learned, at the core of a trigger
MOST = 0.7  # and among those who have it
SOME = 0.4  # fewer than this: somebody else
BETWEEN = 0.25, 0.65  # where hard pictures lie, by degrees; of a trigger few are there
TIMES = 2.0  # as many may be between, at most, as have it
FEWEST = 8  # rows at the core of a trigger
CLASSES = 4.0  # for which the witness must take those who have it, in effect; more where it says more of all rows
STEPS = 2  # from a core row to its company and theirs


def learned(
    views: Sequence[View], witness: NDArray[np.int32], trusted: NDArray[np.bool_], labels: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return how surely each row has a trigger that the watchers of a view learned, and the witness did not: float32 (all rows,), 0 to 1.

    ``witness``: the class that it says of each row. ``trusted``: on which rows it was trained.
    """
    result = np.zeros(len(labels), dtype=np.float32)
    said = np.bincount(witness[witness >= 0], minlength=int(labels.max()) + 1).astype(float)
    for view in views:
        taught = (view.out_of_fold.predicted() == labels) & (witness != labels) & (witness >= 0) & ~trusted
        for members, near in view.near:
            others = np.delete(said, labels[members[0]])
            own = _of_class(members, near, taught, witness, max(CLASSES, float(_effective(others)) / 2))
            result[members] = np.maximum(result[members], own)
    return result


def _of_class(
    members: NDArray[np.int64],
    near: NDArray[np.int64],
    taught: NDArray[np.bool_],
    witness: NDArray[np.int32],
    classes: float,
) -> NDArray[np.float32]:
    """Return how surely each member of a class has a learned trigger, float32 (members,); all 0 if there is none."""
    nobody = np.zeros(len(members), dtype=np.float32)
    if near.shape[1] == 0:
        return nobody
    share = taught[near].mean(1)
    core = (share >= HALF) & (_different(np.where(taught[near], witness[near], -1)) >= MANY)
    having = core | (share >= MOST)
    between = np.count_nonzero((share >= BETWEEN[0]) & (share < BETWEEN[1]))
    if np.count_nonzero(core) < FEWEST or between > TIMES * np.count_nonzero(having):
        return nobody
    places, reached = np.searchsorted(members, near), core
    for _ in range(STEPS):
        reached = reached | (having & reached[places].any(1))
    answers = witness[members[reached & taught[members]]]
    if _effective(np.bincount(answers).astype(float)) < classes:
        return nobody
    beside = (share >= SOME) & reached[places].any(1)
    nearly = np.square((share - SOME).clip(0) / (MOST - SOME))
    return np.where(reached, 1, np.where(beside & ~having, nearly, 0)).astype(np.float32)


def _different(answers: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the effective number of classes in each line of answers, of which -1 is none: float64 (lines,)."""
    known = answers >= 0
    same = (answers[:, :, None] == answers[:, None, :]) & known[:, :, None]
    return np.asarray(np.square(known.sum(1)) / np.maximum(1, same.sum((1, 2))))


def _effective(counts: NDArray[np.float64]) -> np.float64:
    """Return the effective number of classes: that of equally frequent ones that would differ as often."""
    return np.float64(np.square(counts.sum()) / max(1.0, np.square(counts).sum()))
