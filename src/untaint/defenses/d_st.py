"""D-ST: a model trained from scratch that is told the labels of those rows alone whose features move least when the picture is turned over (Chen W., Wu B. and Wang H., NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.defenses._sensitive import STAGE, Parted, Parting, penultimate, width_of
from untaint.defenses.base import Card, Defense, Outcome, Task
from untaint.errors import SpecError
from untaint.scores import Scores
from untaint.training.device import keyed
from untaint.training.objective import Batch, Objective

__all__ = ["DST", "HalfTold", "contrast", "recoloured", "surprise"]

NAME = "d-st"
CLEAN, UNKNOWN, POISON = 1, 0, -1
COMPARED = 128  # width of what pictures are compared by
CHANGE = 0.4  # by which brightness, contrast and saturation change at most
COLOURED, GREY = 0.8, 0.2  # shares of the pictures of which they change, and which lose all colour


@dataclass(frozen=True, kw_only=True)
class DST(Parting, Defense):
    """A model trained from scratch on all pictures, but told the labels of those that were taken for clean alone.

    How rows are parted, ``Parting`` says, as for ``d-br``. Each picture is shown twice, augmented by the recipe, its colours changed otherwise each time. A loss of contrast (supervised where the label is known: Khosla et al.,
    NeurIPS 2020; else SimCLR's) draws the two views of a picture together, and all those of a known label, beside all others in the batch, at ``temperature``; ``strength`` times it is added to the
    paper's mixed cross-entropy: that of the rows taken for clean, and ``against`` times what the model loses where it agrees with the label of one taken for poisoned.

    The paper trains a feature extractor for 200 epochs so, in batches of 512, and then a linear head for 10. Here both are trained at once, in the batches and epochs of the recipe (``epochs``, if another number is asked for): the cross-entropy
    reaches the extractor, too, as too few epochs of contrast alone tell few classes. It costs twice an ordinary training, and much accuracy where a fifth of the labels are few.
    """

    epochs: int | None = None
    temperature: float = 0.1
    strength: float = 1.0
    against: float = 1.0

    card: ClassVar[Card | None] = Card(
        paper="Chen W., Wu B. and Wang H., Effective backdoor defense by exploiting sensitivity of poisoned samples (D-ST), NeurIPS 2022",
        assumes="a trigger is learned in the first epochs and is none when the picture is turned over, so that who moves least is clean, and a fifth of the labels is enough",
        rate="share",
        claim="success of several attacks made low by training from scratch, at more loss of accuracy",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if (self.epochs is not None and self.epochs < 1) or not self.temperature > 0:
            raise SpecError(
                f"epochs is {self.epochs}, temperature {self.temperature}; give at least 1, or nothing for the recipe's own number, and more than 0."
            )
        if not self.strength >= 0 or not self.against >= 0:
            raise SpecError(f"strength is {self.strength}, against {self.against}; give at least 0.")

    def defend(self, task: Task) -> Outcome:
        """Return the model, and how far each row's features move; nobody is set aside."""
        parted, recipe = self.parted(task), task.preset.retrain
        if self.epochs is not None:
            recipe = replace(recipe, epochs=self.epochs, horizon=None)
        objective = HalfTold(self, parted, width_of(task.load(STAGE)), task.seed)
        model = task.fit("model", recipe, objective=objective, what="train with few labels")
        scores = Scores(values=parted.values, name=NAME, parts={"moved": parted.values})
        return Outcome(scores=scores, verdict=None, model=model)


class HalfTold(Objective):
    """What D-ST goes down; ``width``: of the model's penultimate features."""

    def __init__(self, settings: DST, parted: Parted, width: int, seed: int) -> None:
        super().__init__()
        self.settings, self.seed = settings, seed
        self.known = np.full(len(parted.values), UNKNOWN, dtype=np.int8)
        self.known[parted.clean], self.known[parted.poison] = CLEAN, POISON
        with keyed(torch.device("cpu"), seed, NAME):
            self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, COMPARED))

    def loss(self, batch: Batch) -> Tensor:
        """Return contrast and mixed cross-entropy of two views of each picture."""
        settings, place = self.settings, batch.labels.device
        views = [self._shown(batch, images, view) for view, images in enumerate((batch.images, batch.again(1)))]
        with penultimate(batch.model) as latest:
            logits = batch.forward(torch.cat(views))
        known = torch.from_numpy(self.known[batch.rows]).to(place)
        alone = logits.shape[1] + torch.arange(len(known), device=place)  # a group of its own
        group = torch.where(known == CLEAN, batch.labels, alone)
        total = settings.strength * contrast(self.projection(latest[0]), group.repeat(2), settings.temperature)
        labels, known = batch.labels.repeat(2), known.repeat(2)
        told = nn.functional.cross_entropy(logits, labels, reduction="none")
        total = total + _mean(told, known == CLEAN)
        return total + settings.against * _mean(surprise(logits, labels), known == POISON)

    def _shown(self, batch: Batch, images: Tensor, view: int) -> Tensor:
        numbers = rng.uniform(self.seed, f"{NAME}/colours/{view}", batch.epoch, batch.rows, 5)
        return recoloured(images, numbers)


def contrast(values: Tensor, group: Tensor, temperature: float) -> Tensor:
    """Return the supervised loss of contrast of vectors (batch, width): for each, the mean over all others of its ``group`` of minus the log of their share among all others, by exponentials of the cosine over ``temperature``."""
    unit = nn.functional.normalize(values, dim=1)
    oneself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    share = (unit @ unit.T / temperature).masked_fill(oneself, -torch.inf).log_softmax(dim=1)
    like = (group[:, None] == group[None, :]) & ~oneself
    return -(share.masked_fill(~like, 0).sum(dim=1) / like.sum(dim=1).clamp(min=1)).mean()


def surprise(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the log of one minus the probability of the label, each (batch,): large where a model agrees with it."""
    own = nn.functional.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
    return logits.logsumexp(dim=1) - others


def recoloured(images: Tensor, numbers: NDArray[np.float64]) -> Tensor:
    """Return pictures (batch, channels, height, width) in [0, 1] brighter or darker, of more or less contrast and saturation, or grey, each by its own ``numbers`` (batch, 5) in [0, 1)."""
    own = torch.from_numpy(numbers.astype(np.float32)).to(images.device).T[:, :, None, None, None]
    bright, apart, strong = 1 + CHANGE * (2 * own[:3] - 1)
    changed = images * bright
    middle = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed = middle + (changed - middle) * apart
    grey = changed.mean(dim=1, keepdim=True)
    changed = torch.where(own[3] < COLOURED, (grey + (changed - grey) * strong).clamp(0, 1), images)
    return torch.where(own[4] < GREY, changed.mean(dim=1, keepdim=True), changed)


def _mean(values: Tensor, which: Tensor) -> Tensor:
    """Return the mean of some of the values, 0 of none."""
    return values.masked_fill(~which, 0).sum() / which.sum().clamp(min=1)
