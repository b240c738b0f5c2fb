"""Cross-examination: what only models that saw the distrusted part can explain is suspicious.

1. Watchers each train on a random half and record every row, so that each row is known in-sample
   (by the watcher that trained on it) and out of fold (by the other). Each half is watched in two
   views, of the pictures as they are and of whitened ones: a smooth trigger is learned in the
   first, a faint and fine one in the second.
2. Two signs need no witness: the row's trajectories are far from the probes', and its features are
   stranger to the probes than to everybody. Poison comes in company, so that each sign counts again
   as the median over a row's nearest neighbours of the same label in the watchers' early features.
   The rows that are least suspicious by all of these are trusted: half of all, and at least a fifth
   of each class.
3. A witness is trained on the trusted rows alone.
4. The third sign: the watchers explain the row's label better than the witness does. A hard or
   wrongly labelled picture is explained by neither; poison is explained even out of fold, by the
   other poison with its trigger, and by the witness not at all.
5. A row's score is the sum over the three signs and their company, each in units of its spread
   and taken from the view in which it is larger; then the inverse hyperbolic sine of that, in units
   of its own spread, so that clean rows reach about as far to the right as to the left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint import rng, run
from untaint.defenses._company import company, neighbours, side_by_side
from untaint.defenses._distance import distances
from untaint.defenses._strangeness import strangeness
from untaint.defenses.base import Detector, Task
from untaint.errors import RunError, SpecError
from untaint.recipe import Preset, Recipe
from untaint.scores import Scores
from untaint.training.loop import Watch
from untaint.trajectories import BLOCK, Observable, Trajectories

__all__ = ["CrossExamination", "trusted_rows"]

TESTIMONY = 3  # the witness is asked after each of its last epochs; their mean is steadier than one
COMPANY = " of company"
LEAST, MOST = -3.0, 8.0  # a sign, in median absolute deviations, counts for no less and no more


@dataclass(frozen=True, kw_only=True)
class CrossExamination(Detector):
    """How much better models that saw the distrusted part explain an example than one that did not, with two more signs.

    ``trusted``: share of all rows that the witness is trained on. ``floor``: share of each class
    that it sees at least. ``neighbours``: how many make a row's company. ``own``: weight of a row's
    own signs beside its company's. ``whitened``: each half is watched a second time, in whitened
    pictures (a network of your own always sees them as they are).
    """

    trusted: float = 0.5
    floor: float = 0.2
    neighbours: int = 10
    own: float = 1.0
    whitened: bool = True

    stages: ClassVar[tuple[str, ...]] = ("watcher-a", "watcher-b", "whitened-a", "whitened-b", "witness")
    fixed: ClassVar[tuple[str, ...]] = ("trusted", "floor", "neighbours", "whitened")

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

    def views(self, task: Task) -> dict[str, Recipe]:
        """Return the recipe of each view's watchers, by the name of its stages."""
        recipe = task.preset.watch
        if not self.whitened or task.model is not None or recipe.pixels == "whitened":
            return {"watcher": recipe}
        return {"watcher": recipe, "whitened": replace(recipe, pixels="whitened")}

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the watchers and the witness."""
        total, half = len(task.examples), len(task.examples) // 2
        testimony = task.preset.witness.epochs
        watchers = [
            (f"{name}-{half_name}", half * recipe.epochs, total * recipe.epochs)
            for name, recipe in self.views(task).items()
            for half_name in "ab"
        ]
        witness = (round(total * self.trusted) * testimony, total * min(TESTIMONY, testimony))
        return [*watchers, ("witness", *witness)]

    def score(self, task: Task) -> Scores:
        """Return the sum of the signs of every row, from two or four watchers and a witness."""
        examples = task.examples
        views = [_View.gather(task, name, recipe, self.neighbours) for name, recipe in self.views(task).items()]
        signs = {
            "distance": [view.distance for view in views],
            "distance" + COMPANY: [_around(view.near, view.distance) for view in views],
            "strangeness": [view.strangeness for view in views],
            "strangeness" + COMPANY: [view.strange_company for view in views],
        }
        suspicion = _ranked(*(_largest([_ranked(values) for values in sign]) for sign in signs.values()))
        trusted = self._trust(task, suspicion)
        witness = self._witness(task, trusted)
        gaps = [view.gap(witness) for view in views]
        signs["gap"] = [gap.own for gap in gaps]
        signs["gap" + COMPANY] = [_around(view.near, gap.own) for view, gap in zip(views, gaps, strict=True)]
        parts = {name: _largest([_bounded(values) for values in sign]) for name, sign in signs.items()}
        values = np.zeros(examples.total, dtype=np.float32)
        for name, figures in parts.items():
            values += figures if name.endswith(COMPANY) else np.float32(self.own) * figures
        values = np.arcsinh(_scaled(values))  # the order stays; the long tail of hard clean pictures is drawn in
        is_trusted = np.zeros(examples.total, dtype=np.float32)
        is_trusted[trusted] = 1
        margin = _largest([gap.margin for gap in gaps])
        parts = {**parts, "margin_gap": margin, "suspicion": suspicion, "trusted": is_trusted}
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
        """Return for each row which signs speak against it, the strongest first."""
        parts = scores.parts
        own = np.stack([parts[name][rows] for name in _SAYS])
        near = np.stack([parts[name + COMPANY][rows] for name in _SAYS])
        margins = parts["margin_gap"][rows]
        said = []
        for mine, theirs, margin in zip(own.T, near.T, margins, strict=True):
            order = [index for index in np.argsort(-mine, kind="stable") if mine[index] > PLAIN]
            words = [list(_SAYS.values())[index].format(margin=margin) for index in order]
            if theirs.max() > PLAIN:
                words.append(
                    "so it is with the pictures most like it" if words else "the pictures most like it stand out"
                )
            said.append("; ".join(words) or "no sign is strong, but all point the same way")
        return said

    def limits(self) -> list[str]:
        """Return what cross-examination cannot tell."""
        return [
            "Poison that the witness was trained on vouches for itself. The likeliest to get there is clean-label poison: "
            "pictures that really show what their label says, with a trigger on them.",
            "A trigger that the small watchers never learn is found only by its wrong label.",
            "A rare kind of picture that lies wholly in the distrusted part looks like poison. Look before you delete.",
        ]


PLAIN = 2.0  # a sign of so many deviations is worth a word
_SAYS = {
    "gap": "models that saw the distrusted part explain its label better than the witness (margin {margin:+.1f})",
    "strangeness": "its features are strange to the probes",
    "distance": "it was learned unlike the probes",
}


def _largest(figures: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return each row's largest figure."""
    return np.asarray(np.maximum.reduce(figures))


def _bounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values in units of their spread, none of which can outvote all others."""
    return np.clip(_scaled(values), LEAST, MOST)


Near = tuple[NDArray[np.int64], NDArray[np.int64]]  # some rows of one class, and (rows, count) their neighbours


def _around(near: Sequence[Near], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the median over each row's neighbours (its own value if it has none)."""
    result = values.copy()
    for members, others in near:
        result[members] = company(values, others, members)
    return result


def _strangeness(
    task: Task, files: Sequence[Path], near: Sequence[Near]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each row's strangeness and that of its company; a probe's company is judged without that probe."""
    of_probe = {int(probe): np.empty(0, dtype=np.int64) for probe in task.probes}
    for members, others in near:
        own = np.flatnonzero(np.isin(members, task.probes))
        of_probe.update(zip(members[own].tolist(), others[own], strict=True))
    examples = task.examples
    values, beside = strangeness(files, examples.labels, examples.rows, task.probes, list(of_probe.values()))
    around = _around(near, values)
    for probe, figures in zip(of_probe, beside, strict=True):
        if len(figures):
            around[probe] = np.nanmedian(figures)
    return values, around


@dataclass(frozen=True)
class _Gap:
    """How much better watchers explain each row than the witness does: ``own`` in all, ``margin`` out of fold."""

    own: NDArray[np.float32]
    margin: NDArray[np.float32]


@dataclass(frozen=True)
class _View:
    """One way to look at the pictures: what its two watchers know, and who keeps company with whom."""

    in_sample: Folded
    out_of_fold: Folded
    near: list[Near]
    distance: NDArray[np.float32]
    strangeness: NDArray[np.float32]
    strange_company: NDArray[np.float32]

    @classmethod
    def gather(cls, task: Task, name: str, recipe: Recipe, count: int) -> _View:
        """Train the watchers, find each row's neighbours, and measure what needs no witness."""
        rows, labels = task.examples.rows, task.examples.labels
        first = np.zeros(task.examples.total, dtype=bool)
        first[rng.choose(task.seed, "halves", rows, len(rows) // 2)] = True
        watch = Watch(rows=rows, features=early_epochs(recipe))
        said = "" if name == "watcher" else f", {name}"
        folders = [
            task.fit(f"{name}-{half}", recipe, rows[own[rows]], watch=watch, what=f"watch half {half.upper()}{said}")
            for half, own in (("a", first), ("b", ~first))
        ]
        a, b = (Trajectories(folder / "trajectories") for folder in folders)
        files = [path for folder in folders for path in sorted((folder / "features").glob("*.npy"))]
        near = []
        for label in np.unique(labels[rows]):
            members = rows[labels[rows] == label]
            if files and len(members) > 1:
                near.append((members, neighbours(side_by_side(files, members), members, count)))
        inside, outside = Folded(a, b, first), Folded(b, a, first)
        far = first_suspicion((inside, outside), labels, task.probes)
        return cls(inside, outside, near, far, *_strangeness(task, files, near))

    def gap(self, witness: Trajectories) -> _Gap:
        """Compare margin and log loss of the row's two watchers with the witness's."""
        margin, loss = _mean(witness, "margin"), _mean(witness, "log-ce")
        own = np.zeros(len(margin), dtype=np.float32)
        for watcher in (self.in_sample, self.out_of_fold):
            margin_gap = _mean(watcher, "margin") - margin
            own += _scaled(margin_gap) + _scaled(loss - _mean(watcher, "log-ce"))
        return _Gap(own, margin_gap)


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


def first_suspicion(
    trajectories: Sequence[Folded], labels: NDArray[np.int64], probes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the mean rank of the plain and the class-centred margin distances to the probes."""
    return _ranked(
        *(
            distances(seen, probes, observable="margin", centre=centre, labels=labels)  # type: ignore[arg-type]
            for seen in trajectories
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
