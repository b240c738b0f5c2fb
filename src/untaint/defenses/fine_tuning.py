"""Fine-tuning: the undefended model, trained a little further on pictures known to be clean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from untaint.defenses.base import Card, Mender
from untaint.errors import SpecError
from untaint.training.tuning import Clean

__all__ = ["FineTuning"]


@dataclass(frozen=True, kw_only=True)
class FineTuning(Mender):
    """The undefended model after some steps on the clean pictures alone, with a rate at which it keeps most of what it knows.

    As a defence of its own in Liu, Dolan-Gavitt and Garg (RAID 2018). Public benchmarks take 100 epochs of 5 % of 50,000 pictures
    at a rate of 0.01, which are as many ``steps``; of fewer pictures, each comes more often.
    """

    steps: int = 1000
    learning_rate: float = 0.01
    batch: int = 125
    weight_decay: float = 5e-4

    card: ClassVar[Card | None] = Card(
        paper="Liu, Dolan-Gavitt and Garg: Fine-pruning, RAID 2018",
        assumes="a backdoor is forgotten when training goes on without it",
        clean=10,
        claim="weakens a backdoor, and may leave it",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.steps < 1 or self.batch < 2 or not self.learning_rate > 0:
            raise SpecError(
                f"steps is {self.steps}, batch {self.batch}, learning_rate {self.learning_rate}; give at least 1, 2, and more than 0."
            )

    def mend(self, model: nn.Module, clean: Clean) -> nn.Module:
        """Return the model, tuned."""
        return clean.tune(
            model,
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            weight_decay=self.weight_decay,
        )
