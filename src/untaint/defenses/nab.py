"""NAB: a trigger of the defender's own, which tells a model not to mind the attacker's (Liu M., Sangiovanni-Vincentelli and Yue, ICCV 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import spec
from untaint.defenses.base import Card, Defense, Outcome, Task
from untaint.defenses.isolation import Isolation
from untaint.errors import SpecError
from untaint.models.stamp import Corner, Stamp
from untaint.training.device import device
from untaint.training.loop import predict
from untaint.training.objective import Batch, Objective

__all__ = ["NAB", "Stamping"]

STAGE = "relabelling"


@dataclass(frozen=True, kw_only=True)
class NAB(Defense):
    """A model that puts a stamp on all that it is asked about, and has learned that stamped pictures are what they show, whatever trigger they have; nothing is set aside.

    The share ``share`` of least loss in a training that is held at the loss ``floor`` for ``epochs`` (``isolation``; the paper's LGA, of 20 epochs) is suspected: while the model is trained, by the recipe of the
    clean model, these pictures have the stamp, and the label that another model gives them. The stamp is a square of ``side`` pixels (0: a sixteenth of the shorter side, and 2 at least) of brightness ``value`` in a
    ``corner``, put on after augmentation; the saved model stamps by itself, as its name ``+stamp`` says.

    The paper's labels come of a model trained on clean pictures, or of the nearest centre of self-supervised features. Here, where there are neither, the model is trained on the probes and the share ``trusted`` of each
    class that has the largest loss in that first training: poison is seldom there.
    """

    share: float = 0.05
    floor: float = 0.5
    epochs: int = 10
    trusted: float = 0.5
    side: int = 0
    value: float = 0.0
    corner: Corner = "upper-left"

    card: ClassVar[Card | None] = Card(
        paper="Liu, Sangiovanni-Vincentelli and Yue: Beating backdoor attack at its own game, ICCV 2023",
        assumes="some of the poison is among what is learned first, and what is true of it is true of all poison with its trigger",
        rate="share",
        claim="attacks on several data sets fail, with by far the least loss of accuracy among the defences compared",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, what in (("share", "is suspected"), ("trusted", "says the labels")):
            if not 0 < getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give the share that {what}, between 0 and 1.")
        if self.share + self.trusted > 1:
            raise SpecError(f"share is {self.share} and trusted {self.trusted}: more than all. Give less.")
        Isolation(floor=self.floor, epochs=self.epochs)
        _ = self.stamp

    @property
    def stamp(self) -> Stamp:
        """What is put on pictures."""
        return Stamp(side=self.side, value=self.value, corner=self.corner)

    def defend(self, task: Task) -> Outcome:
        """Return the model that stamps; nothing is scored."""
        easy = Isolation(floor=self.floor, epochs=self.epochs).score(task).values
        suspected = self.suspected(easy, task)
        given = self.relabelled(easy, suspected, task)
        recipe, own = task.preset.retrain, task.model
        if own is not None:
            task = replace(task, model=lambda: self.stamp.put_into(own()))
        else:
            recipe = replace(recipe, model=f"{recipe.model}+{spec.text('stamp', self.stamp)}")
        objective = Stamping(self.stamp, suspected, given, task.where or device())
        return Outcome(
            scores=None,
            verdict=None,
            model=task.fit("model", recipe, objective=objective, what="train with the defender's stamp"),
        )

    def suspected(self, easy: NDArray[np.float32], task: Task) -> NDArray[np.bool_]:
        """Return who is suspected, a mask over all rows: so many of the least loss, and no probe."""
        rows = np.setdiff1d(task.examples.rows, task.probes)
        count = max(1, round(self.share * len(task.examples)))
        found = np.zeros(task.examples.total, dtype=bool)
        found[rows[np.argsort(-easy[rows], kind="stable")[:count]]] = True
        return found

    def relabelled(self, easy: NDArray[np.float32], suspected: NDArray[np.bool_], task: Task) -> NDArray[np.int64]:
        """Return the labels of all rows, of those suspected what a model says that was trained on what is trusted."""
        labels = task.examples.labels.copy()
        task.fit(
            STAGE, task.preset.retrain, self.trusted_rows(easy, suspected, task), what="train the model that labels"
        )
        which = np.flatnonzero(suspected)
        labels[which] = predict(task.load(STAGE), task.examples.take(which), task.where).argmax(1)
        return labels

    def trusted_rows(self, easy: NDArray[np.float32], suspected: NDArray[np.bool_], task: Task) -> NDArray[np.int64]:
        """Return the probes and, of each class, so many of the largest loss as are trusted and not suspected."""
        rows = task.examples.rows[~suspected[task.examples.rows]]
        parts = [task.probes]
        for label in np.unique(task.examples.labels[task.examples.rows]):
            every = task.examples.rows[task.examples.labels[task.examples.rows] == label]
            own = rows[task.examples.labels[rows] == label]
            parts.append(own[np.argsort(easy[own], kind="stable")[: max(1, round(self.trusted * len(every)))]])
        return np.unique(np.concatenate(parts))


class Stamping(Objective):
    """The cross-entropy, of stamped pictures and given labels for the rows suspected. ``suspected``: bool (all rows,); ``given``: int64 (all rows,)."""

    def __init__(
        self, stamp: Stamp, suspected: NDArray[np.bool_], given: NDArray[np.int64], where: torch.device
    ) -> None:
        super().__init__()
        self.stamp = stamp
        # not buffers: a checkpoint need not hold what follows from finished stages
        self._suspected, self._given = suspected, torch.from_numpy(given).to(where)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean over the batch."""
        chosen = torch.from_numpy(self._suspected[batch.rows]).to(batch.images.device)
        shown = torch.where(chosen[:, None, None, None], self.stamp.on(batch.images), batch.images)
        labels = self._given[torch.from_numpy(batch.rows).to(self._given.device)]
        return nn.functional.cross_entropy(batch.forward(shown), labels)
