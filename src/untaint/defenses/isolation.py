"""Isolation, the first stage of ABL: what a model learns first although its loss is kept from falling (Li Y. et al., NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint.defenses.base import Card, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores
from untaint.training.loop import Watch
from untaint.trajectories import Trajectories

__all__ = ["Isolation"]

STAGE = "isolating"


@dataclass(frozen=True, kw_only=True)
class Isolation(Detector):
    """Minus the loss of a row in a model whose training was held at a mean loss of ``floor``: what is learned all the same is easy, as triggers are.

    The model has the recipe of the clean model, but ``epochs`` and no augmentation. Below the floor, steps go up the loss: ABL's local gradient
    ascent and flooding are the same step. ABL takes 20 epochs and the 1 % of smallest loss, which it then unlearns; Alex et al. (2025) take 10, and remove 15 %,
    the rule taken here.
    """

    floor: float = 0.5
    epochs: int = 10

    card: ClassVar[Card | None] = Card(
        paper="Li Y., Lyu, Koren, Lyu, Li B. and Ma: Anti-backdoor learning, NeurIPS 2021",
        assumes="triggers are learned sooner than clean pictures",
        rate="share",
        claim="1 % isolated is mostly poison, and unlearning it leaves little success",
    )
    stages: ClassVar[tuple[str, ...]] = (STAGE,)
    fixed: ClassVar[tuple[str, ...]] = ("floor", "epochs")
    usual_rule: ClassVar[str | None] = "fraction:share=0.15"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.epochs < 1 or not self.floor > 0:
            raise SpecError(f"epochs is {self.epochs}, floor {self.floor}; give at least 1, and more than 0.")

    def score(self, task: Task) -> Scores:
        """Return minus the logarithm of the loss after the last epoch."""
        recipe = replace(task.preset.retrain, epochs=self.epochs, horizon=None, augment="none", floor=self.floor)
        watch = Watch(rows=task.examples.rows, epochs=[self.epochs - 1])
        folder = task.fit(STAGE, recipe, watch=watch, what="train with its loss held up")
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        for rows, block in Trajectories(folder / "trajectories").blocks("log-ce"):
            values[rows] = -block[:, -1]
        values[~np.isin(np.arange(task.examples.total), task.examples.rows)] = np.nan
        return Scores(values=values, name="isolation", parts={"loss": values})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the one model."""
        return [(STAGE, self.epochs * len(task.examples), len(task.examples))]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how small its loss is."""
        return [
            f"learned early: its loss is {np.exp(-scores.values[row]):.2g} although training was held up"
            for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what isolation cannot tell."""
        return [
            "A share of the pictures is set aside, poisoned or not: without poison, those that are easiest.",
            "Triggers that are learned no sooner than clean pictures are missed, as faint and clean-label ones often are.",
        ]
