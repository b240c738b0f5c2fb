"""Oracle: sets aside exactly what is poisoned, because it was told; the most that any removal can win."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint.defenses.base import Card, Detector, Task
from untaint.errors import SpecError
from untaint.recipe import Preset
from untaint.scores import Scores

__all__ = ["Oracle"]


@dataclass(frozen=True, kw_only=True)
class Oracle(Detector):
    """Knows who is poisoned: 1 for poison, 0 for all else. Only an experiment, which holds the ledger, can tell it."""

    poisoned: NDArray[np.int64] | None = field(init=False, repr=False, compare=False, default=None)

    card: ClassVar[Card | None] = Card(
        paper="no paper: the most that any removal can win",
        assumes="it was told who is poisoned, which only an experiment can",
    )
    usual_rule: ClassVar[str | None] = "above:score=0.5"

    def told(self, poisoned: NDArray[np.int64]) -> Oracle:
        """Return an oracle that knows these rows to be poisoned."""
        knowing = dataclasses.replace(self)
        object.__setattr__(knowing, "poisoned", np.unique(poisoned))
        return knowing

    def require(self, preset: Preset) -> None:
        """Refuse to begin without the truth."""
        if self.poisoned is None:
            raise SpecError(
                "oracle must be told who is poisoned, which only an experiment that made the poison can do. "
                "Give another detector: see `untaint list defenses`."
            )

    def score(self, task: Task) -> Scores:
        """Return 1 for each poisoned row and 0 for each other."""
        self.require(task.preset)
        poisoned: NDArray[np.int64] = np.empty(0, dtype=np.int64) if self.poisoned is None else self.poisoned
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        values[task.examples.rows] = np.isin(task.examples.rows, poisoned)
        return Scores(values=values, name="oracle")

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return nothing: no model is trained in order to score."""
        return []
