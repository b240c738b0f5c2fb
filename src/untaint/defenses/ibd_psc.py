"""IBD-PSC: rows of which the model stays sure when its last layers are amplified until it knows little else (Hou, Feng, Hua, Luo, Zhang and Li, 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint.defenses._perturbed import beside, finite, likely, parts, reference, scaling_layers
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores
from untaint.training.pixels import PixelStore

__all__ = ["IbdPsc", "confidences"]

ROUNDS = 6  # in which all layers are amplified, at most


@dataclass(frozen=True, kw_only=True)
class IbdPsc(Detector):
    """How sure amplified copies of the undefended model are of a row's label: mean probability, 0 to 1.

    In the copies the weights and biases of batch normalisation are multiplied by ``scale``, in one layer more each time, from the last one backwards. The first of ``copies`` is that in which more than
    ``error`` of the probes lose their label; clean pictures lose it there, poison keeps it. Hou et al. (ICML 2024) look at what a model is asked, and at the class that it says itself; here it is what it was trained on. A network without
    batch normalisation has other layers amplified, and one with too few is gone through again, up to six times (our choice; their networks had enough). Where the probes keep their labels even so, all scores are 0. The rule taken here is the paper's: above 0.9. Without probes,
    rows drawn by lot stand in for them, which may be poisoned.
    """

    scale: float = 1.5
    copies: int = 5
    error: float = 0.6

    card: ClassVar[Card | None] = Card(
        paper="Hou, Feng, Hua, Luo, Zhang and Li: IBD-PSC, ICML 2024",
        assumes="a model stays sure of a trigger when its weights are amplified",
        rate="threshold",
        claim="measured by others: patch 98 % found, blend 100, warp 97, with 0.8, 6.6 and 0.2 % of clean pictures",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=0.9"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 1 < self.scale <= 10:
            raise SpecError(f"scale is {self.scale}; give a number above 1 and at most 10, such as 1.5.")
        if self.copies < 1:
            raise SpecError(f"copies is {self.copies}; give at least 1, such as 5.")
        if not 0 < self.error < 1:
            raise SpecError(f"error is {self.error}; give a share above 0 and below 1, such as 0.6.")

    def score(self, task: Task) -> Scores:
        """Return how sure the amplified models are of each row."""
        options = f"{self.scale:g}-{self.copies}-{self.error:g}"
        folder = beside(task, f"ibd-psc-{options}", task.compared_with)
        values = np.array(task.once(folder, lambda: confidences(task, self)))
        return Scores(values=values, name="ibd-psc", parts={"confidence": values})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        count = len(task.examples)
        return [(UNDEFENDED, task.preset.retrain.epochs * count, self.copies * count)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how sure they are."""
        return [f"amplified models stay sure of it (probability {scores.values[row]:.2f})" for row in rows]

    def limits(self) -> list[str]:
        """Return what IBD-PSC cannot tell."""
        return [
            "A class that amplified models say of everything is set aside, poison or not. Poison of several classes is found only where all of it stays when the rest is lost.",
        ]


def confidences(task: Task, options: IbdPsc) -> NDArray[np.float32]:
    """Return the amplified models' mean probability of each row's label: float32 (all rows,), nan for no members.

    Raises InputError if an answer is not finite.
    """
    model, store = reference(task)
    rows, size = task.examples.rows, task.examples.images.shape
    values = np.full(task.examples.total, np.nan, dtype=np.float32)
    values[rows] = 0
    with task.progress.step("amplify", len(rows) * options.copies) as step, torch.inference_mode():
        copies = 0
        for copies in _amplified(model, store, task.compared_with.copy(), options):  # noqa: B007
            for block in parts(rows, size):
                images, labels = store.gather(block)
                values[block] += finite(likely(model, images).gather(1, labels[:, None])[:, 0]) / options.copies
                step.advance(len(block))
    if not copies:
        task.progress.say("ibd-psc finds nothing: however much the model is amplified, it gets the probes right.")
    return values


def _amplified(model: nn.Module, store: PixelStore, probes: NDArray[np.int64], options: IbdPsc) -> Iterator[int]:
    """Amplify the model until it errs on more than so many of the probes, and then a layer more for each copy; nothing if it never does."""
    layers = scaling_layers(model)[::-1]
    order = layers * ROUNDS
    for count, layer in enumerate(order, 1):
        _amplify(layer, options.scale)
        if _error(model, store, probes) > options.error:
            yield 1
            for copy in range(1, options.copies):
                _amplify(layers[(count + copy - 1) % len(layers)], options.scale)
                yield copy + 1
            return


def _amplify(layer: nn.Module, scale: float) -> None:
    for weights in layer.parameters(recurse=False):
        weights.mul_(scale)


def _error(model: nn.Module, store: PixelStore, probes: NDArray[np.int64]) -> float:
    """Return the share of probes of which the model does not say their label."""
    wrong = 0
    for block in parts(probes, store.images.shape):
        images, labels = store.gather(block)
        answers: Tensor = model(images)
        wrong += int((answers.argmax(dim=1) != labels).sum())
    return wrong / max(1, len(probes))
