"""Repair: a model trained on everything, from which the triggers that it learned are taken out afterwards.

No paper's: ``untaint.repair``. Features of a trigger are independent of all else in a picture, and part the class that is the target in two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from untaint import run
from untaint.defenses.base import UNDEFENDED, Card, Defense, Outcome, Task
from untaint.examples import Examples
from untaint.models.inserting import BEFORE_POOL
from untaint.training import repair
from untaint.training.cost import Meter

__all__ = ["Repair"]


@dataclass(frozen=True, kw_only=True)
class Repair(Defense):
    """The undefended model, with a gate that takes out what parts a class in two; nothing is set aside, and nothing trained again.

    ``at``: the layer behind which the gate is. ``apart``: from how many deviations on pictures of a class count as two groups. ``components``: how many
    independent ones are looked for at first; 0: two for each class, and 50 at least. ``by_lot``: a control, in which as many are drawn by lot.
    """

    version = 3

    at: str = BEFORE_POOL
    apart: float = repair.APART
    components: int = 0
    by_lot: bool = False

    card: ClassVar[Card | None] = Card(
        paper="this project's own",
        assumes="a trigger is an independent component of the features that parts its class in two, and those who have it look like other classes",
    )

    def defend(self, task: Task) -> Outcome:
        """Return the repaired model; nothing is scored."""
        source, out = task.reference(), task.scratch / "repaired"
        if run.finished(out) is None:
            meter = Meter()
            made = self.repaired(
                task.load(UNDEFENDED), task.examples, seed=task.seed, where=task.where, progress=task.progress
            )
            repair.save_repaired(made, source, out)
            meter.cost().save(out)
        return Outcome(scores=None, verdict=None, model=out)

    def repaired(self, model: nn.Module, examples: Examples, **how: Any) -> repair.Repaired:
        """Return what ``untaint.repair`` makes of a model with these options; ``how``: its other arguments."""
        return repair.repair(
            model,
            examples,
            self.at,
            apart=self.apart,
            components=self.components or None,
            by_lot=self.by_lot,
            **how,
        )
