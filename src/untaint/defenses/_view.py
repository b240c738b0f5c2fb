"""One way to look at the pictures, plain or whitened: the watchers, and the signs that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.defenses._company import company, neighbours, side_by_side
from untaint.defenses._distance import Centre, distances
from untaint.defenses._figures import ranked, scaled
from untaint.defenses._folded import Folded
from untaint.defenses._strangeness import strangeness
from untaint.defenses.base import Task
from untaint.errors import SpecError
from untaint.examples import Examples
from untaint.models.build import require
from untaint.recipe import Augment, Recipe
from untaint.training.loop import Watch
from untaint.trajectories import Observable, Trajectories, epoch_files

__all__ = ["Gap", "Near", "View", "Watching", "early_epochs", "probe_distance"]

LOSSES = ("ce", "log-ce")  # the lower, the better explained
Near = tuple[NDArray[np.int64], NDArray[np.int64]]  # some rows of one class, and (rows, count) their neighbours


@dataclass(frozen=True, kw_only=True)
class Watching:
    """How a view is watched, and what is compared of that.

    ``watchers``: one on each half of the pictures, or one on all of them. ``sample``: the share of its half on which a watcher trains. ``watch_model``: its architecture, if another.
    ``watch_augment``: what is done to pictures that it trains on, if not what the preset says. ``recorded``: after which epochs all pictures are looked at: ``other`` is every second one, ``late`` the second half, and the last is
    always among them. ``features``: of which of these epochs a row's company is found. ``neighbours``: how many make it.
    ``observable``: what is compared, ``both``: the margin by its distance, margin and log loss by their gap. ``centre``: whether trajectories are compared
    as they are, or less the median of their class, or both. ``judged``: a row by both watchers of its half, or only by the one that did not train
    on it, or by the one that did.
    """

    watchers: Literal["halves", "one"] = "halves"
    sample: float = 1.0
    watch_model: str = ""
    watch_augment: Literal["preset", Augment] = "preset"
    recorded: Literal["all", "other", "late", "last"] = "all"
    features: Literal["early", "last"] = "early"
    neighbours: int = 10
    observable: Literal["both", Observable] = "both"
    centre: Literal["both", "none", "class"] = "both"
    judged: Literal["both", "out-of-fold", "in-sample"] = "both"

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise SpecError(f"neighbours is {self.neighbours}; give at least 1.")
        if not 0 < self.sample <= 1:
            raise SpecError(f"sample is {self.sample}; give a share above 0, at most 1.")
        if self.watch_model:
            require(self.watch_model)

    @property
    def halves(self) -> str:
        """The letter of each watcher."""
        return "a" if self.watchers == "one" else "ab"

    def changed(self, recipe: Recipe) -> Recipe:
        """Return a watcher's recipe with what is asked for here."""
        augment = recipe.augment if self.watch_augment == "preset" else self.watch_augment
        return replace(recipe, model=self.watch_model or recipe.model, augment=augment)

    def rows_of(self, task: Task) -> dict[str, NDArray[np.int64]]:
        """Return the rows that each watcher trains on, by its letter."""
        rows, first = task.examples.rows, task.first_half()
        own = {"a": rows} if self.watchers == "one" else {"a": rows[first[rows]], "b": rows[~first[rows]]}
        if self.sample == 1:
            return own
        return {
            half: rng.choose(task.seed, f"sample/{half}", its, max(2, round(self.sample * len(its))))
            for half, its in own.items()
        }

    def watch(self, rows: NDArray[np.int64], recipe: Recipe) -> Watch:
        """Return what a watcher records."""
        last, early = recipe.epochs - 1, early_epochs(recipe)
        epochs = {
            "all": range(recipe.epochs),
            "other": range(last % 2, recipe.epochs, 2),
            "late": range(recipe.epochs // 2, recipe.epochs),
            "last": range(last, recipe.epochs),
        }[self.recorded]
        features = [epoch for epoch in epochs if epoch in early] if self.features == "early" else []
        return Watch(rows=rows, epochs=None if self.recorded == "all" else epochs, features=features or [last])

    def folded(self, task: Task, name: str) -> tuple[Folded, Folded]:
        """Return what was recorded of each row by the watcher of its half, and by the other one, of a view by its name."""
        told = [Trajectories(task.scratch / f"{name}-{half}" / "trajectories") for half in self.halves]
        first = task.first_half()
        return Folded(told[0], told[-1], first), Folded(told[-1], told[0], first)

    def feature_files(self, task: Task, name: str) -> list[Path]:
        """Return the files of features of a view's watchers."""
        return [path for half in self.halves for path in epoch_files(task.scratch / f"{name}-{half}" / "features")]


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
    compared: tuple[Observable, ...]
    near: list[Near]
    distance: NDArray[np.float32]
    strangeness: NDArray[np.float32]
    strange_company: NDArray[np.float32]

    @classmethod
    def gather(cls, task: Task, name: str, recipe: Recipe, how: Watching, probes: NDArray[np.int64]) -> View:
        """Train the watchers, find each row's neighbours, and measure what needs no witness."""
        rows, labels = task.examples.rows, task.examples.labels
        said = "" if name == "watcher" else f", {name}"
        for half, own in how.rows_of(task).items():
            what = f"watch half {half.upper()}{said}" if how.watchers == "halves" else f"watch all{said}"
            task.fit(f"{name}-{half}", recipe, own, watch=how.watch(rows, recipe), what=what)
        files = how.feature_files(task, name)
        near = []
        for label in np.unique(labels[rows]):
            members = rows[labels[rows] == label]
            if files and len(members) > 1:
                near.append((members, neighbours(side_by_side(files, members), members, how.neighbours)))
        inside, outside = how.folded(task, name)
        judges = {"both": (inside, outside), "out-of-fold": (outside,), "in-sample": (inside,)}[how.judged]
        far = probe_distance(judges, labels, probes, how)
        compared: tuple[Observable, ...] = ("margin", "log-ce") if how.observable == "both" else (how.observable,)
        return cls(judges, outside, compared, near, far, *_strangeness(task.examples, probes, files, near))

    def around(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the company of each row has of these values."""
        return _around(self.near, values)

    def gap(self, witness: Trajectories) -> Gap:
        """Compare what the row's watchers recorded, usually margin and log loss, with what the witness did."""
        own = np.zeros(witness.rows, dtype=np.float32)
        told = {observable: _mean(witness, observable) for observable in ("margin", *self.compared)}
        for watcher in self.judges:
            for observable in self.compared:
                better = _mean(watcher, observable) - told[observable]
                own += scaled(-better if observable in LOSSES else better)
        return Gap(own, _mean(self.out_of_fold, "margin") - told["margin"])


def early_epochs(recipe: Recipe) -> tuple[int, ...]:
    """Return the four epochs whose features are kept: a sixth to two thirds of the way."""
    return tuple(sorted({min(recipe.epochs - 1, round(recipe.epochs * part / 6)) for part in (1, 2, 3, 4)}))


def probe_distance(
    trajectories: Sequence[Folded], labels: NDArray[np.int64], probes: NDArray[np.int64], how: Watching
) -> NDArray[np.float32]:
    """Return the mean rank of the distances to the probes, usually of the margin, plain and class-centred."""
    observable: Observable = "margin" if how.observable == "both" else how.observable
    centres: tuple[Centre, ...] = ("none", "class") if how.centre == "both" else (how.centre,)
    return ranked(
        *(
            distances(seen, probes, observable=observable, centre=centre, labels=labels)  # type: ignore[arg-type]
            for seen in trajectories
            for centre in centres
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
