"""Cross-examination: what only models that saw the distrusted part can explain is suspicious.

1. Watchers each train briefly on a random half and record every row, so that each row is known in-sample
   (by the watcher that trained on it) and out of fold (by the other). Each half is watched in two
   views, of the pictures as they are and of whitened ones: a smooth trigger is learned in the
   first, a faint and fine one in the second.
2. Two signs need no witness: the row's trajectories are far from the probes', and its features are
   stranger to the probes than to everybody. Poison comes in company, so that each sign counts again
   as the median over a row's nearest neighbours of the same label in the watchers' early features.
   What the probes of a class have more of than all probes is no sign in that class. The rows that
   are least suspicious by all of these are trusted: half of all, and at least a fifth of each class;
   those last whose pixels have an unusual pattern in common. Probes that have one are no probes here; where none are given,
   rows drawn by lot stand in.
3. A witness is trained on the trusted rows alone.
4. The third sign: the watchers explain the row's label better than the witness does. A hard or
   wrongly labelled picture is explained by neither; poison is explained even out of fold, by the
   other poison with its trigger, and by the witness not at all.
5. A row's score is the sum over the three signs and their company, each in units of its spread
   and taken from the view in which it is larger; then the inverse hyperbolic sine of that, in units
   of its own spread, so that no clean row is far to the right.
6. Patterns that pixels of a class have in common are laid over clean pictures of other classes. One that
   makes the watchers say its class, and the witness not, is a trigger, and adds to the score of those who have it;
   so does one that is unusual: models may not have learned it, as clean-label poison often is not.
7. A trigger that models have learned need not be a pattern of pixels. Pictures in whose company the label comes out of fold, while the
   witness takes them for now one class, now another, have such a trigger; that adds as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.defenses._figures import beside_class, beside_probes, bounded, largest, ranked, scaled
from untaint.defenses._groups import Answers, grouped
from untaint.defenses._learned import learned
from untaint.defenses._recovered import Recovered, recover, shared, triggers
from untaint.defenses._trust import trust
from untaint.defenses._view import View, Watching
from untaint.defenses.base import Card, Detector, Task
from untaint.errors import SpecError
from untaint.models.build import require
from untaint.recipe import Preset, Recipe
from untaint.scores import Group, Scores, Verdict
from untaint.training.loop import Watch
from untaint.trajectories import Trajectories

__all__ = ["CrossExamination"]

TESTIMONY = 3  # the witness is asked after each of its last epochs; their mean is steadier than one
SHORTEST = 4  # epochs of a watcher; whether longer ones tell more is asked by experiments/cost.toml
FEWEST = 10  # probes without an unusual pattern, with which others are compared; with fewer, all are
COMPANY = " of company"
WORKS = 1.5  # added to the score of a row with a trigger that works; 3 is about as far as other signs go
SURE = 4.0  # with one that many have, or an unusual one: the other signs, which are of what models have learned, may say nothing of it
LEARNED = 4.0  # with a trigger that models have learned, whatever pixels show
PLAIN = 2.0  # a sign of so many deviations is worth a word
_SAYS = {
    "gap": "models that saw the distrusted part explain its label better than the witness (margin {margin:+.1f})",
    "strangeness": "its features are strange to the probes",
    "distance": "it was learned unlike the probes",
}


@dataclass(frozen=True, kw_only=True)
class CrossExamination(Watching, Detector):
    """Suspicion of examples whose label is better explained by models that saw the distrusted part than by one that did not.

    ``trusted``: share of all rows that the witness is trained on. ``floor``: share of each class
    that it sees at least. ``own``: weight of a row's
    own signs beside its company's. ``steps``: a watcher trains for so many, or for four epochs if these are more,
    but no longer than the preset says. ``views``: in which each half is watched (a network of your own always sees pictures as
    they are). ``beside``: what is taken off the signs of a class without witness: how much further its probes lie than all probes, or how much further the class does, or
    nothing. ``witnesses``: how many, each from other weights; what they say is averaged. ``witness_model``: their architecture, if another. ``rounds``: in each but
    the first it is chosen again whom to trust, with what the witness before has told. ``two_sided``: a gap counts in either direction.
    ``patterns``: whether patterns are looked for. ``learned``: whether triggers that models have learned are.
    ``without``: a kind of sign that is left out, to see what it is worth. How it is watched: see ``Watching``.
    What each is worth: docs/results.md.
    """

    trusted: float = 0.5
    floor: float = 0.2
    own: float = 1.0
    steps: int = 160
    views: Literal["both", "plain", "whitened"] = "both"
    beside: Literal["probes", "class", "nothing"] = "probes"
    witnesses: int = 1
    witness_model: str = ""
    rounds: int = 1
    two_sided: bool = False
    patterns: bool = True
    learned: bool = True
    without: Literal["nothing", "gap", "distance", "strangeness", "company"] = "nothing"

    card: ClassVar[Card | None] = Card(
        paper="this project's own",
        assumes="a trigger can be explained only by models that saw poison with it",
    )
    version: ClassVar[int] = 8
    stages: ClassVar[tuple[str, ...]] = ("watcher-a", "watcher-b", "whitened-a", "whitened-b", "witness")
    fixed: ClassVar[tuple[str, ...]] = (
        *(field.name for field in fields(Watching)),
        "trusted",
        "floor",
        "steps",
        "views",
        "beside",
        "witnesses",
        "witness_model",
        "rounds",
        "patterns",
        "without",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.floor <= self.trusted < 1:
            raise SpecError(f"floor is {self.floor} and trusted {self.trusted}; give 0 < floor <= trusted < 1.")
        if self.own < 0:
            raise SpecError(f"own is {self.own}; give 0 or more.")
        for name in ("steps", "witnesses", "rounds"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        if self.witness_model:
            require(self.witness_model)

    def require(self, preset: Preset) -> None:
        """Refuse a preset that records only rows trained on."""
        if preset.record != "eval":
            raise SpecError(
                f"record is {preset.record}, but cross-examination asks each watcher about pictures it was not "
                "trained on. Give record eval, or the detector badloss."
            )

    def watching(self, task: Task) -> dict[str, Recipe]:
        """Return the recipe of each view's watchers, by the name of its stages."""
        recipe = self.changed(task.preset.watch)
        each = math.ceil(min(map(len, self.rows_of(task).values())) / recipe.batch)  # steps of an epoch
        plain = replace(recipe, epochs=min(recipe.epochs, max(SHORTEST, math.ceil(self.steps / max(1, each)))))
        whitened = replace(plain, pixels="whitened")
        if self.views == "plain" or task.model is not None or recipe.pixels == "whitened":
            return {"watcher": plain}
        return {"whitened": whitened} if self.views == "whitened" else {"watcher": plain, "whitened": whitened}

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the watchers and the witness."""
        rows, testimony = task.examples.rows, task.preset.witness.epochs
        watchers = [
            (f"{name}-{half}", len(own) * recipe.epochs, len(rows) * sum(map(watch.wants, range(recipe.epochs))))
            for name, recipe in self.watching(task).items()
            for watch in [self.watch(rows, recipe)]
            for half, own in self.rows_of(task).items()
        ]
        each = (round(len(rows) * self.trusted) * testimony, len(rows) * min(TESTIMONY, testimony))
        return [*watchers, *((name, *each) for turn in range(self.rounds) for name in self._witness_names(turn))]

    def score(self, task: Task) -> Scores:
        """Return the sum of the signs of every row, from two or four watchers and a witness."""
        found = shared(task) if self.patterns else []
        unusual = np.unique(
            np.concatenate([np.empty(0, np.int64), *(one.pattern.rows for one in found if one.unusual)])
        )
        probes = np.setdiff1d(task.compared_with, unusual)
        if len(probes) < FEWEST:
            probes = task.compared_with
        views = [View.gather(task, name, recipe, self, probes) for name, recipe in self.watching(task).items()]
        signs = {
            "distance": [view.distance for view in views],
            "distance" + COMPANY: [view.around(view.distance) for view in views],
            "strangeness": [view.strangeness for view in views],
            "strangeness" + COMPANY: [view.strange_company for view in views],
        }
        labels = task.examples.labels
        signs = {name: [self._beside(values, labels, probes) for values in sign] for name, sign in signs.items()}
        for turn in range(self.rounds):
            suspicion = self._suspicion(signs)
            suspicion[unusual] += 1  # the last to be trusted
            trusted = trust(task, suspicion, self.trusted, self.floor, self._name("trusted", turn))
            witnesses = self._testimony(task, trusted, turn)
            gaps = [[view.gap(witness) for witness in witnesses] for view in views]
            signs["gap"] = [np.mean([gap.own for gap in told], axis=0) for told in gaps]
            signs["gap" + COMPANY] = [view.around(own) for view, own in zip(views, signs["gap"], strict=True)]
        parts = {name: largest([bounded(values) for values in sign]) for name, sign in signs.items()}
        if self.two_sided:
            parts |= {name: np.abs(sign) for name, sign in parts.items() if name.startswith("gap")}
        values = self._sum(parts)
        stages = [[f"{name}-{half}" for half in self.halves] for name in self.watching(task)]
        tested = recover(task, found, trusted, stages)
        parts |= _counted(tested, task.examples.total)
        vouched = np.isin(np.arange(task.examples.total), trusted)
        parts["learned"] = learned(views, witnesses[0].predicted(), vouched, labels) * np.float32(self.learned)
        values += np.maximum(parts["trigger"], np.float32(LEARNED) * parts["learned"])
        parts["margin_gap"] = largest([np.mean([gap.margin for gap in told], axis=0) for told in gaps])
        parts["suspicion"] = suspicion
        parts["trusted"] = vouched.astype(np.float32)
        return Scores(values=values, name="cross-examination", parts=parts, triggers=tuple(triggers(tested)))

    def _suspicion(self, signs: dict[str, list[NDArray[np.float32]]]) -> NDArray[np.float32]:
        """Return the mean rank of every row by all signs known so far, in [0, 1]."""
        return ranked(
            *(largest([ranked(values) for values in sign]) for name, sign in signs.items() if self._counts(name))
        )

    def _beside(
        self, values: NDArray[np.float32], labels: NDArray[np.int64], probes: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return a sign of every row, less what all of its class have."""
        if self.beside == "probes":
            return beside_probes(values, labels, probes)
        return beside_class(values, labels) if self.beside == "class" else scaled(values)

    def _testimony(self, task: Task, trusted: NDArray[np.int64], turn: int) -> list[Trajectories]:
        """Train the witnesses on the trusted rows; they are asked about every row after each of their last epochs."""
        recipe = task.preset.witness
        if self.witness_model:
            recipe = replace(recipe, model=self.witness_model)
        watch = Watch(rows=task.examples.rows, epochs=range(max(0, recipe.epochs - TESTIMONY), recipe.epochs))
        said = []
        for number, name in enumerate(self._witness_names(turn)):
            own = task if number == 0 else replace(task, seed=rng.derive(task.seed, "witness", number))
            folder = own.fit(name, recipe, trusted, watch=watch, what="train the witness")
            said.append(Trajectories(folder / "trajectories"))
        return said

    def _witness_names(self, turn: int) -> list[str]:
        """Return the folders of a round's witnesses."""
        name = self._name("witness", turn)
        return [name, *(f"{name}-{number + 1}" for number in range(1, self.witnesses))]

    def _name(self, what: str, turn: int) -> str:
        """Return what belongs to a round by name; the last round's have the plain one."""
        return what if turn == self.rounds - 1 else f"{what}-of-round-{turn + 1}"

    def _sum(self, signs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Add the signs up; the order stays, but the long tail of hard clean pictures is drawn in."""
        total = np.zeros_like(signs["gap"])
        for name, figures in signs.items():
            if not self._counts(name):
                continue
            total += figures if name.endswith(COMPANY) else np.float32(self.own) * figures
        return np.arcsinh(scaled(total))

    def _counts(self, sign: str) -> bool:
        return not sign.startswith(self.without) and not (self.without == "company" and sign.endswith(COMPANY))

    def groups(self, scores: Scores, verdict: Verdict, task: Task) -> tuple[Group, ...]:
        """Return who of those set aside belongs together, as the watchers see and answer; of models that are there."""
        names = list(self.watching(task))
        told = Answers(
            watchers=[self.folded(task, name)[1].predicted() for name in names],
            witness=Trajectories(task.scratch / "witness" / "trajectories").predicted(),
            trusted=scores.parts["trusted"] > 0,
        )
        views = [self.feature_files(task, name) for name in names]
        rows = np.setdiff1d(task.examples.rows, task.outside)
        rejected = np.intersect1d(np.flatnonzero(verdict.rejected), rows)
        kept, labels = np.setdiff1d(rows, rejected), task.examples.labels
        bound = scores.parts["learned"] == 1
        return grouped(rejected, kept, labels, scores.triggers, views, told, self.neighbours, bound, task.seed)

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row which signs speak against it, the strongest first."""
        parts = scores.parts
        own = np.stack([parts[name][rows] for name in _SAYS])
        near = np.stack([parts[name + COMPANY][rows] for name in _SAYS])
        said = []
        for row, mine, theirs in zip(rows, own.T, near.T, strict=True):
            order = [index for index in np.argsort(-mine, kind="stable") if mine[index] > PLAIN]
            words = [list(_SAYS.values())[index].format(margin=parts["margin_gap"][row]) for index in order]
            if parts["trigger"][row]:
                words.insert(
                    0, _on_trigger(*(float(parts[name][row]) for name in ("trigger", "seen", "unseen", "works")))
                )
            elif parts["learned"][row] == 1:
                words.insert(
                    0,
                    "pictures like it teach its label, and a model that saw none of them takes them for many different classes",
                )
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
            "A rare kind of clean picture that lies wholly in the distrusted part looks like poison. Such pictures come in "
            "clumps of one class, and the error rate does not hold for them. Look before you delete.",
        ]


def _counted(found: Sequence[Recovered], rows: int) -> dict[str, NDArray[np.float32]]:
    """Return what a trigger adds to the score of each row, and how often it works, as parts of the score."""
    parts = {name: np.zeros(rows, dtype=np.float32) for name in ("trigger", "seen", "unseen", "works")}
    for one in sorted(
        found, key=lambda one: (one.unusual or one.proven, one.works)
    ):  # the surest comes last, and counts
        if one.works or one.unusual:
            own, whole = one.pattern, SURE if one.unusual or one.proven else WORKS
            parts["trigger"][own.doubtful] = np.maximum(parts["trigger"][own.doubtful], own.nearly**2 * whole)
            parts["trigger"][own.rows] = whole
            for name in ("seen", "unseen", "works"):
                parts[name][own.rows] = getattr(one, name)
    return parts


def _on_trigger(added: float, seen: float, unseen: float, works: float) -> str:
    """Say what a row has of a trigger, and what that does."""
    if added not in (WORKS, SURE):
        return "it has a part of a trigger that others of its label have"
    if works:
        return (
            f"it has in common with others of its label what makes the watchers take {max(0.0, seen):.0%} of other clean pictures "
            f"for it (the witness: {max(0.0, unseen):.0%})"
        )
    return "it has in common with others of its label what natural pictures do not have"
