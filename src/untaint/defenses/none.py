"""None: a model trained on everything, poison included; what every defence is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from untaint.defenses.base import Card, Defense, Outcome, Task

__all__ = ["None_"]


@dataclass(frozen=True, kw_only=True)
class None_(Defense):  # noqa: N801 - None itself is taken
    """No defence: the model trained on everything, by the same recipe as every defence's clean model."""

    card: ClassVar[Card | None] = Card(
        paper="no paper: what every defence is compared with",
        assumes="nobody poisoned anything",
        several="no",
        why="it does nothing against any",
    )

    def defend(self, task: Task) -> Outcome:
        """Return the undefended model; nothing is scored."""
        return Outcome(scores=None, verdict=None, model=task.reference())
