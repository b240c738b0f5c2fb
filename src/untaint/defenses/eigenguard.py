"""EigenGuard: a model trained on everything, with a layer in it that equalises what is strongest in a batch's features.

ICLR 2024, submission 4413. The layer itself is ``untaint.EigenGuard``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

from untaint.defenses._inserted import trained_with
from untaint.defenses.base import Card, Defense, Outcome, Task
from untaint.errors import SpecError
from untaint.models.inserting import Guard

__all__ = ["EigenGuard"]


@dataclass(frozen=True, kw_only=True)
class EigenGuard(Guard, Defense):
    """A model with EigenGuard in it, trained on everything by the recipe of every defence's clean model; nothing is set aside.

    ``at``: the layer behind which it is. The others are the layer's own options: ``k`` singular values become equal, the others are
    multiplied by ``remainder``; the defaults are the paper's as far as they are known, but for ``eval``: a prediction does not depend on the batch.
    ``until``: the share of training after which features pass as they are (``steps`` says so in batches).
    """

    until: float = 1.0

    card: ClassVar[Card | None] = Card(
        paper="EigenGuard, ICLR 2024 submission 4413",
        assumes="a trigger lies in few strong directions of the features",
        claim="success near chance under single attacks, clean accuracy kept (its figures are lost)",
    )

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.until <= 1:
            raise SpecError(f"until is {self.until}. Give a share of training: more than 0, and 1 at most.")
        if self.until < 1 and self.steps is not None:
            raise SpecError(f"until is {self.until}, and steps {self.steps}: both say how long. Give one of them.")

    def defend(self, task: Task) -> Outcome:
        """Return the guarded model; nothing is scored."""
        guard = Guard(**{one.name: getattr(self, one.name) for one in fields(Guard)})
        if self.until < 1:
            recipe = task.preset.retrain
            steps = recipe.epochs * max(1, -(-len(task.examples) // recipe.batch))
            guard = replace(guard, steps=max(1, round(self.until * steps)))
        return trained_with("eigenguard", guard, task)
