"""Feature consistency: rows whose features move far when the picture is turned over (Chen W., Wu B. and Wang H., NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint.defenses._perturbed import finite
from untaint.defenses.base import Card, Detector, Task
from untaint.errors import InputError, SpecError
from untaint.models.build import features_of
from untaint.scores import Scores
from untaint.training.device import device
from untaint.training.loop import blocks
from untaint.training.pixels import PixelStore

__all__ = ["FeatureConsistency", "moved", "turned"]

STAGE = "consistent"


@dataclass(frozen=True, kw_only=True)
class FeatureConsistency(Detector):
    """How far a row's penultimate features move when the picture is turned by 180 degrees and shifted, as a squared distance.

    The model is trained on everything for ``epochs``, without augmentation: triggers are learned by then, and a trigger that is moved is none. ``shift``: by which share of the side the picture moves. The rule taken here
    is the paper's: who is above the 95th percentile is poisoned (and below the 80th clean, which its training builds on). It trains for two epochs, and for three more with a loss within classes, which
    is left out here.
    """

    epochs: int = 2
    shift: float = 0.1

    card: ClassVar[Card | None] = Card(
        paper="Chen W., Wu B. and Wang H.: Effective backdoor defense by exploiting sensitivity of poisoned samples, NeurIPS 2022",
        assumes="a trigger that is moved is none, so that features of poison move further when a picture is turned over",
        rate="share",
        claim="poison and clean pictures are parted well enough for its trainings to keep success low",
    )
    stages: ClassVar[tuple[str, ...]] = (STAGE,)
    fixed: ClassVar[tuple[str, ...]] = ("epochs",)
    usual_rule: ClassVar[str | None] = "fraction:share=0.05"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.epochs < 1 or not 0 <= self.shift < 0.5:
            raise SpecError(f"epochs is {self.epochs}, shift {self.shift}; give at least 1, and from 0 to below 0.5.")

    def score(self, task: Task) -> Scores:
        """Return the squared distances."""
        recipe = replace(task.preset.retrain, epochs=self.epochs, horizon=None, augment="none")
        task.fit(STAGE, recipe, what="train a little")
        folder = task.scratch / f"{STAGE}-moved-{self.shift:g}"
        values = task.once(folder, lambda: moved(task.load(STAGE), task, self.shift))
        return Scores(values=values, name="feature-consistency", parts={"moved": values})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the one model."""
        return [(STAGE, self.epochs * len(task.examples), 2 * len(task.examples))]

    def limits(self) -> list[str]:
        """Return what feature consistency cannot tell."""
        return [
            "A share of the pictures is set aside, poisoned or not.",
            "Triggers that look the same when they are turned over, or that were not learned in so few epochs, are missed; clean pictures that the model knows only upright are suspected.",
        ]


def moved(model: nn.Module, task: Task, shift: float) -> NDArray[np.float32]:
    """Return the squared distance of each row's features from those of the picture turned over: float32 (all rows,), nan for no members."""
    place = task.where or device()
    store, model = PixelStore(task.examples, place), model.to(place).eval()
    values = np.full(task.examples.total, np.nan, dtype=np.float32)
    with task.progress.step("turn them over", len(task.examples)) as step, torch.inference_mode():
        for rows in blocks(task.examples.rows):
            images = store.gather(rows)[0]
            with features_of(model) as latest:
                seen = []
                for shown in (images, turned(images, shift)):
                    model(shown)
                    if not latest:
                        raise InputError(
                            "the model has no linear layer, so that it has no penultimate features. Give another."
                        )
                    seen.append(latest[0].float().flatten(1))
            values[rows] = finite((seen[0] - seen[1]).square().sum(dim=1))
            step.advance(len(rows))
    return values


def turned(images: Tensor, shift: float) -> Tensor:
    """Return pictures turned by 180 degrees and moved down and to the right by a share of their sides; what is uncovered is black."""
    height, width = images.shape[2:]
    down, across = round(shift * height), round(shift * width)
    over = images.flip(2, 3)
    return nn.functional.pad(over, [across, 0, down, 0])[:, :, :height, :width]
