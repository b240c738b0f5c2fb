"""Unlearning: what a detector set aside is unlearned by the undefended model, in place of training anew (Alex et al., ICLR 2025, name it as a way to save that)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from untaint import run
from untaint.defenses.base import UNDEFENDED, Card, Defense, Outcome, Task
from untaint.errors import SpecError
from untaint.training import checkpoint
from untaint.training.cost import Meter
from untaint.training.device import device
from untaint.training.tuning import Clean

__all__ = ["Unlearning"]

MOST = 2.0  # times the loss of a guess: what is that wrong is not pushed further


@dataclass(frozen=True, kw_only=True)
class Unlearning(Defense):
    """The undefended model after some steps that make it worse at what was set aside, and keep it right about what was kept. Name it behind a detector: ``badloss then unlearning``.

    Each step goes down the cross-entropy of a batch of kept pictures, and up that of a batch set aside, as long as that is below twice a guess's. The
    rate is that of the unlearning of ABL (Li Y. et al., NeurIPS 2021) for a batch of 125; it costs ``steps`` of training instead of all.
    """

    steps: int = 400
    learning_rate: float = 5e-4
    batch: int = 125
    strength: float = 1.0

    card: ClassVar[Card | None] = Card(
        paper="Alex, Siddiqui, Sanyal and Krueger, ICLR 2025, name it; the rate is that of Li Y. et al. (ABL), NeurIPS 2021",
        assumes="a detector before it found some of the poison",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.steps < 1 or self.batch < 2 or not self.learning_rate > 0 or not self.strength > 0:
            raise SpecError(
                f"steps is {self.steps}, batch {self.batch}, learning_rate {self.learning_rate}, strength {self.strength}; give at least 1, 2, and more than 0."
            )

    def defend(self, task: Task) -> Outcome:
        """Return the model that unlearned ``task.set_aside``; nothing is scored. Where nothing was set aside it is the undefended one."""
        everything = replace(task, examples=task.examples.take(np.union1d(task.examples.rows, task.set_aside)))
        source, out = everything.reference(), task.scratch / "unlearned"
        if not len(task.set_aside):
            return Outcome(scores=None, verdict=None, model=source)
        if run.finished(out) is None:
            meter = Meter()
            checkpoint.save_changed(out, self._unlearned(everything.load(UNDEFENDED), task), source)
            meter.cost().save(out)
        return Outcome(scores=None, verdict=None, model=out)

    def _unlearned(self, model: nn.Module, task: Task) -> nn.Module:
        augment, where = task.preset.retrain.augment, task.where or device()
        kept = Clean(examples=task.examples, augment=augment, seed=task.seed, where=where, progress=task.progress)
        poison = replace(kept, examples=task.examples.take(task.set_aside))
        batches: Iterator[tuple[Tensor, Tensor]] = poison.batches(self.steps, self.batch)
        most = MOST * math.log(len(task.examples.class_names))

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            worse, wrong = next(batches)
            told = model(torch.cat([images, worse])).float()
            each = nn.functional.cross_entropy(told, torch.cat([labels, wrong]), reduction="none")
            return each[: len(images)].mean() - self.strength * each[len(images) :].clamp(max=most).mean()

        return kept.tune(
            model,
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            loss=loss,
            what="unlearn what was set aside",
        )
