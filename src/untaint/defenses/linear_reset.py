"""Linear reset, called NONE by its paper: units that some pictures of a label excite apart from all others are begun anew, and training goes on without these pictures (Wang Z., Ding, Zhai and Ma, NeurIPS 2022)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint import rng, run
from untaint.defenses._excited import FEW, Layer, compromised, positions, split, units_of
from untaint.defenses._perturbed import beside
from untaint.defenses.base import UNDEFENDED, Card, Defense, Outcome, Task
from untaint.errors import SpecError
from untaint.models.build import build
from untaint.scores import Scores, Verdict
from untaint.training import checkpoint
from untaint.training.cost import Meter
from untaint.training.device import device, keyed
from untaint.training.tuning import Clean

__all__ = ["LinearReset", "begun_anew", "suspicion"]

NAME = "linear-reset"
BATCH = 125
TWO_GROUPS = 0.7  # of the variance of a label's rows is between two groups of them, or they are one: of a normal distribution 0.64 is


@dataclass(frozen=True, kw_only=True)
class LinearReset(Defense):
    """The undefended model, NONE's way: its compromised units are begun anew, and it trains on without the pictures that excite them.

    The paper: a backdoor makes units linear for what has the trigger, always on the same side of their kink, so that the values of such a unit are in two clusters; it resets at most ``reset`` of the units of
    a layer, sets the inputs in the upper cluster aside and trains on, at ``learning_rate``, 40 epochs after 200: ``part`` of the training. What is ours: values are clustered within each
    label, as a class's own units part the classes as well; a unit is compromised where its split (Fisher's) explains more of the variance than that of the layer's median unit, by ``apart`` deviations; a row
    is set aside that is more than ``cut`` of the way from the lower to the upper group of its label, by the mean over all its compromised units; and it is done once, not each epoch.

    Where a label's poison is less than a tenth of it, no split finds it. Where nothing is found, the model stays what it was.
    """

    reset: float = 0.03
    learning_rate: float = 0.01
    part: float = 0.2
    apart: float = 4.0
    cut: float = 0.25

    card: ClassVar[Card | None] = Card(
        paper="Wang Z., Ding, Zhai and Ma, Training with more confidence: mitigating injected and natural backdoors during training (NONE), NeurIPS 2022",
        assumes="poison is a tenth of its class at least, and excites many units as no other picture of the class does",
        rate="threshold",
        several="in part",
        why="each attacker must have a tenth of its class",
        claim="success 55 times as low as without it, on average over five attacks on five data sets",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.reset <= 1 or not self.part > 0 or not self.learning_rate > 0:
            raise SpecError(
                f"reset is {self.reset}, part {self.part}, learning_rate {self.learning_rate}; give a share from 0 to 1, and twice more than 0."
            )
        if not self.apart > 0 or not 0 < self.cut < 1:
            raise SpecError(f"apart is {self.apart}, cut {self.cut}; give more than 0, and a place between 0 and 1.")

    def defend(self, task: Task) -> Outcome:
        """Return the model, how much each row excites its label's compromised units, and who was set aside for it."""
        source, out, where = task.reference(), task.scratch / "reset", task.where or device()

        @functools.cache
        def found() -> dict[str, Layer]:
            model = task.load(UNDEFENDED).to(where)
            return compromised(model, task.examples, self.apart, seed=task.seed, where=where, progress=task.progress)

        def excitement() -> NDArray[np.float32]:
            model = task.load(UNDEFENDED).to(where)
            return positions(model, task.examples, found(), where=where, progress=task.progress)

        excites = task.once(beside(task, f"excited-{self.apart:g}"), excitement)
        values = suspicion(excites, task.examples.labels, self.cut)
        verdict = self._verdict(values, task)
        if not verdict.rejected.any():
            return Outcome(scores=_scores(values, excites), verdict=verdict, model=source)
        if run.finished(out) is None:
            meter = Meter()
            kept = np.setdiff1d(task.examples.rows, verdict.rows)
            model = self._trained_on(begun_anew(task.load(UNDEFENDED), _fresh(task), found(), self.reset), kept, task)
            checkpoint.save_model(out, model, {**checkpoint.read_card(source), "rows": len(kept)})
            run.finish(out, files=[out / "model.safetensors", out / "model.json"])
            meter.cost().save(out)
        return Outcome(scores=_scores(values, excites), verdict=verdict, model=out)

    def _trained_on(self, model: nn.Module, kept: NDArray[np.int64], task: Task) -> nn.Module:
        recipe = task.preset.retrain
        return Clean(
            examples=task.examples.take(kept),
            augment=recipe.augment,
            seed=task.seed,
            where=task.where or device(),
            progress=task.progress,
        ).tune(
            model,
            steps=math.ceil(self.part * recipe.epochs * len(kept) / BATCH),
            learning_rate=self.learning_rate,
            batch=BATCH,
            what="train on",
        )

    def _verdict(self, values: NDArray[np.float32], task: Task) -> Verdict:
        rejected = np.nan_to_num(values) > 1
        rejected[task.probes] = False
        count = np.count_nonzero(rejected)
        return Verdict(
            rejected=rejected,
            p_values=np.full(len(values), np.nan),
            threshold=1.0,
            rule="above:score=1",
            note=f"{count:,} rows excite compromised units more than is {self.cut:.0%} of the way from most of their class to those that excite them most.",
        )


def suspicion(excites: NDArray[np.float32], labels: NDArray[np.int64], cut: float) -> NDArray[np.float32]:
    """Return how much each row excites its label's units, in parts of what is ``cut`` of the way from the mean of the label's lower group to that of its upper one: float32 (all rows,).

    0 for rows of a label that is all one group, nan for no members.
    """
    values = np.where(np.isnan(excites), np.nan, 0).astype(np.float32)
    members = ~np.isnan(excites)
    for label in np.unique(labels[members]):
        own = np.flatnonzero(members & (labels == label))
        if len(own) < FEW or not excites[own].any():
            continue
        groups = split(excites[own][:, None])
        if groups.explained[0] > TWO_GROUPS:
            values[own] = excites[own] / (groups.low + cut * (groups.high - groups.low))
    return values


def begun_anew(model: nn.Module, fresh: nn.Module, found: dict[str, Layer], share: float) -> nn.Module:
    """Return the model itself with the compromised units of each layer, at most a share of it and the most compromised ones, as they are in ``fresh``, a network of the same architecture."""
    other = units_of(fresh)
    for name, layer in units_of(model).items():
        if name not in found:
            continue
        apart = found[name].units()
        most = np.argsort(-apart, kind="stable")[: math.ceil(share * len(apart))]
        which = torch.from_numpy(most[apart[most] > 0]).to(layer.weight.device)
        with torch.no_grad():
            for own, begun in zip(layer.parameters(), other[name].parameters(), strict=True):  # weights, and biases
                own[which] = begun.to(own.device)[which]
    return model


def _fresh(task: Task) -> nn.Module:
    """Return an untrained network of the task's architecture, with other weights than training began with."""
    if task.model is not None:
        with keyed(torch.device("cpu"), task.seed, NAME):
            return task.model()
    size: tuple[int, int, int] = tuple(task.examples.images.shape[1:])
    return build(task.preset.retrain.model, len(task.examples.class_names), size, seed=rng.derive(task.seed, NAME))


def _scores(values: NDArray[np.float32], excites: NDArray[np.float32]) -> Scores:
    return Scores(values=values, name=NAME, parts={"excites": excites})
