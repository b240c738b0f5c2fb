"""Remove the top: the control for EigenGuard that its paper names, the strongest directions of a trained model's features taken out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from untaint import run
from untaint.defenses.base import UNDEFENDED, Card, Defense, Outcome, Task
from untaint.errors import SpecError
from untaint.models.gate import Gate, TriggerGate
from untaint.models.inserting import BEFORE_POOL, Behind, layer_named
from untaint.training.checkpoint import save_gated
from untaint.training.cost import Meter
from untaint.training.features import layer_features

__all__ = ["RemoveTop"]


@dataclass(frozen=True, kw_only=True)
class RemoveTop(Defense):
    """A control: the undefended model without the strongest directions of what a layer gives for the training pictures; nothing is set aside.

    ``k``: how many directions (the paper's control has 10). ``at``: the layer.
    """

    k: int = 10
    at: str = BEFORE_POOL

    card: ClassVar[Card | None] = Card(
        paper="EigenGuard, ICLR 2024 submission 4413 (its control)",
        assumes="a trigger is what is strongest in the features, and nothing else is",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.k < 1:
            raise SpecError(f"k is {self.k}. Give at least 1: how many directions are taken out.")

    def defend(self, task: Task) -> Outcome:
        """Return the model without these directions; nothing is scored."""
        from sklearn.utils.extmath import randomized_svd  # slow to import

        source, out = task.reference(), task.scratch / "removed"
        if run.finished(out) is None:
            meter = Meter()
            model = Gate(at=self.at).put_into(task.load(UNDEFENDED))
            name, gated = layer_named(model, self.at)
            features = layer_features(model, task.examples, name, where=task.where, progress=task.progress)
            assert isinstance(gated, Behind)
            assert isinstance(gated.added, TriggerGate)
            strongest = randomized_svd(features, min(self.k, *features.shape), random_state=task.seed)[2]
            for direction in torch.from_numpy(strongest).float():
                gated.added.add(direction, 0.0, 0.0, -torch.inf, direction)  # of every picture
            save_gated(out, model, name, source)
            meter.cost().save(out)
        return Outcome(scores=None, verdict=None, model=out)
