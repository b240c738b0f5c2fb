"""STRIP: rows whose class the model still names, and surely, when other pictures are laid over them (Gao, Xu, Wang, Chen, Ranasinghe and Nepal, 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from untaint import rng
from untaint.defenses._perturbed import above_probes, beside, finite, likely, need_probes, parts, reference
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores

__all__ = ["Strip", "entropies"]

FEWEST = 3  # probes: of two, each laid over the other, nothing is learned


@dataclass(frozen=True, kw_only=True)
class Strip(Detector):
    """How sure the model stays of a picture with others laid over it: 0 as the median of the probes, above 1 more than all but a share ``false_positives`` of them.

    The undefended model sees each picture with ``overlays`` probes laid over it, each drawn for it: ``alpha`` times the probe is added, and nothing cut off, or (``mix=blend``) takes the place of as much of the picture. The entropy of what it
    says, mean over the mixtures (part ``entropy``, in nats), is low where a trigger decides whatever lies over it. Gao et al. (ACSAC 2019) look at what a model is asked; here it is
    what it was trained on. Their program adds whole pictures, as here. The threshold is theirs: the entropy below which a share of clean pictures lies, of probes here. Raises SpecError for fewer than 3 probes.
    """

    overlays: int = 64
    alpha: float = 1.0
    mix: Literal["add", "blend"] = "add"
    false_positives: float = 0.05

    card: ClassVar[Card | None] = Card(
        paper="Gao, Xu, Wang, Chen, Ranasinghe and Nepal: STRIP, ACSAC 2019",
        assumes="a trigger decides whatever other pictures lie over it",
        clean=3,
        rate="threshold",
        claim="patches on questions put to a model found with errors of about 1 %; measured by others in training sets at 10 %: 69 % found, with 11 % of clean pictures",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=1"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.overlays < 1:
            raise SpecError(f"overlays is {self.overlays}; give at least 1, such as 64.")
        if not 0 < self.alpha <= 1:
            raise SpecError(
                f"alpha is {self.alpha}; give the weight of what is laid over a picture, above 0 and at most 1."
            )
        if self.mix not in ("add", "blend"):
            raise SpecError(f"mix is '{self.mix}'; give add or blend.")
        if not 0 < self.false_positives < 0.5:
            raise SpecError(f"false_positives is {self.false_positives}; give a share above 0 and below 0.5.")

    def score(self, task: Task) -> Scores:
        """Return by how much each row's entropy is below the probes'."""
        need_probes(task, "strip", FEWEST)
        folder = beside(task, f"strip-{self.mix}-{self.overlays}-{self.alpha:g}-{task.seed}", task.probes)
        entropy = task.once(folder, lambda: entropies(task, self))
        values = above_probes(-entropy, task.probes, self.false_positives).astype(np.float32)
        return Scores(values=values, name="strip", parts={"entropy": entropy})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        count = len(task.examples)
        return [(UNDEFENDED, task.preset.retrain.epochs * count, self.overlays * count)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how sure the model stays."""
        return [
            f"the model stays sure of it under other pictures (entropy {scores.parts['entropy'][row]:.3g})"
            for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what STRIP cannot tell."""
        return [
            "Triggers that other pictures hide, as warps, and those that act in pictures of one class only, are not seen; clean pictures that are very plain may be.",
            "About as many clean pictures as the option false_positives says are set aside, poison or not.",
        ]


def entropies(task: Task, options: Strip) -> NDArray[np.float32]:
    """Return the mean entropy, in nats, of what the undefended model says of each row mixed with probes: float32 (all rows,), nan for no members.

    Raises InputError if the model's answers are not finite.
    """
    model, store = reference(task)
    rows, count = task.examples.rows, min(options.overlays, len(task.probes) - 1)
    values = np.full(task.examples.total, np.nan, dtype=np.float32)
    with task.progress.step("lay pictures over them", len(rows) * count) as step, torch.inference_mode():
        for block in parts(rows, task.examples.images.shape):
            drawn = _drawn(task, block, count)
            images = store.gather(block)[0]
            if options.mix == "blend":
                images = images * (1 - options.alpha)
            total = torch.zeros(len(block), device=images.device)
            for over in drawn.T:
                mixed = torch.add(images, store.gather(np.ascontiguousarray(over))[0], alpha=options.alpha)
                total += torch.special.entr(likely(model, mixed)).sum(dim=1)
                step.advance(len(block))
            values[block] = finite(total / count)
    return values


def _drawn(task: Task, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return so many different probes for each row, never itself: (rows, count)."""
    lots = rng.uniform(task.seed, "defenses/strip", 0, rows, len(task.probes))
    lots[rows[:, None] == task.probes[None, :]] = 2.0
    return np.asarray(task.probes[np.argsort(lots, axis=1, kind="stable")[:, :count]])
