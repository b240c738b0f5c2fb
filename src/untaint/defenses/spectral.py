"""Spectral signatures: the rows furthest along their class's main direction (Tran, Li and Madry, 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.scores import Scores

__all__ = ["Spectral", "spectral_scores"]


@dataclass(frozen=True, kw_only=True)
class Spectral(Detector):
    """Squared projection of a row's features on the direction in which its class varies most.

    The features are the undefended model's, centred within the class. Poison that is a minority of
    its class and shares a trigger is thought to be what the class varies by most. The paper removes
    1.5 times the poison that is expected; Alex et al. (2025) 15 % of each class, the rule taken here.
    """

    card: ClassVar[Card | None] = Card(
        paper="Tran, Li J. and Madry: Spectral signatures in backdoor attacks, NeurIPS 2018",
        assumes="poison of a class lies along the direction in which the class varies most",
        rate="share",
        several="in part",
        why="a class is seen along one direction, so that of several attackers on it only the strongest shows",
        claim="nearly all poison of 5 to 10 % of a class is among the 15 % set aside; measured by others at 10 %: 44 % found, with 46 % of clean pictures",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "fraction:share=0.15,per=class"

    def score(self, task: Task) -> Scores:
        """Return the squared projections, from the undefended model's features."""
        features, labels = task.features(), task.examples.labels
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        for label in np.unique(labels[task.examples.rows]):
            members = task.examples.rows[labels[task.examples.rows] == label]
            values[members] = spectral_scores(features[members])
        return Scores(values=values, name="spectral", parts={"projection": values})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        return [(UNDEFENDED, task.preset.retrain.epochs * len(task.examples), len(task.examples))]

    def limits(self) -> list[str]:
        """Return what spectral signatures cannot tell."""
        return [
            "A share of every class is set aside, poisoned or not. Of several attacks on one class only the strongest shows."
        ]


def spectral_scores(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the squared projection of each centred row on the first right singular vector: (rows,).

    ``features``: (rows, width) of one class. From the smaller of the two Gram matrices, in double precision.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    rows, width = centred.shape
    if rows < width:
        strengths, directions = np.linalg.eigh(centred @ centred.T)
        return np.asarray(strengths[-1] * directions[:, -1] ** 2)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return np.asarray((centred @ directions[:, -1]) ** 2)
