"""MAP-D: rows that are learned as pictures are that the defender has tampered with, not as clean ones are (Siddiqui, Rajkumar, Maharaj, Krueger and Hooker, 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.defenses.base import Card, Detector, Task
from untaint.errors import InputError, SpecError
from untaint.scores import Scores
from untaint.training.loop import Watch
from untaint.trajectories import Observable, Trajectories

__all__ = ["MapD", "shares", "triggered"]

STAGE = "watcher-probed"
MOST = 0.1  # of all rows there are in a category, at most
PATCH = 1 / 8  # of the shorter side is how wide the defender's trigger is
BLOCK = 1_024  # rows that are held against the probes at once


@dataclass(frozen=True, kw_only=True)
class MapD(Detector):
    """The share of pictures that the defender tampered with among the ``k`` that are learned most like a row; the rest of these are clean.

    One model is trained by the recipe of watchers on everything and on copies of some pictures, ``probes`` of each of two kinds: with a patch of noise in a corner and all with one and the same label, as a backdoor has it (part
    ``trigger``), and with any wrong label (part ``mislabelled``). The third kind are as many probes, or where there are none, rows drawn by lot. Fewer than ``probes`` are taken if there are fewer probes, or if it were
    more than a tenth of all rows. Compared are the losses over all epochs, by Euclidean distance; ``observable``: or something else. ``sought``: ``trigger`` counts
    the first kind alone, as what is hard to learn is like the second.

    Siddiqui et al. (ICLR 2023) tell such kinds of pictures by 250 of each and the 20 nearest. With clean pictures and the defender's trigger it was the first version of "Protecting against simultaneous data poisoning attacks" (Alex
    et al., 2024), which is ``badloss`` now. There copies take the place of what they were copied from; here all rows stay, as all are to be judged, and copies are mirrored, so that none has two labels. The trigger is ours, as is the rule
    taken here: more than half.
    """

    probes: int = 250
    k: int = 20
    observable: Observable = "ce"
    sought: Literal["any", "trigger"] = "any"

    card: ClassVar[Card | None] = Card(
        paper="Siddiqui, Rajkumar, Maharaj, Krueger and Hooker: Metadata archaeology: unearthing data subsets by leveraging training dynamics, ICLR 2023",
        assumes="poison is learned as the defender's own trigger is, or as wrong labels are",
        claim="wrong labels, copies and odd pictures told apart by how they are learned; of triggers it says nothing",
    )
    stages: ClassVar[tuple[str, ...]] = (STAGE,)
    fixed: ClassVar[tuple[str, ...]] = ("probes",)
    usual_rule: ClassVar[str | None] = "above:score=0.5"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.probes < 1:
            raise SpecError(f"probes is {self.probes}; give at least 1 of each kind, such as 250.")
        if self.k < 1:
            raise SpecError(f"k is {self.k}; give at least 1 neighbour, such as 20.")
        if self.sought not in ("any", "trigger"):
            raise SpecError(f"sought is '{self.sought}'; give any or trigger.")

    def score(self, task: Task) -> Scores:
        """Return the shares, from a watcher that was trained on the defender's pictures too."""
        kinds, watched = self._tampered(task)
        watch = Watch(rows=watched.examples.rows, when=task.preset.record)
        folder = watched.fit(STAGE, task.preset.watch, watch=watch, what="watch, with pictures tampered with")
        found = shares(Trajectories(folder / "trajectories"), kinds, self.k, self.observable)[: task.examples.total]
        clean, trigger, mislabelled = found.astype(np.float32).T
        values = trigger if self.sought == "trigger" else 1 - clean
        return Scores(values=values, name="map-d", parts={"trigger": trigger, "mislabelled": mislabelled})

    def _tampered(self, task: Task) -> tuple[list[NDArray[np.int64]], Task]:
        """Return the rows of each kind, clean, with the trigger, and mislabelled; and the task with those of the two latter behind its own."""
        examples, seed = task.examples, task.seed
        classes = len(examples.class_names)
        if classes < 2:
            raise InputError(
                f"all pictures are of one class, '{examples.class_names[0]}': no label can be wrong. Give two classes."
            )
        count = max(1, min(self.probes, len(task.compared_with), int(MOST * len(examples))))
        clean = rng.choose(seed, "defenses/map-d/clean", task.compared_with, count)
        lots = rng.order(seed, "defenses/map-d", 0, np.setdiff1d(examples.rows, clean))
        target = rng.derive(seed, "defenses/map-d/target") % classes
        stamped = lots[examples.labels[lots] != target][:count]
        wrong = lots[~np.isin(lots, stamped)][:count]
        steps = 1 + (rng.uniform(seed, "defenses/map-d/label", 0, wrong)[:, 0] * (classes - 1)).astype(np.int64)
        images = np.concatenate([triggered(examples.images[stamped], seed), examples.images[wrong]])[..., ::-1]
        labels = np.concatenate([np.full(len(stamped), target), (examples.labels[wrong] + steps) % classes])
        kinds = [clean, examples.total + np.arange(len(stamped)), examples.total + len(stamped) + np.arange(len(wrong))]
        watched = replace(
            examples,
            images=cast("NDArray[np.uint8]", _Joined(examples.images, np.ascontiguousarray(images))),
            labels=np.concatenate([examples.labels, labels]),
            keys=[*examples.keys, *(f"tampered with/{number}" for number in range(len(labels)))],
            rows=np.concatenate([examples.rows, *kinds[1:]]),
        )
        # in a store the model would be taken for one that was trained on the same rows as they are
        return kinds, replace(task, examples=watched, store=None)

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the one watcher."""
        passes = task.preset.watch.epochs * len(self._tampered(task)[1].examples)
        return [(STAGE, passes, passes if task.preset.record == "eval" else 0)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row what it is learned like."""
        trigger, mislabelled = scores.parts["trigger"], scores.parts["mislabelled"]
        return [
            f"of the pictures that are learned most like it, {trigger[row]:.0%} have the defender's trigger and {mislabelled[row]:.0%} a wrong label"
            for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what MAP-D cannot tell."""
        return [
            "Clean pictures that are hard to learn are learned as mislabelled ones are, and easy ones may be learned as the defender's trigger is.",
            "Poison that is learned as clean pictures are, as with faint triggers or right labels it often is, is not found.",
        ]


def triggered(images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Return pictures with the defender's trigger: one and the same patch of noise in one and the same corner, both drawn by the seed."""
    channels, height, width = images.shape[1:]
    side = min(max(2, round(PATCH * min(height, width))), height, width)
    numbers = rng.uniform(seed, "defenses/map-d/patch", 0, np.arange(channels * side * side + 2))[:, 0]
    patch = (numbers[2:].reshape(channels, side, side) * 256).astype(np.uint8)
    top, left = (extent - side if number < 0.5 else 0 for extent, number in zip((height, width), numbers, strict=False))
    stamped = images.copy()
    stamped[:, :, top : top + side, left : left + side] = patch
    return stamped


def shares(
    trajectories: Trajectories, kinds: Sequence[NDArray[np.int64]], k: int, observable: Observable = "ce"
) -> NDArray[np.float64]:
    """Return how many of the ``k`` rows with the trajectories nearest to a row's are of each kind: shares, (rows, kinds), nan for rows not seen.

    ``kinds``: the rows of each, among which the neighbours are looked for; no row is its own. ``k`` is lowered where there are no more.
    """
    known = np.concatenate(list(kinds))
    kind = np.repeat(np.eye(len(kinds)), [len(rows) for rows in kinds], axis=0)
    points = trajectories.block(observable, known).astype(np.float64)
    origin = points.mean(axis=0)  # far from it, little would be left of small differences
    points -= origin
    k = max(1, min(k, len(known) - 1))
    found = np.full((trajectories.rows, len(kinds)), np.nan)
    for rows, table in trajectories.blocks(observable, size=BLOCK):
        seen = rows.start + np.flatnonzero(~np.isnan(table).any(axis=1))
        own = table[seen - rows.start].astype(np.float64) - origin
        squared = (own**2).sum(axis=1)[:, None] + (points**2).sum(axis=1) - 2 * own @ points.T
        squared[seen[:, None] == known] = np.inf
        found[seen] = kind[np.argpartition(squared, k - 1, axis=1)[:, :k]].mean(axis=1)
    return found


class _Joined:
    """Pictures behind others, as one array to those who take rows out of it; neither is copied."""

    def __init__(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> None:
        self.first, self.second = first, second
        self.shape = (len(first) + len(second), *first.shape[1:])
        self.nbytes = first.nbytes + second.nbytes

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        late = rows >= len(self.first)
        found = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        found[~late] = self.first[rows[~late]]
        found[late] = self.second[rows[late] - len(self.first)]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        return np.concatenate([self.first, self.second])
