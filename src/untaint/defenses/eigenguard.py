"""EigenGuard: a model trained on everything, with a layer in it that equalises what is strongest in a batch's features.

ICLR 2024, submission 4413. The layer itself is ``untaint.EigenGuard``.
"""

from __future__ import annotations

from dataclasses import dataclass

from untaint.defenses._inserted import trained_with
from untaint.defenses.base import Defense, Outcome, Task
from untaint.models.inserting import Guard

__all__ = ["EigenGuard"]


@dataclass(frozen=True, kw_only=True)
class EigenGuard(Guard, Defense):
    """A model with EigenGuard in it, trained on everything by the recipe of every defence's clean model; nothing is set aside.

    ``at``: the layer behind which it is. The others are the layer's own options: ``k`` singular values become equal, the others are
    multiplied by ``remainder``; the defaults are the paper's as far as they are known, but for ``eval``: a prediction does not depend on the batch.
    """

    def defend(self, task: Task) -> Outcome:
        """Return the guarded model; nothing is scored."""
        return trained_with("eigenguard", self, task)
