"""Whitening: the control for EigenGuard, a layer that nobody made against triggers in its place.

Batch normalisation, decorrelated batch normalisation (Huang et al., 2018) or IterNorm (Huang et al., 2019): the layer itself is ``models/whitening.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from untaint.defenses._inserted import trained_with
from untaint.defenses.base import Card, Defense, Outcome, Task
from untaint.models.whitening import Whiten

__all__ = ["Whitening"]


@dataclass(frozen=True, kw_only=True)
class Whitening(Whiten, Defense):
    """A control: a model with a whitening layer in it, trained on everything by the recipe of every defence's clean model; nothing is set aside.

    ``at``: the layer behind which it is. ``kind``: ``scale`` (no correlations are taken out), ``zca`` or ``iterative``.
    """

    card: ClassVar[Card | None] = Card(
        paper="no paper: a control for EigenGuard",
        assumes="equal strength of all directions is enough",
    )

    def defend(self, task: Task) -> Outcome:
        """Return the model; nothing is scored."""
        return trained_with("whitening", self, task)
