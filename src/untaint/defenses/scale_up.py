"""SCALE-UP: rows of which the model says their label however bright they are made (Guo, Li, Chen, Guo, Sun and Liu, 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from untaint.defenses._perturbed import above_probes_by_deviation, beside, finite, likely, parts, reference
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores

__all__ = ["ScaleUp", "consistencies"]

FIRST, APART = 3, 2  # the factors are 3, 5, 7, ...
FEWEST = 5  # probes of a class, for it to be measured by them


@dataclass(frozen=True, kw_only=True)
class ScaleUp(Detector):
    """How consistently a picture keeps its class when its pixels are multiplied, in deviations above the mean of the probes.

    The undefended model sees each picture times 3, 5, 7 and so on up to ``largest``, cut off at white. The part ``consistency``, 0 to 1, is the share of factors with which
    it says the picture's label. Guo et al. (ICLR 2023) look at what a model is asked, and at what it says of the picture itself; here it is what it was trained on. The scores are those of their data-limited variant, ``by``
    all probes, as the programs that are public have it, or by those of the row's class, as their text has it (then a class with fewer than 5 is measured by all; poison in a class that is
    consistent by itself is not found). Without probes the consistency itself is the score (their data-free variant). A deviation is taken to be at least half a factor. The rule taken
    here is theirs, above 0.5 in both.
    """

    largest: int = 11
    by: Literal["all", "class"] = "all"

    card: ClassVar[Card | None] = Card(
        paper="Guo, Li, Chen, Guo, Sun and Liu: SCALE-UP, ICLR 2023",
        assumes="a model stays sure of a trigger when pixels are multiplied",
        rate="threshold",
        claim="measured by others: patch 95 % found, blend 92, warp 0, with 28, 5 and 5 % of clean pictures",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=0.5"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not FIRST <= self.largest <= 255:
            raise SpecError(f"largest is {self.largest}; give a factor from 3 to 255, such as 11.")
        if self.by not in ("all", "class"):
            raise SpecError(f"by is '{self.by}'; give all or class.")

    def score(self, task: Task) -> Scores:
        """Return by how many deviations each row is more consistent than the probes."""
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
        for label in np.unique(labels[probes]) if self.by == "class" else ():
            own = np.flatnonzero(labels == label)
            vouched = np.flatnonzero(np.isin(own, probes))
            if len(vouched) >= FEWEST:
                values[own] = above_probes_by_deviation(same[own], vouched, least)
        return values

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        count = len(task.examples)
        return [(UNDEFENDED, task.preset.retrain.epochs * count, len(self._factors()) * count)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how consistent it is."""
        return [
            f"the model says its label of {scores.parts['consistency'][row]:.0%} of its brighter copies" for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what SCALE-UP cannot tell."""
        return [
            "Triggers that a brighter picture loses, as faint ones, and those in bright pictures, are not seen. Clean pictures of a class that the model says of whatever is white are as consistent as poison.",
            "A class that is consistent throughout is set aside, poison or not, unless it is measured by its own probes (by=class), which then hide its poison.",
        ]


def consistencies(task: Task, factors: range) -> NDArray[np.float32]:
    """Return the share of factors with which the undefended model says the row's label of its brighter copy: float32 (all rows,), nan for no members.

    Raises InputError if the model's answers are not finite.
    """
    model, store = reference(task)
    rows = task.examples.rows
    values = np.full(task.examples.total, np.nan, dtype=np.float32)
    with task.progress.step("make them brighter", len(rows) * len(factors)) as step, torch.inference_mode():
        for block in parts(rows, task.examples.images.shape):
            images, labels = store.gather(block)
            same = torch.zeros(len(block), device=images.device)
            for factor in factors:
                sure, said = likely(model, (images * factor).clamp_(max=1)).max(dim=1)
                same += torch.where(sure.isfinite(), (said == labels).float(), sure)
                step.advance(len(block))
            values[block] = finite(same / len(factors))
    return values
