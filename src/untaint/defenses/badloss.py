"""BaDLoss: reject the examples whose loss trajectories are furthest from the probes'.

Alex, Siddiqui, Sanyal, Krueger, "Protecting against simultaneous data poisoning attacks",
ICLR 2025 (arXiv 2408.13221).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from untaint.defenses._distance import distances, epoch_filter, mean_losses
from untaint.defenses.base import Card, Detector, Task
from untaint.scores import Scores
from untaint.training.loop import Watch
from untaint.trajectories import Observable, Trajectories

__all__ = ["BaDLoss"]


@dataclass(frozen=True, kw_only=True)
class BaDLoss(Detector):
    """Mean distance of an example's trajectory to the ``k`` nearest of the probes'.

    The defaults are the paper's. ``observable``: what is compared. ``centre``: ``class`` takes off
    the per-epoch median of the labelled class. ``standardise``: ``probes`` divides each epoch by
    the probes' spread. ``epochs``: ``stable`` leaves out epochs with a spike of the mean loss.
    """

    observable: Observable = "ce"
    k: int = 50
    centre: Literal["none", "class"] = "none"
    standardise: Literal["none", "probes"] = "none"
    epochs: Literal["stable", "all"] = "stable"

    card: ClassVar[Card | None] = Card(
        paper="Alex, Siddiqui, Sanyal and Krueger: Protecting against simultaneous data poisoning attacks, ICLR 2025",
        assumes="poison is learned at another pace than the pictures that are vouched for",
        rate="share",
        claim="one attacker: 4 % success, at 85 % clean accuracy (92 % undefended); seven: 8 %",
    )
    stages: ClassVar[tuple[str, ...]] = ("watcher-a",)

    def score(self, task: Task) -> Scores:
        """Return the distances from one watcher, trained on everything."""
        watch = Watch(rows=task.examples.rows, when=task.preset.record)
        folder = task.fit("watcher-a", task.preset.watch, watch=watch, what="watch")
        return self.compare(Trajectories(folder / "trajectories"), task.examples.labels, task.compared_with)

    def compare(self, trajectories: Trajectories, labels: NDArray[np.int64], probes: NDArray[np.int64]) -> Scores:
        """Return the distances for trajectories recorded in any loop."""
        chosen = epoch_filter(mean_losses(trajectories)) if self.epochs == "stable" else None
        values = distances(
            trajectories,
            probes,
            observable=self.observable,
            epochs=chosen,
            k=self.k,
            centre=self.centre,
            labels=labels,
            standardise=self.standardise,
        )
        return Scores(values=values, name="badloss", parts={"distance": values})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the one watcher."""
        passes = task.preset.watch.epochs * len(task.examples)
        return [("watcher-a", passes, passes if task.preset.record == "eval" else 0)]
