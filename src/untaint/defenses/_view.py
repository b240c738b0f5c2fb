"""One way to look at the pictures, plain or whitened: two watchers, and the signs that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from untaint.defenses._company import company, neighbours, side_by_side
from untaint.defenses._distance import distances
from untaint.defenses._figures import ranked, scaled
from untaint.defenses._folded import Folded
from untaint.defenses._strangeness import strangeness
from untaint.defenses.base import Task
from untaint.examples import Examples
from untaint.recipe import Recipe
from untaint.training.loop import Watch
from untaint.trajectories import Observable, Trajectories, epoch_files

__all__ = ["Gap", "Judged", "Near", "View", "early_epochs", "probe_distance"]

Judged = Literal["both", "out-of-fold", "in-sample"]  # by which of its watchers a row is judged
Near = tuple[NDArray[np.int64], NDArray[np.int64]]  # some rows of one class, and (rows, count) their neighbours


@dataclass(frozen=True)
class Gap:
    """How much better watchers explain each row than the witness does: ``own`` in all, ``margin`` out of fold."""

    own: NDArray[np.float32]
    margin: NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """One way to look at the pictures: what its two watchers know, and who keeps company with whom.

    ``judges``: what each row's watchers recorded, of those by which it is judged.
    """

    judges: tuple[Folded, ...]
    out_of_fold: Folded
    near: list[Near]
    distance: NDArray[np.float32]
    strangeness: NDArray[np.float32]
    strange_company: NDArray[np.float32]

    @classmethod
    def gather(
        cls, task: Task, name: str, recipe: Recipe, count: int, probes: NDArray[np.int64], judged: Judged = "both"
    ) -> View:
        """Train the watchers, find each row's neighbours, and measure what needs no witness."""
        rows, labels, first = task.examples.rows, task.examples.labels, task.first_half()
        watch = Watch(rows=rows, features=early_epochs(recipe))
        said = "" if name == "watcher" else f", {name}"
        folders = [
            task.fit(f"{name}-{half}", recipe, rows[own[rows]], watch=watch, what=f"watch half {half.upper()}{said}")
            for half, own in (("a", first), ("b", ~first))
        ]
        a, b = (Trajectories(folder / "trajectories") for folder in folders)
        files = [path for folder in folders for path in epoch_files(folder / "features")]
        near = []
        for label in np.unique(labels[rows]):
            members = rows[labels[rows] == label]
            if files and len(members) > 1:
                near.append((members, neighbours(side_by_side(files, members), members, count)))
        inside, outside = Folded(a, b, first), Folded(b, a, first)
        judges = {"both": (inside, outside), "out-of-fold": (outside,), "in-sample": (inside,)}[judged]
        far = probe_distance(judges, labels, probes)
        return cls(judges, outside, near, far, *_strangeness(task.examples, probes, files, near))

    def around(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the company of each row has of these values."""
        return _around(self.near, values)

    def gap(self, witness: Trajectories) -> Gap:
        """Compare margin and log loss of the row's watchers with the witness's."""
        margin, loss = _mean(witness, "margin"), _mean(witness, "log-ce")
        own = np.zeros(len(margin), dtype=np.float32)
        for watcher in self.judges:
            own += scaled(_mean(watcher, "margin") - margin) + scaled(loss - _mean(watcher, "log-ce"))
        return Gap(own, _mean(self.out_of_fold, "margin") - margin)


def early_epochs(recipe: Recipe) -> tuple[int, ...]:
    """Return the four epochs whose features are kept: a sixth to two thirds of the way."""
    return tuple(sorted({min(recipe.epochs - 1, round(recipe.epochs * part / 6)) for part in (1, 2, 3, 4)}))


def probe_distance(
    trajectories: Sequence[Folded], labels: NDArray[np.int64], probes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the mean rank of the plain and the class-centred margin distances to the probes."""
    return ranked(
        *(
            distances(seen, probes, observable="margin", centre=centre, labels=labels)  # type: ignore[arg-type]
            for seen in trajectories
            for centre in ("none", "class")
        )
    )


def _strangeness(
    examples: Examples, probes: NDArray[np.int64], files: Sequence[Path], near: Sequence[Near]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each row's strangeness and that of its company; a probe's company is judged without that probe."""
    of_probe = {int(probe): np.empty(0, dtype=np.int64) for probe in probes}
    for members, others in near:
        own = np.flatnonzero(np.isin(members, probes))
        of_probe.update(zip(members[own].tolist(), others[own], strict=True))
    values, beside = strangeness(files, examples.labels, examples.rows, probes, list(of_probe.values()))
    around = _around(near, values)
    for probe, figures in zip(of_probe, beside, strict=True):
        if len(figures):
            around[probe] = np.nanmedian(figures)
    return values, around


def _around(near: Sequence[Near], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the median over each row's neighbours (its own value if it has none)."""
    result = values.copy()
    for members, others in near:
        result[members] = company(values, others, members)
    return result


def _mean(trajectories: Trajectories | Folded, observable: Observable) -> NDArray[np.float32]:
    """Return the mean over the recorded epochs, float32 (rows,)."""
    result = np.empty(trajectories.rows, dtype=np.float32)
    for rows, block in trajectories.blocks(observable):
        result[rows] = block.mean(axis=1)
    return result
