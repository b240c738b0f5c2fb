"""Neural Cleanse: the smallest trigger of each class is searched for, and the model unlearns those that are suspiciously small (Wang B. et al., S&P 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.defenses.base import Card, Mender
from untaint.errors import SpecError
from untaint.training.device import keyed
from untaint.training.tuning import Clean, Loss

__all__ = ["NeuralCleanse", "Reversed", "outliers", "reverse"]

CONSISTENT = 1.4826  # median absolute deviations of a normal distribution in its standard deviation
RATE, MOMENTS = 0.1, (0.5, 0.9)  # of Adam
COST, TIMES = 1e-3, 1.5  # of the mask's size at first, and by how much it changes
PATIENCE = 5  # looks in a row that are good, or not, before it does
LOOK = 10  # steps from one to the next


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Mender):
    """The undefended model after it unlearned the triggers that were found in it; unchanged where none is suspicious.

    For each class a mask and a pattern are sought, by ``steps`` of Adam (at 0.1, a pass over 100 batches and more in the paper), with which ``success`` of the clean pictures of other classes are taken for it, while the sum of the mask becomes as small as it
    can. A class whose sum is below the median by more than ``index`` median absolute deviations (2) is a target. Then the model is tuned for ``tune_steps`` on clean pictures, of which a share ``stamped``
    has a found trigger and its own label.
    """

    steps: int = 400
    batch: int = 64
    success: float = 0.98
    index: float = 2.0
    tune_steps: int = 200
    stamped: float = 0.2
    learning_rate: float = 0.01

    card: ClassVar[Card | None] = Card(
        paper="Wang B., Yao, Shan, Li, Viswanath, Zheng and Zhao: Neural Cleanse, S&P 2019",
        assumes="few classes are under attack, and their triggers are far smaller than what makes any other class",
        clean=10,
        several="in part",
        why="triggers are held against those of other classes, so that none is small where most classes have one; it finds one for each class",
        claim="every target found; success below 7 % after unlearning, at most 3.6 points lost",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.steps < 1 or self.tune_steps < 1 or self.batch < 2 or not self.learning_rate > 0:
            raise SpecError(
                f"steps is {self.steps}, tune_steps {self.tune_steps}, batch {self.batch}, learning_rate {self.learning_rate}; give at least 1, 1, 2, and more than 0."
            )
        if not 0 < self.success <= 1 or not 0 < self.stamped <= 1 or not self.index >= 0:
            raise SpecError(
                f"success is {self.success}, stamped {self.stamped}, index {self.index}; give shares above 0, at most 1, and at least 0."
            )

    def mend(self, model: nn.Module, clean: Clean) -> nn.Module:
        """Return the model, which unlearned what was found."""
        model = model.to(clean.where).eval()
        classes = len(clean.examples.class_names)
        with clean.progress.step(
            "look for the smallest trigger of each class", classes * self.steps, unit="steps"
        ) as step:
            found = []
            for label in range(classes):
                found.append(reverse(model, clean, label, steps=self.steps, batch=self.batch, success=self.success))
                step.advance(self.steps)
        targets = np.flatnonzero(outliers(np.array([float(one.mask.sum()) for one in found])) > self.index)
        names = ", ".join(clean.examples.class_names[label] for label in targets.tolist())
        clean.progress.say(
            f"suspiciously small triggers: {names}." if len(targets) else "no class has a suspiciously small trigger."
        )
        if not len(targets):
            return model
        triggers = [found[label] for label in targets.tolist()]
        return clean.tune(
            model,
            steps=self.tune_steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            loss=self._loss(model, triggers),
            what="unlearn what was found",
        )

    def _loss(self, model: nn.Module, triggers: list[Reversed]) -> Loss:
        def loss(images: Tensor, labels: Tensor) -> Tensor:
            which = torch.randint(len(triggers), (len(images),), device=images.device)
            has = torch.rand(len(images), device=images.device) < self.stamped
            masks = torch.stack([one.mask for one in triggers])[which] * has[:, None, None]
            patterns = torch.stack([one.pattern for one in triggers])[which]
            stamped = images * (1 - masks[:, None]) + patterns * masks[:, None]
            return nn.functional.cross_entropy(model(stamped).float(), labels)

        return loss


@dataclass(frozen=True, eq=False)
class Reversed:
    """A trigger that was found: ``mask`` (height, width) and ``pattern`` (channels, height, width), both in [0, 1]; ``success``: how often it works on clean pictures."""

    mask: Tensor
    pattern: Tensor
    success: float

    def on(self, images: Tensor) -> Tensor:
        """Return pictures with the trigger."""
        return images * (1 - self.mask) + self.pattern * self.mask


def reverse(model: nn.Module, clean: Clean, label: int, *, steps: int, batch: int, success: float) -> Reversed:
    """Return the smallest trigger found with which the share ``success`` of the clean pictures of other classes is taken for a class; if none has that, the one that works best.

    The sum of the mask counts by a cost that rises by half while the trigger works, and falls while it does not. ``model``: in eval mode; its weights are left alone.
    """
    others = Clean(
        examples=clean.examples.take(clean.examples.rows[clean.labels != label]),
        seed=rng.derive(clean.seed, "neural-cleanse", label),
        where=clean.where,
    )
    channels, height, width = clean.examples.images.shape[1:]
    with keyed(clean.where, clean.seed, "neural-cleanse", label):
        raw_mask = torch.randn(height, width, device=clean.where).requires_grad_()
        raw_pattern = torch.randn(channels, height, width, device=clean.where).requires_grad_()
    best = Reversed(torch.ones(height, width, device=clean.where), raw_pattern.detach().sigmoid(), 0.0)
    if not len(others.examples):
        return best
    optimizer = torch.optim.Adam([raw_mask, raw_pattern], lr=RATE, betas=MOMENTS)
    cost, good, poor = COST, 0, 0
    hits, shown = torch.zeros((), device=clean.where), 0
    for number, (images, _) in enumerate(others.batches(steps, batch), start=1):
        mask, pattern = raw_mask.sigmoid(), raw_pattern.sigmoid()
        logits = model(images * (1 - mask) + pattern * mask).float()
        wanted = torch.full((len(images),), label, device=images.device)
        loss = nn.functional.cross_entropy(logits, wanted) + cost * mask.sum()
        slopes = torch.autograd.grad(loss, [raw_mask, raw_pattern])
        raw_mask.grad, raw_pattern.grad = slopes
        hits += (logits.detach().argmax(1) == label).sum()
        shown += len(images)
        optimizer.step()
        if number % LOOK and number < steps:
            continue
        rate, hits, shown = float(hits) / shown, torch.zeros_like(hits), 0
        best = _better(best, Reversed(mask.detach(), pattern.detach(), rate), success)
        good, poor = (good + 1, 0) if rate >= success else (0, poor + 1)
        if good >= PATIENCE:
            cost, good = cost * TIMES, 0
        elif poor >= PATIENCE:
            cost, poor = cost / TIMES**1.5, 0
    return best


def _better(one: Reversed, other: Reversed, success: float) -> Reversed:
    if other.success >= success:
        return other if one.success < success or other.mask.sum() < one.mask.sum() else one
    return other if other.success > one.success else one


def outliers(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how many median absolute deviations each size is below the median; 0 for those above it."""
    below = np.median(sizes) - sizes
    deviation = CONSISTENT * float(np.median(np.abs(below)))
    return np.maximum(below, 0) / max(deviation, 1e-9 * float(np.abs(sizes).max(initial=0)), np.finfo(float).tiny)
