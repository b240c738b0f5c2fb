"""Random: rows removed by lot, the control that every removal is to be compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from untaint import rng
from untaint.defenses.base import Card, Detector, Task
from untaint.scores import Scores

__all__ = ["Random"]


@dataclass(frozen=True, kw_only=True)
class Random(Detector):
    """Scores drawn by lot: how much is won by removing as many rows without looking at them.

    ``draw``: another number draws others.
    """

    draw: int = 0

    card: ClassVar[Card | None] = Card(
        paper="no paper: the control",
        assumes="nothing",
        rate="share",
        several="no",
        why="it does nothing against any",
    )
    usual_rule: ClassVar[str | None] = "fraction:share=0.1"

    def score(self, task: Task) -> Scores:
        """Return a number in [0, 1) for each row."""
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        rows = task.examples.rows
        values[rows] = rng.uniform(task.seed, f"defenses/random/{self.draw}", 0, rows)[:, 0]
        return Scores(values=values, name="random")

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return nothing: no model is trained in order to score."""
        return []

    def limits(self) -> list[str]:
        """Return what a lottery cannot tell."""
        return [
            "The rows were drawn by lot. Nothing here says anything about a picture: it is a control for other detectors."
        ]
