"""Cross-examination: what only models that saw the distrusted part can explain is suspicious.

1. Two watchers each train on a random half and record every row, so that each row is known
   in-sample (by the watcher that trained on it) and out of fold (by the other).
2. The rows whose trajectories are nearest to the probes' are trusted: half of all rows, and at
   least a fifth of each class.
3. A witness is trained on the trusted rows alone.
4. A row is suspicious as far as its out-of-fold watcher explains its label better than the
   witness does. A hard or wrongly labelled picture is explained by neither; poison is explained
   out of fold by the other poison with its trigger, and by the witness not at all.
5. Poison comes in company: the figure is combined with the median over a row's nearest neighbours
   of the same label in the watchers' early features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint import rng, run
from untaint.defenses._company import company, neighbours, side_by_side
from untaint.defenses._distance import distances
from untaint.defenses.base import Detector, Task
from untaint.errors import RunError, SpecError
from untaint.recipe import Preset, Recipe
from untaint.scores import Scores
from untaint.training.loop import Watch
from untaint.trajectories import BLOCK, Observable, Trajectories

__all__ = ["CrossExamination", "trusted_rows"]

TESTIMONY = 3  # the witness is asked after each of its last epochs; their mean is steadier than one


@dataclass(frozen=True, kw_only=True)
class CrossExamination(Detector):
    """How much better an example is explained by a model that saw the distrusted part than by one that did not.

    ``trusted``: share of all rows that the witness is trained on. ``floor``: share of each class
    that it sees at least. ``neighbours``: how many make a row's company. ``own``: weight of a row's
    own figure beside its company's.
    """

    trusted: float = 0.5
    floor: float = 0.2
    neighbours: int = 10
    own: float = 0.5

    stages: ClassVar[tuple[str, ...]] = ("watcher-a", "watcher-b", "witness")
    fixed: ClassVar[tuple[str, ...]] = ("trusted", "floor")

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.trusted < 1:
            raise SpecError(f"floor is {self.floor} and trusted {self.trusted}; give 0 < floor <= trusted < 1.")
        if self.neighbours < 1 or self.own < 0:
            raise SpecError(f"neighbours is {self.neighbours} and own {self.own}; give at least 1 and 0.")

    def require(self, preset: Preset) -> None:
        """Refuse a preset that records only rows trained on."""
        if preset.record != "eval":
            raise SpecError(
                f"record is {preset.record}, but cross-examination asks each watcher about pictures it was not "
                "trained on. Give record eval, or the detector badloss."
            )

    def work(self, task: Task) -> list[tuple[int, int]]:
        """Return the pictures that pass through two watchers and the witness."""
        total, half = len(task.examples), len(task.examples) // 2
        epochs, testimony = task.preset.watch.epochs, task.preset.witness.epochs
        watcher = (half * epochs, total * epochs)
        witness = (round(total * self.trusted) * testimony, total * min(TESTIMONY, testimony))
        return [watcher, watcher, witness]

    def score(self, task: Task) -> Scores:
        """Return own figure and company of every row, from two watchers and a witness."""
        examples = task.examples
        evidence = _Evidence.gather(task, self.neighbours)
        suspicion = first_suspicion(evidence.in_sample, examples.labels, task.probes)
        trusted = self._trust(task, suspicion)
        parts = evidence.against(self._witness(task, trusted))
        own = parts.pop("own")
        is_trusted = np.zeros(examples.total, dtype=np.float32)
        is_trusted[trusted] = 1
        values = parts["company"] + np.float32(self.own) * own
        parts = {**parts, "suspicion": suspicion, "trusted": is_trusted}
        return Scores(values=values, name="cross-examination", parts=parts)

    def _witness(self, task: Task, trusted: NDArray[np.int64]) -> Trajectories:
        """Train the witness on the trusted rows; it is asked about every row after each of its last epochs."""
        recipe = task.preset.witness
        watch = Watch(rows=task.examples.rows, epochs=range(max(0, recipe.epochs - TESTIMONY), recipe.epochs))
        folder = task.fit("witness", recipe, trusted, watch=watch, what="train the witness")
        return Trajectories(folder / "trajectories")

    def _trust(self, task: Task, suspicion: NDArray[np.float32]) -> NDArray[np.int64]:
        """Choose whom to trust, once: what was chosen stays with the run."""
        path = task.scratch / "trusted.npy"
        sealed = path.with_suffix(".json")
        if path.exists() and sealed.exists():
            if run.read_sealed(sealed)["sha256"] != run.digest(path):
                raise RunError(f"{path} was altered since it was written. Remove {task.scratch} and scan again.")
            return np.asarray(run.load_array(path))
        trusted = trusted_rows(suspicion, task.examples.labels, task.examples.rows, self.trusted, self.floor)
        run.save_array(path, trusted)
        run.write_sealed(sealed, {"sha256": run.digest(path)})
        return trusted

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row which witnesses speak against it."""
        own, near = scores.parts["margin_gap"][rows], scores.parts["company"][rows]
        return [
            f"models that saw the distrusted part explain its label better than the witness, by a margin of {gap:.1f}"
            + ("; so do they for the pictures most like it" if company > 2 else "")
            if gap > 0
            else "the pictures most like it are explained only by models that saw the distrusted part"
            for gap, company in zip(own, near, strict=True)
        ]

    def limits(self) -> list[str]:
        """Return what cross-examination cannot tell."""
        return [
            "Poison that the witness was trained on vouches for itself. The likeliest to get there is clean-label poison: "
            "pictures that really show what their label says, with a trigger on them.",
            "A trigger that the small watchers never learn is found only by its wrong label.",
            "A rare kind of picture that lies wholly in the distrusted part looks like poison. Look before you delete.",
        ]


@dataclass(frozen=True)
class _Evidence:
    """What the two watchers know, and who keeps company with whom."""

    in_sample: Folded
    out_of_fold: Folded
    company: list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # per class: its rows, and their neighbours

    @classmethod
    def gather(cls, task: Task, count: int) -> _Evidence:
        """Train the watchers and find each row's neighbours."""
        rows, labels = task.examples.rows, task.examples.labels
        first = np.zeros(task.examples.total, dtype=bool)
        first[rng.choose(task.seed, "halves", rows, len(rows) // 2)] = True
        watch = Watch(rows=rows, features=early_epochs(task.preset.watch))
        folders = [
            task.fit(
                f"watcher-{name}", task.preset.watch, rows[half[rows]], watch=watch, what=f"watch, half {name.upper()}"
            )
            for name, half in (("a", first), ("b", ~first))
        ]
        a, b = (Trajectories(folder / "trajectories") for folder in folders)
        files = [path for folder in folders for path in sorted((folder / "features").glob("*.npy"))]
        near = []
        for label in np.unique(labels[rows]):
            members = rows[labels[rows] == label]
            if files and len(members) > 1:
                near.append((members, neighbours(side_by_side(files, members), members, count)))
        return cls(Folded(a, b, first), Folded(b, a, first), near)

    def against(self, witness: Trajectories) -> dict[str, NDArray[np.float32]]:
        """Return how much better the watchers explain each row than a witness does, and what its company says.

        ``margin_gap`` and ``loss_gap``: out of fold; ``in_sample_gap``: margin, by the watcher that
        trained on it; ``own``: margin and loss gap, each over its spread; ``company``: the
        neighbours' median of that.
        """
        testimony = _mean(witness, "margin")
        gaps = {
            "margin_gap": _mean(self.out_of_fold, "margin") - testimony,
            "loss_gap": _mean(witness, "log-ce") - _mean(self.out_of_fold, "log-ce"),
        }
        own = _scaled(gaps["margin_gap"]) + _scaled(gaps["loss_gap"])
        around = own.copy()
        for members, near in self.company:
            around[members] = company(own, near, members)
        return {**gaps, "in_sample_gap": _mean(self.in_sample, "margin") - testimony, "own": own, "company": around}


@dataclass(frozen=True)
class Folded:
    """Trajectories that take each row from one of two watchers: ``first`` where the mask is set, else ``second``."""

    first: Trajectories
    second: Trajectories
    mask: NDArray[np.bool_]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.first.rows

    @property
    def epochs(self) -> int:
        """How many epochs both have."""
        return min(self.first.epochs, self.second.epochs)

    def block(
        self, observable: Observable, rows: slice | NDArray[np.int64], epochs: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Return float32 (rows, epochs), each row from its own watcher."""
        own = self.mask[rows][:, None]
        return np.where(own, self.first.block(observable, rows, epochs), self.second.block(observable, rows, epochs))

    def blocks(
        self, observable: Observable, epochs: Sequence[int] | None = None, size: int = BLOCK
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Go through the rows in blocks."""
        for start in range(0, self.rows, size):
            rows = slice(start, min(start + size, self.rows))
            yield rows, self.block(observable, rows, epochs)


def early_epochs(recipe: Recipe) -> tuple[int, ...]:
    """Return the four epochs whose features are kept: a sixth to two thirds of the way."""
    return tuple(sorted({min(recipe.epochs - 1, round(recipe.epochs * part / 6)) for part in (1, 2, 3, 4)}))


def first_suspicion(trajectories: Folded, labels: NDArray[np.int64], probes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the mean rank of the plain and the class-centred margin distance to the probes."""
    return _ranked(
        *(
            distances(trajectories, probes, observable="margin", centre=centre, labels=labels)  # type: ignore[arg-type]
            for centre in ("none", "class")
        )
    )


def _ranked(*figures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean over several figures of a row's rank, in [0, 1]."""
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in figures]
    mean: NDArray[np.float32] = (np.mean(ranks, axis=0) / max(1, len(figures[0]) - 1)).astype(np.float32)
    return mean


def trusted_rows(
    suspicion: NDArray[np.float32], labels: NDArray[np.int64], rows: NDArray[np.int64], share: float, floor: float
) -> NDArray[np.int64]:
    """Return the least suspicious rows: ``share`` of all, and at least ``floor`` of each class; ascending."""
    order = rows[np.argsort(suspicion[rows], kind="stable")]
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[rows]):
        members = order[labels[order] == label]
        chosen[members[: int(np.ceil(floor * len(members)))]] = True
    rest = order[~chosen[order]]
    chosen[rest[: max(0, round(share * len(rows)) - int(chosen.sum()))]] = True
    return np.flatnonzero(chosen)


def _mean(trajectories: Trajectories | Folded, observable: Observable) -> NDArray[np.float32]:
    """Return the mean over the recorded epochs, float32 (rows,)."""
    result = np.empty(trajectories.rows, dtype=np.float32)
    for rows, block in trajectories.blocks(observable):
        result[rows] = block.mean(axis=1)
    return result


def _scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values minus their median, over their median absolute deviation."""
    centred = values - np.nanmedian(values)
    return np.asarray(centred / max(float(np.nanmedian(np.abs(centred))), 1e-6), dtype=np.float32)
