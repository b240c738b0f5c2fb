"""SPECTRE: rows that are far out once their class is whitened by a covariance that poison hardly moves (Hayase, Kong, Somani and Oh, 2021)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores

__all__ = ["Spectre", "que_scores", "spectre_scores"]

DIRECTIONS = (2, 4, 8, 16, 32, 64, 128)  # main directions of a class that are tried
ROWS = 10  # at least so many times as many rows as directions; a class with fewer than twice as many is not scored
ROUNDS = 5  # in which rows are left out of the covariance
LEAST = 1e-9  # of the variance in the main direction: what varies less is no direction
OUT = 1.5  # times the rate are left out


@dataclass(frozen=True, kw_only=True)
class Spectre(Detector):
    """QUE score of a row in its class, whitened by a robust estimate of its mean and covariance: 1 on average over clean rows, larger further out.

    The features are the undefended model's. Each class is projected on its main directions, 2 to 128 of them, and whitened. Quantum entropy (QUE) scores
    weigh all directions in which more than expected is left, the most by ``alpha``; how many directions are taken is decided by the largest mean score, over that of as many normal rows in as many directions (whatever is left out, it is the more moved the fewer there are). ``rate``: the share of poison in a
    class that is reckoned with: 1.5 times as many rows, those with the largest scores, are left out of the estimate, a fifth of them at a time (the paper's estimator is that of
    Diakonikolas et al., 2017). The paper, which knows the rate, sets 1.5 times as many aside in the one class with the largest scores; the rule taken here is that of `spectral`,
    15 % of each class.
    """

    alpha: float = 4.0
    rate: float = 0.1

    card: ClassVar[Card | None] = Card(
        paper="Hayase, Kong, Somani and Oh: SPECTRE, ICML 2021",
        assumes="poison is further out than clean pictures once a class is whitened",
        rate="share",
        several="in part",
        why="directions weigh the more the further a class stretches along them, so that of several attackers on it the strongest decides",
        claim="poison found where it is too little for spectral signatures",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "fraction:share=0.15,per=class"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.alpha < 100:
            raise SpecError(f"alpha is {self.alpha}; give a number from 0 to 100, such as 4.")
        if not 0 < self.rate <= 0.5:
            raise SpecError(f"rate is {self.rate}; give a share of a class above 0 and at most 0.5.")

    def score(self, task: Task) -> Scores:
        """Return the scores, from the undefended model's features; 0 in classes with fewer than 20 rows."""
        features, labels, members = task.features(), task.examples.labels, task.examples.rows
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        for label in np.unique(labels[members]):
            own = members[labels[members] == label]
            values[own] = spectre_scores(features[own], OUT * self.rate, self.alpha)
        return Scores(values=values, name="spectre", parts={"que": values})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        return [(UNDEFENDED, task.preset.retrain.epochs * len(task.examples), len(task.examples))]

    def limits(self) -> list[str]:
        """Return what SPECTRE cannot tell."""
        return [
            "A share of every class is set aside, poisoned or not, unless another rule is asked for. Classes with fewer than 20 pictures are not looked at. Poison that is most of its class is taken for the class."
        ]


def spectre_scores(features: NDArray[np.float32], left_out: float, alpha: float) -> NDArray[np.float64]:
    """Return the QUE scores of the rows of one class, in as many of its main directions as make them largest on average: (rows,).

    ``left_out``: the share of rows that the covariance is estimated without; at most half.
    """
    points = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    strengths, directions = np.linalg.eigh(points.T @ points)
    there = np.flatnonzero(strengths > LEAST * strengths.max(initial=np.finfo(float).tiny))[::-1]
    points = points @ directions[:, there[: DIRECTIONS[-1]]]
    best, most = np.zeros(len(points)), 0.0
    for count in DIRECTIONS:
        if min(count, points.shape[1]) == 0 or len(points) < ROWS * count:
            break
        found = _robust(points[:, :count], min(left_out, 0.5), alpha)
        usual = _usual(len(points), min(count, points.shape[1]), min(left_out, 0.5), alpha)
        if found.mean() > most * usual:
            best, most = found, float(found.mean() / usual)
        if count >= points.shape[1]:
            break
    return best


def que_scores(points: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Return quantum entropy scores of whitened rows: ``x' Q x / tr Q`` with ``Q = exp(alpha (C - I) / (|C| - 1))``, C the rows' second moments."""
    strengths, directions = np.linalg.eigh(points.T @ points / len(points))
    beyond = strengths - 1
    weights = np.exp(alpha * (beyond - beyond[-1]) / max(float(beyond[-1]), LEAST))
    return np.asarray((points @ directions) ** 2 @ (weights / weights.sum()))


def _robust(points: NDArray[np.float64], left_out: float, alpha: float) -> NDArray[np.float64]:
    """Return the scores of all rows, whitened by the mean and the covariance of those that stay when the furthest are left out, a part at a time."""
    kept = np.arange(len(points))
    for each in range(1, ROUNDS + 1):
        scores = que_scores(_whitened(points[kept], points[kept]), alpha)
        staying = len(points) - round(left_out * len(points) * each / ROUNDS)
        kept = kept[np.argsort(scores, kind="stable")[:staying]]
    return que_scores(_whitened(points, points[kept]), alpha)


@functools.lru_cache(maxsize=256)
def _usual(rows: int, width: int, left_out: float, alpha: float) -> float:
    """Return the mean score of as many normal rows: classes of one size have it in common."""
    points = np.random.default_rng(0).normal(size=(rows, width))
    return float(_robust(points, left_out, alpha).mean())


def _whitened(points: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    about = by - by.mean(axis=0)
    strengths, directions = np.linalg.eigh(about.T @ about / len(by))
    strengths = np.maximum(strengths, LEAST * max(float(strengths[-1]), np.finfo(float).tiny))
    return np.asarray((points - by.mean(axis=0)) @ (directions / np.sqrt(strengths)))
