"""Pattern: pictures of a class that have in common what hardly any other picture has, by their pixels alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint.defenses._pattern import DIRECTIONS, SIDE, patterns
from untaint.defenses.base import Card, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores

__all__ = ["Pattern"]


@dataclass(frozen=True, kw_only=True)
class Pattern(Detector):
    """How many times as many pictures of a class share a pattern as are to be expected, as a logarithm; no model is trained.

    Finds what is laid over pictures or painted on them at a fixed place, faint things too, in seconds. ``directions``: how many
    are looked along in each class. ``side``: larger pictures are averaged down to so many pixels a side. A score of 2.3 says that a tenth
    as many were to be expected, by the class's other tail, by other classes, and by its probes: the rule taken here.
    """

    directions: int = DIRECTIONS
    side: int = SIDE

    card: ClassVar[Card | None] = Card(
        paper="this project's own",
        assumes="a trigger is at a fixed place, so that pixels of poison have in common what hardly any other picture has",
    )
    version: ClassVar[int] = 4
    usual_rule: ClassVar[str | None] = "above:score=2.3"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.directions < 1 or self.side < 2:
            raise SpecError(f"directions is {self.directions} and side {self.side}; give at least 1 and 2.")

    def score(self, task: Task) -> Scores:
        """Return the excess of every row's most telling tail."""
        (told,) = patterns(task, [task.probes], self.directions, self.side)
        found = told.figures
        return Scores(values=found["excess"], name="pattern", parts=found)

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return nothing: no model is trained in order to score."""
        return []

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how far out it is, and in what company."""
        parts = scores.parts
        return [
            f"{parts['deviations'][row]:.1f} deviations along a pattern, as far as {max(1, parts['alike'][row]):.0f} pictures of its class lie "
            f"where {parts['expected'][row]:.0f} would be usual"
            if scores.values[row] > 0
            else "no pattern stands out"
            for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what patterns cannot tell."""
        return [
            "Only what lies at the same place in all pictures of one class is a pattern: a warp, a sticker that is moved about, a trigger made for "
            "each picture or one for all classes alike is none.",
            "Clean pictures of one class that are alike (tracks of one thing, one photographer) share patterns too. Look before you delete.",
        ]
