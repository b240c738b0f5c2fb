"""PSBD: rows of which the model stays sure when most of what it sees is dropped (Li, Chen, Liu and Wang, 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from untaint import rng
from untaint.defenses._dropping import PLACES, dropping
from untaint.defenses._perturbed import (
    above_probes,
    beside,
    finite,
    likely,
    need_probes,
    parts,
    reference,
)
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores

__all__ = ["Psbd", "chosen_rate", "shifts"]

FEWEST = 2  # probes: to each other one is compared
RATES = tuple(tenth / 10 for tenth in range(1, 10))
MANY = 0.8  # of the probes' answers shift at the rates that come into question


@dataclass(frozen=True, kw_only=True)
class Psbd(Detector):
    """How sure the model stays of a picture under dropout: 0 as the median of the probes, above 1 more than all but a share ``quantile`` of them.

    The undefended model sees each picture ``passes`` times with dropout behind each of its blocks (behind each layer of normalisation, where it has none). The part
    ``uncertainty`` is by how much the probability of what it says without dropout falls, on average. Of the rates 0.1 to 0.9 at which 80 % of the answers to probes shift to another class (of all, if there is none) that one is taken
    at which the answers to all rows shift the least often beside them. The rule taken here is the paper's, Li et al. (CVPR 2025): below the probes' lower quartile. Dropout that a network has of its own stays off. Raises SpecError for fewer than 2 probes.
    """

    passes: int = 3
    quantile: float = 0.25

    card: ClassVar[Card | None] = Card(
        paper="Li W., Chen, Liu and Wang: PSBD, CVPR 2025",
        assumes="a model stays sure of a trigger when features are dropped",
        clean=2,
        rate="threshold",
        claim="99 % found, with 14 % of clean pictures, on average at 10 %",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=1"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.passes < 1:
            raise SpecError(f"passes is {self.passes}; give at least 1, such as 3.")
        if not 0 < self.quantile < 0.5:
            raise SpecError(f"quantile is {self.quantile}; give a share above 0 and below 0.5, such as 0.25.")

    def score(self, task: Task) -> Scores:
        """Return by how much each row's uncertainty is below the probes'."""
        need_probes(task, "psbd", FEWEST)
        both = task.once(beside(task, f"psbd-{self.passes}-{task.seed}"), lambda: shifts(task, self.passes))
        shifted, uncertain = both[:, : len(RATES)], both[:, len(RATES) :]
        rate = chosen_rate(shifted[task.probes].mean(axis=0), shifted[task.examples.rows].mean(axis=0))
        uncertainty = np.ascontiguousarray(uncertain[:, rate])
        values = above_probes(-uncertainty, task.probes, self.quantile).astype(np.float32)
        return Scores(values=values, name="psbd", parts={"uncertainty": uncertainty})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        count = len(task.examples)
        return [(UNDEFENDED, task.preset.retrain.epochs * count, (1 + self.passes * len(RATES)) * count)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how little dropout does to it."""
        lost = scores.parts["uncertainty"][rows]
        return [f"the model stays sure of it under dropout (its probability falls by {fall:.2f})" for fall in lost]

    def limits(self) -> list[str]:
        """Return what PSBD cannot tell."""
        return [
            "Which rate is taken is by chance where there are a few hundred probes and little poison; faint triggers outlast only mild dropout, and are missed at the rates that it usually falls on.",
            "About as many clean pictures as the option quantile says, a quarter, are set aside, poison or not.",
            "Clean pictures of a class to which answers shift stay sure as well, and poison of several classes may shift to one of them.",
        ]


def chosen_rate(vouched: NDArray[np.floating], everyone: NDArray[np.floating]) -> int:
    """Return which rate to take, by the shares of answers to probes and to all rows that shift at each."""
    there = vouched >= MANY
    beyond = np.where(there if there.any() else True, vouched - everyone, -np.inf)
    return int(beyond.argmax())


def shifts(task: Task, passes: int) -> NDArray[np.float32]:
    """Return, for each rate, how often dropout makes the undefended model say another class, and by how much it makes what it says less likely.

    Float32 (all rows, twice as many columns as rates: all shares, then all falls), nan for no members. Raises InputError if an answer is not finite.
    """
    model, store = reference(task)
    rows = task.examples.rows
    values = np.full((task.examples.total, 2 * len(RATES)), np.nan, dtype=np.float32)
    units = len(rows) * passes * len(RATES)
    with task.progress.step("drop", units) as step, torch.inference_mode(), dropping(model, task.seed) as dropout:
        for block in parts(rows, task.examples.images.shape):
            images = store.gather(block)[0]
            dropout.rate = 0.0
            sure, said = likely(model, images).max(dim=1)
            shifted = torch.zeros(len(block), len(RATES), device=images.device)
            left = torch.zeros_like(shifted)
            for turn in range(passes):
                lots = rng.bits(task.seed, "defenses/psbd", turn, block)[:, 0] % np.uint64(PLACES)
                dropout.begin = torch.from_numpy(lots.astype(np.int64)).to(images.device)
                for place, dropout.rate in enumerate(RATES):
                    answers = likely(model, images)
                    shifted[:, place] += answers.argmax(dim=1) != said
                    left[:, place] += answers.gather(1, said[:, None])[:, 0]
                    step.advance(len(block))
            values[block] = finite(torch.cat([shifted / passes, sure[:, None] - left / passes], dim=1))
    return values
