"""D-BR: the undefended model unlearns the rows whose features move furthest when the picture is turned over, and relearns those that move least (Chen W., Wu B. and Wang H., NeurIPS 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from untaint import run
from untaint.defenses._sensitive import Parted, Parting
from untaint.defenses.base import UNDEFENDED, Card, Defense, Outcome, Task
from untaint.errors import SpecError
from untaint.scores import Scores
from untaint.training import checkpoint
from untaint.training.cost import Meter
from untaint.training.device import device
from untaint.training.tuning import Clean

__all__ = ["DBR"]

NAME = "d-br"
MOST = 2.0  # times the loss of a guess: what is that wrong is not pushed further


@dataclass(frozen=True, kw_only=True)
class DBR(Parting, Defense):
    """The undefended model after steps that go down the cross-entropy of the rows taken for clean, and by turns up that of those taken for poisoned, so that both are gone through equally often.

    How rows are parted, ``Parting`` says.
    The paper takes 20 epochs at a rate of 1e-4, some 2,000 steps for 50,000 pictures; ``steps`` and ``learning_rate`` are fewer and larger ones, which do as much. Ours, too: poison that is as wrong as twice a guess
    is not pushed further, and clean pictures pass through beside it, so that layers that normalise do not see poison alone.
    """

    steps: int = 400
    learning_rate: float = 1e-3
    batch: int = 125

    card: ClassVar[Card | None] = Card(
        paper="Chen W., Wu B. and Wang H., Effective backdoor defense by exploiting sensitivity of poisoned samples (D-BR), NeurIPS 2022",
        assumes="a trigger is learned in the first epochs and is none when the picture is turned over, so that its features move furthest",
        rate="share",
        claim="success of several attacks made low, with one model mended in place",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.steps < 1 or self.batch < 2 or not self.learning_rate > 0:
            raise SpecError(
                f"steps is {self.steps}, batch {self.batch}, learning_rate {self.learning_rate}; give at least 1, 2, and more than 0."
            )

    def defend(self, task: Task) -> Outcome:
        """Return the model, and how far each row's features move; nobody is set aside."""
        parted = self.parted(task)
        scores = Scores(values=parted.values, name=NAME, parts={"moved": parted.values})
        source, out = task.reference(), task.scratch / "relearned"
        if not len(parted.poison):  # all is vouched for
            return Outcome(scores=scores, verdict=None, model=source)
        if run.finished(out) is None:
            meter = Meter()
            checkpoint.save_changed(out, self._relearned(task.load(UNDEFENDED), parted, task), source)
            meter.cost().save(out)
        return Outcome(scores=scores, verdict=None, model=out)

    def _relearned(self, model: nn.Module, parted: Parted, task: Task) -> nn.Module:
        clean = Clean(
            examples=task.examples.take(parted.clean),
            augment=task.preset.retrain.augment,
            seed=task.seed,
            where=task.where or device(),
            progress=task.progress,
        )
        poison = replace(clean, examples=task.examples.take(parted.poison))
        every = 1 + max(1, round(len(parted.clean) / len(parted.poison)))
        worse: Iterator[tuple[Tensor, Tensor]] = poison.batches(self.steps, self.batch)
        turns = iter(range(1, self.steps + 1))
        most = MOST * math.log(len(task.examples.class_names))

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            if next(turns) % every:
                return nn.functional.cross_entropy(model(images).float(), labels)
            shown, wrong = next(worse)
            told = model(torch.cat([shown, images])).float()[: len(shown)]
            each = nn.functional.cross_entropy(told, wrong, reduction="none")
            return -each.clamp(max=most).mean()

        return clean.tune(
            model,
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            loss=loss,
            what="unlearn and relearn by turns",
        )
