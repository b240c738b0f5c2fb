"""SCALE-UP: rows of which the model says the same when they are made brighter and brighter (Guo, Li, Chen, Guo, Sun and Liu, 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from untaint.defenses._perturbed import above_probes_by_deviation, beside, finite, parts, reference
from untaint.defenses.base import UNDEFENDED, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores

__all__ = ["ScaleUp", "consistencies"]

FIRST, APART = 3, 2  # the factors are 3, 5, 7, ...
FEWEST = 5  # probes of a class, for it to be measured by them


@dataclass(frozen=True, kw_only=True)
class ScaleUp(Detector):
    """How consistently a picture keeps its class when its pixels are multiplied, in deviations above the mean of the class's probes.

    The undefended model sees each picture times 3, 5, 7 and so on up to ``largest``, cut off at white. The part ``consistency``, 0 to 1, is the share of factors with which
    it says what it says of the picture itself. Guo et al. (ICLR 2023) look at what a model is asked; here it is what it was trained on. The scores are those of their data-limited variant: classes with fewer than 5 probes are
    measured by all probes, and without any the consistency itself is the score (their data-free one). A deviation is taken to be at least half a factor. The rule taken
    here is the paper's, above 0.5 in both.
    """

    largest: int = 11

    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=0.5"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not FIRST <= self.largest <= 255:
            raise SpecError(f"largest is {self.largest}; give a factor from 3 to 255, such as 11.")

    def score(self, task: Task) -> Scores:
        """Return by how many deviations each row is more consistent than its class's probes."""
        same = task.once(beside(task, f"scale-up-{self.largest}"), lambda: consistencies(task, self._factors()))
        values = self._measured(same, task).astype(np.float32)
        return Scores(values=values, name="scale-up", parts={"consistency": same})

    def _factors(self) -> range:
        return range(FIRST, self.largest + 1, APART)

    def _measured(self, same: NDArray[np.float32], task: Task) -> NDArray[np.floating]:
        labels, probes, least = task.examples.labels, task.probes, 0.5 / len(self._factors())
        if len(probes) < 2:
            return same
        values = above_probes_by_deviation(same, probes, least)
        for label in np.unique(labels[probes]):
            own = np.flatnonzero(labels == label)
            vouched = np.flatnonzero(np.isin(own, probes))
            if len(vouched) >= FEWEST:
                values[own] = above_probes_by_deviation(same[own], vouched, least)
        return values

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        count = len(task.examples)
        return [(UNDEFENDED, task.preset.retrain.epochs * count, (1 + len(self._factors())) * count)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how consistent it is."""
        return [
            f"the model says the same of {scores.parts['consistency'][row]:.0%} of its brighter copies" for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what SCALE-UP cannot tell."""
        return [
            "Triggers that a brighter picture loses, as faint ones, and those in bright pictures, are not seen. Clean pictures of a class that the model says of whatever is white are as consistent as poison, and so is most of what is dark and plain.",
            "The probes of a class say what is usual in it; without any, a class that is consistent throughout is set aside.",
        ]


def consistencies(task: Task, factors: range) -> NDArray[np.float32]:
    """Return the share of factors with which the undefended model says of a brighter copy what it says of the row: float32 (all rows,), nan for no members."""
    model, store = reference(task)
    rows = task.examples.rows
    values = np.full(task.examples.total, np.nan, dtype=np.float32)
    with task.progress.step("make them brighter", len(rows) * len(factors)) as step, torch.inference_mode():
        for block in parts(rows, task.examples.images.shape):
            images = store.gather(block)[0]
            logits = model(images)
            finite(logits.float())
            said, same = logits.argmax(dim=1), torch.zeros(len(block), device=images.device)
            for factor in factors:
                same += model((images * factor).clamp_(max=1)).argmax(dim=1) == said
                step.advance(len(block))
            values[block] = (same / len(factors)).cpu().numpy()
    return values
