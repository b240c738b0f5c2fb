"""What a defence is given (``Task``), what it gives back (``Outcome``), and the kinds of it.

A defence sees pictures, labels and probes; nothing here can reach the ledger of who was poisoned.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint import rng, run
from untaint.errors import RunError, SpecError
from untaint.examples import Examples
from untaint.models.build import build
from untaint.progress import Progress
from untaint.recipe import Preset, Recipe
from untaint.scores import Group, Rule, Scores, Verdict
from untaint.training import checkpoint
from untaint.training.cost import Meter
from untaint.training.device import Trial, device, keyed, trial
from untaint.training.features import features
from untaint.training.loop import Watch, fit
from untaint.training.objective import Objective
from untaint.training.tuning import Clean

__all__ = ["UNDEFENDED", "Card", "Defense", "Detector", "Mender", "Outcome", "Task"]

UNDEFENDED = "undefended"  # folder of the model trained on everything
STAND_INS = 250  # rows that stand in for probes where there are none


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a defence may know and use.

    ``examples``: the data, perhaps poisoned. ``probes``: rows of it that somebody vouches for; perhaps none.
    ``set_aside``: rows that a detector took out of ``examples`` before. ``outside``: rows that were appended from a folder of trusted pictures (a part of the probes).
    ``scratch``: where stages leave what they made; with ``store``, models lie there and are shared by all
    tasks on the same examples that train them in the same way. ``model``: makes an untrained network of the
    user's own, which cannot be shared by its recipe. ``train``: False forbids training, so that only what is there may be used.
    """

    examples: Examples
    probes: NDArray[np.int64]
    preset: Preset
    rule: Rule
    scratch: Path
    seed: int
    progress: Progress
    outside: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    set_aside: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    model: Callable[[], nn.Module] | None = None
    where: torch.device | None = None
    train: bool = True
    store: Path | None = None

    def __post_init__(self) -> None:
        assert self.store is None or self.model is None, "a store knows models by their recipes"

    @functools.cached_property
    def compared_with(self) -> NDArray[np.int64]:
        """The rows with which others are compared: the probes, or where there are none, rows drawn by lot, which may be poisoned."""
        return self.probes if len(self.probes) else rng.choose(self.seed, "stand-ins", self.examples.rows, STAND_INS)

    def fit(
        self,
        stage: str,
        recipe: Recipe,
        rows: NDArray[np.int64] | None = None,
        *,
        watch: Watch | None = None,
        objective: Objective | None = None,
        what: str,
    ) -> Path:
        """Train a model on some rows (default all), once: its folder ``scratch/stage``, done before or now; with an ``objective`` of its own no other defence shares it."""
        chosen = self.examples if rows is None else self.examples.take(rows)
        out = self.scratch / stage
        if self.store is not None and objective is None:
            self._share(out, recipe, chosen.rows, watch)
        if run.finished(out) is None:
            if not self.train:
                raise RunError(
                    f"{self.scratch} has no finished {stage}. Finish the run first: untaint scan with the same settings and --out {self.scratch}."
                )
            fit(
                chosen,
                recipe,
                out,
                seed=self.seed,
                watch=watch,
                model=self.model,
                where=self.where,
                progress=self.progress,
                what=what,
                objective=objective,
            )
        checkpoint.drop_state(out)  # a process may have been killed just before it did
        return out

    def _share(self, out: Path, recipe: Recipe, rows: NDArray[np.int64], watch: Watch | None) -> None:
        """Make ``out`` a link to the store's folder of the model trained in just this way, by whomever."""
        assert self.store is not None
        what: list[Any] = [recipe.facts(), self.seed, _digest(rows)]
        if watch is not None:
            epochs = None if watch.epochs is None else sorted(watch.epochs)
            what.append([_digest(watch.rows), watch.when, epochs, sorted(watch.features)])
        place = self.store / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:20]
        place.mkdir(parents=True, exist_ok=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.is_symlink():
            out.symlink_to(os.path.relpath(place.resolve(), out.parent.resolve()))

    def trial(self) -> Trial:
        """Find out in seconds which precision is the faster here, and how long a picture takes."""
        recipe, place, examples = self.preset.watch, self.where or device(), self.examples
        size: tuple[int, int, int] = tuple(examples.images.shape[1:])
        with keyed(place, 0, "trial"):
            network = self.model() if self.model else build(recipe.model, len(examples.class_names), size)
        return trial(network, recipe, size, place)

    def load(self, stage: str) -> nn.Module:
        """Return the model that ``fit`` left under this name, in eval mode."""
        return checkpoint.load_model(self.scratch / stage, self.model() if self.model else None)

    def first_half(self) -> NDArray[np.bool_]:
        """Return a random half of the rows as a mask over all: the same in every defence."""
        first = np.zeros(self.examples.total, dtype=bool)
        first[rng.choose(self.seed, "halves", self.examples.rows, len(self.examples) // 2)] = True
        return first

    def reference(self) -> Path:
        """Return the folder of the undefended model: trained on everything, as the clean model will be."""
        return self.fit(UNDEFENDED, self.preset.retrain, what="train the undefended model")

    def features(self) -> NDArray[np.float32]:
        """Return what the undefended model sees in each row, its penultimate features: float32 (all rows, width)."""
        place = self.reference().resolve()  # beside the model, which may be shared
        return self.once(
            place.with_name(f"{place.name}-features"),
            lambda: features(self.load(UNDEFENDED), self.examples, self.where, self.progress),
        )

    @staticmethod
    def once(folder: Path, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return an array that is computed the first time and then read from ``folder``."""
        if run.finished(folder) is None:
            run.save_array(folder / "values.npy", make())
            run.finish(folder)
        return np.asarray(run.load_array(folder / "values.npy"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a defence gives back: scores and verdict (if it judges examples) and a clean model's folder."""

    scores: Scores | None
    verdict: Verdict | None
    model: Path | None


def _digest(rows: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Card:
    """What people want to know of a defence before they take it.

    ``paper``: who proposed it, and where. ``clean``: how many pictures known to be clean it needs at least; 0: none. ``rate``: what it must know of how much is poisoned: ``none``, nothing;
    ``share``: a share is set aside whatever the rate; ``threshold``: a constant that fits some rates better than others. ``several``: whether several attackers or targets at once are within what it assumes,
    and ``why`` not all.
    ``assumes``: what must be true of poison for it to work, in one phrase that goes on after "assumes that". ``claim``: what its paper reports, in words where no figure is known.
    """

    paper: str
    assumes: str
    clean: int = 0
    rate: Literal["none", "share", "threshold"] = "none"
    several: Literal["yes", "in part", "no"] = "yes"
    why: str = ""
    claim: str = ""


class Defense(ABC):
    """A defence: settings only; ``defend`` does the work and leaves files in ``task.scratch``.

    ``card``: what people want to know before they take it. ``version``: raised by hand whenever the same settings give other results than before, so that
    experiments know which of their results are of older code.
    """

    version: ClassVar[int] = 1
    card: ClassVar[Card | None] = None  # every one that comes with the package has one

    @abstractmethod
    def defend(self, task: Task) -> Outcome:
        """Return what was found and the folder of a model that does without it."""


class Detector(Defense):
    """A defence that scores examples. You write ``score``; deciding and retraining are done here.

    ``stages``: the folders of the models that ``score`` usually trains, in order (``work`` says which with other options). ``fixed``: options that
    what was trained depends on, so that they cannot be changed afterwards. ``usual_rule``: the rule
    that its paper decides by, taken where no other is asked for; None: the preset's.
    """

    stages: ClassVar[tuple[str, ...]] = ()
    usual_rule: ClassVar[str | None] = None
    fixed: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def score(self, task: Task) -> Scores:
        """Return how suspicious each row is, higher = more; scoring never decides."""

    def require(self, preset: Preset) -> None:
        """Raise SpecError if this detector cannot work with a preset; asked before anything is begun."""

    @abstractmethod
    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return, for each model to be trained, its folder and how many pictures pass through (training, recording)."""

    @final
    def decide(self, scores: Scores, task: Task) -> Verdict:
        """Return who is set aside by the task's rule; probes never are.

        Probes from a separate folder come from another distribution and take no part in it, nor do those with a trigger.
        """
        values = scores.values.copy()
        values[task.outside] = np.nan
        own = np.setdiff1d(task.probes, task.outside)
        for trigger in scores.triggers:
            values[np.intersect1d(own, trigger.rows)] = np.nan
        return task.rule.decide(dataclasses.replace(scores, values=values), labels=task.examples.labels, probes=own)

    @final
    def retrain(self, task: Task, rejected: NDArray[np.int64]) -> Path:
        """Return the folder of a model trained from scratch on all that is kept."""
        kept = np.setdiff1d(task.examples.rows, np.concatenate([rejected, task.outside]))
        return task.fit("model", task.preset.retrain, kept, what="train the clean model")

    @final
    def examine(self, task: Task) -> Outcome:
        """Score and decide; no model is trained on what is kept."""
        scores = self.score(task)
        return Outcome(scores=scores, verdict=self.decide(scores, task), model=None)

    @final
    def defend(self, task: Task) -> Outcome:
        """Score, decide, and train a clean model on what is kept."""
        found = self.examine(task)
        assert found.verdict is not None
        return dataclasses.replace(found, model=self.retrain(task, np.flatnonzero(found.verdict.rejected)))

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row one sentence on why it is suspicious."""
        finite = np.sort(scores.values[np.isfinite(scores.values)])
        below = np.searchsorted(finite, scores.values[rows]) / max(1, len(finite))
        return [f"more suspicious than {share:.1%} of the pictures" for share in below]

    def groups(self, scores: Scores, verdict: Verdict, task: Task) -> tuple[Group, ...]:
        """Return who of those set aside belongs together, and whether a trigger binds them; nothing from detectors that do not look into it."""
        return ()

    def limits(self) -> list[str]:
        """Return what this detector cannot tell, in sentences for people."""
        return []


class Mender(Defense):
    """A defence that changes a trained model with a few pictures known to be clean. You write ``mend``; the rest is done here.

    ``needs``: how many clean pictures it takes at least.
    """

    needs: ClassVar[int] = 10

    @abstractmethod
    def mend(self, model: nn.Module, clean: Clean) -> nn.Module:
        """Return the model, which may be changed itself, of the same architecture and in eval mode."""

    @final
    def mended(self, model: nn.Module, clean: Clean) -> nn.Module:
        """Return ``mend``'s model; raises SpecError where there are too few clean pictures."""
        if len(clean.examples) < self.needs:
            raise SpecError(
                f"there are {len(clean.examples)} pictures known to be clean; this defence needs {self.needs} at least, better 250. "
                "`untaint probes DATA --suggest 250 --out probes.txt` draws candidates to look at."
            )
        return self.mend(model, clean)

    @final
    def defend(self, task: Task) -> Outcome:
        """Return the undefended model, mended with the probes; nothing is scored."""
        clean = Clean(
            examples=task.examples.take(task.probes),
            augment=task.preset.retrain.augment,
            seed=task.seed,
            where=task.where or device(),
            progress=task.progress,
        )
        source, out = task.reference(), task.scratch / "mended"
        if run.finished(out) is None:
            meter = Meter()
            checkpoint.save_changed(out, self.mended(task.load(UNDEFENDED), clean), source)
            meter.cost().save(out)
        return Outcome(scores=None, verdict=None, model=out)
