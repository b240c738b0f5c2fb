"""NAD: a model that attends to what a fine-tuned copy of itself attends to (Li Y. et al., ICLR 2021)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from untaint.defenses.base import Card, Mender
from untaint.errors import SpecError
from untaint.training.tuning import Clean

__all__ = ["NAD", "attention_distance", "stages_of"]

WEIGHTS = (500.0, 1000.0, 1000.0)  # of the distance at each of the last stages, the last one last


@dataclass(frozen=True, kw_only=True)
class NAD(Mender):
    """The undefended model, tuned on clean pictures while its attention is drawn to that of a teacher: a copy that was fine-tuned first.

    Attention at a layer is, for each place of a picture, the sum over channels of the absolute value to the power ``power``, as a vector of length one; its squared distance from
    the teacher's, averaged over places, is added to the cross-entropy, ``strength`` times 500, 1,000 and 1,000 at the last layers of the last three resolutions. ``teacher_steps`` and ``steps``: the paper
    trains the teacher for 10 epochs of 5 % of 50,000 pictures, and the student for 10 or 20.
    """

    teacher_steps: int = 400
    steps: int = 800
    learning_rate: float = 0.01
    batch: int = 125
    weight_decay: float = 1e-4
    power: float = 2.0
    strength: float = 1.0

    card: ClassVar[Card | None] = Card(
        paper="Li Y., Lyu, Koren, Lyu, Li B. and Ma: Neural attention distillation, ICLR 2021",
        assumes="a copy that was tuned on clean pictures attends to a trigger less",
        clean=10,
        claim="with 5 % of the pictures known to be clean, single backdoors nearly removed",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.teacher_steps < 1 or self.steps < 1 or self.batch < 2 or not self.learning_rate > 0:
            raise SpecError(
                f"teacher_steps is {self.teacher_steps}, steps {self.steps}, batch {self.batch}, learning_rate {self.learning_rate}; give at least 1, 1, 2, and more than 0."
            )
        if not self.power > 0 or not self.strength >= 0:
            raise SpecError(f"power is {self.power}, strength {self.strength}; give more than 0, and at least 0.")

    def mend(self, model: nn.Module, clean: Clean) -> nn.Module:
        """Return the student."""
        teacher = clean.tune(
            copy.deepcopy(model),
            steps=self.teacher_steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            weight_decay=self.weight_decay,
            what="fine-tune the teacher",
        )
        shown = next(clean.blocks())[0][:2]
        names = stages_of(model.to(clean.where), shown)
        with watched(model, names) as own, watched(teacher, names) as taught:

            def loss(images: Tensor, labels: Tensor) -> Tensor:
                with torch.no_grad():
                    teacher(images)
                total = nn.functional.cross_entropy(model(images).float(), labels)
                for weight, name in zip(WEIGHTS[-len(names) :], names, strict=True):
                    total = total + self.strength * weight * attention_distance(own[name], taught[name], self.power)
                return total

            return clean.tune(
                model,
                steps=self.steps,
                learning_rate=self.learning_rate,
                batch=self.batch,
                weight_decay=self.weight_decay,
                loss=loss,
                what="draw its attention",
            )


def attention_distance(one: Tensor, other: Tensor, power: float) -> Tensor:
    """Return the mean squared difference of two attention maps, each (batch, channels, height, width), over pictures and places."""

    def attention(values: Tensor) -> Tensor:
        return nn.functional.normalize(values.float().abs().pow(power).sum(dim=1).flatten(1), dim=1)

    return (attention(one) - attention(other)).square().mean()


def stages_of(model: nn.Module, images: Tensor, most: int = len(WEIGHTS)) -> list[str]:
    """Return the names of the last layers of the last few resolutions that pictures pass through, in order."""
    order: list[tuple[str, tuple[int, ...]]] = []
    layers = {name: layer for name, layer in model.named_modules() if name}
    with watched(model, list(layers), lambda name, out: order.append((name, tuple(out.shape[2:])))), torch.no_grad():
        was = model.training
        model.eval()(images)
        model.train(was)
    last = {shape: name for name, shape in order if len(shape) == 2 and shape[0] * shape[1] > 1}
    if not last:
        raise SpecError("the model has no layer with places of a picture, which NAD needs. Give a convolutional one.")
    return list(last.values())[-most:]


@contextmanager
def watched(model: nn.Module, names: Sequence[str], told: Any = None) -> Iterator[dict[str, Tensor]]:
    """Give a dictionary that holds what came out of each named layer in the latest pass."""
    latest: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                latest[name] = out
                if told is not None:
                    told(name, out)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()
