"""Label errors: rows whose label a model that did not train on them finds wrong (Northcutt, Jiang and Chuang, 2021)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from untaint.defenses.base import Card, Detector, Task
from untaint.errors import SpecError
from untaint.recipe import Preset
from untaint.scores import Scores
from untaint.training.loop import predict

__all__ = ["LabelErrors"]

ISSUE = 1.0  # added to the score of what confident learning calls a label error


@dataclass(frozen=True, kw_only=True)
class LabelErrors(Detector):
    """Confident learning by the library cleanlab, on out-of-fold predictions; it looks for noise, not for triggers.

    Two models are trained, each on a random half, by the recipe of the clean model, and each asked
    about the other half. The score is one minus cleanlab's label quality, and one more where
    cleanlab calls the label an error; the rule taken here sets those aside. ``filter_by``:
    cleanlab's way of telling errors.
    """

    filter_by: Literal["prune_by_noise_rate", "prune_by_class", "both", "confident_learning"] = "prune_by_noise_rate"

    card: ClassVar[Card | None] = Card(
        paper="Northcutt, Jiang and Chuang: Confident learning, JAIR 2021",
        assumes="poison has a wrong label, which models that did not train on it do not give",
        claim="wrong labels found; of triggers it says nothing",
    )
    stages: ClassVar[tuple[str, ...]] = ("half-a", "half-b")
    usual_rule: ClassVar[str | None] = "above:score=1"

    def require(self, preset: Preset) -> None:
        """Refuse to begin without cleanlab."""
        if importlib.util.find_spec("cleanlab") is None:
            raise SpecError("label-errors needs the library cleanlab. Install it: pip install 'untaint[compare]'.")

    def score(self, task: Task) -> Scores:
        """Return one minus cleanlab's label quality, plus one for a label error."""
        self.require(task.preset)
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        rows, labels = task.examples.rows, task.examples.labels[task.examples.rows]
        likely = task.once(task.scratch / "out-of-fold", lambda: _out_of_fold(task))[rows].astype(np.float64)
        quality = get_label_quality_scores(labels, likely)
        wrong = find_label_issues(labels, likely, filter_by=self.filter_by, n_jobs=1)
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        values[rows] = 1 - quality + ISSUE * wrong
        return Scores(values=values, name="label-errors")

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the two models."""
        half = len(task.examples) // 2
        return [(stage, half * task.preset.retrain.epochs, half) for stage in self.stages]

    def limits(self) -> list[str]:
        """Return what confident learning cannot tell."""
        return [
            "Only labels that look wrong are found: poison that kept its right label is not, nor a trigger that is learned."
        ]


def _out_of_fold(task: Task) -> NDArray[np.float32]:
    """Return class probabilities of each row by the model that did not train on it: (all rows, classes)."""
    rows, first = task.examples.rows, task.first_half()
    likely = np.zeros((task.examples.total, len(task.examples.class_names)), dtype=np.float32)
    for half, own in (("a", first), ("b", ~first)):
        stage = f"half-{half}"
        task.fit(stage, task.preset.retrain, rows[own[rows]], what=f"train on half {half.upper()}")
        others = task.examples.take(rows[~own[rows]])
        logits = predict(task.load(stage), others, task.where).astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        likely[others.rows] = odds / odds.sum(axis=1, keepdims=True)
    return likely
