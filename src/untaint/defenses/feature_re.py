"""FeatureRE: for each class a change of pictures is sought that moves a few features, as a trigger does, and the model unlearns those that work (Wang Z., Mei, Ding, Zhai and Ma, 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from untaint.defenses._inverted import Bounds, Change, Inverted, inverted
from untaint.defenses.base import Card, Mender
from untaint.errors import SpecError
from untaint.training.tuning import Clean, Loss

__all__ = ["FeatureRE"]


@dataclass(frozen=True, kw_only=True)
class FeatureRE(Mender):
    """The undefended model after it unlearned the triggers that were found in it; unchanged where none works.

    For each class a change of pictures and a mask of features are sought, by ``steps`` of Adam, such that clean pictures of other classes are taken for it when the masked features are replaced by what they are on average in changed pictures. As in the paper the features are those before the
    pooling (``at``: a layer, as for ``insert_eigenguard``; what the last layer is given where there is no pooling), and three things are bounded: by how much pixels change on average (``distance``, in parts of full brightness), by how much the masked features differ from one changed
    picture to the next (``spread``, in standard deviations of theirs in clean pictures), and the sum of the mask (``mask``, as a share of all features). A class is a target if a share ``success`` of the pictures is taken for it, with the features replaced and, which is ours, also with
    the pictures changed.

    The paper changes pictures by a U-Net, for 400 epochs of 10 pictures a class; here three small convolutions, which are told where a pixel lies, and a pattern do so, for fewer ``steps``. It bounds the distance by 0.15, by which any class can be reached in any model, and the mask by 5 % of the features, of which small networks have few, and it flips the neurons of the mask;
    here the model is tuned for ``tune_steps`` on clean pictures, of which a share ``stamped`` are changed and keep their own labels, as Neural Cleanse does. It says which classes are targets.
    """

    steps: int = 200
    batch: int = 32
    distance: float = 0.05
    spread: float = 0.5
    mask: float = 0.1
    success: float = 0.9
    at: str = "before-pool"
    tune_steps: int = 200
    stamped: float = 0.2
    learning_rate: float = 0.005

    card: ClassVar[Card | None] = Card(
        paper="Wang Z., Mei, Ding, Zhai and Ma, Rethinking the reverse-engineering of Trojan triggers, NeurIPS 2022",
        assumes="a trigger sets a few features to values of its own, whatever else is in the picture",
        clean=10,
        rate="threshold",
        claim="93 % of models told right, and triggers that work in 0.26 % of pictures afterwards, over seven attacks on four data sets",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.steps < 1 or self.tune_steps < 1 or self.batch < 2 or not self.learning_rate > 0:
            raise SpecError(
                f"steps is {self.steps}, tune_steps {self.tune_steps}, batch {self.batch}, learning_rate {self.learning_rate}; give at least 1, 1, 2, and more than 0."
            )
        if not self.distance > 0 or not self.spread > 0:
            raise SpecError(f"distance is {self.distance}, spread {self.spread}; give more than 0.")
        for name in ("mask", "success", "stamped"):
            if not 0 < getattr(self, name) <= 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give a share above 0 and at most 1.")

    def mend(self, model: nn.Module, clean: Clean) -> nn.Module:
        """Return the model, which unlearned what was found."""
        model, names = model.to(clean.where).eval(), clean.examples.class_names
        with clean.progress.step("look for a trigger of each class", len(names) * self.steps, unit="steps") as step:
            found = []
            for label in range(len(names)):
                found.append(self._look(model, clean, label))
                step.advance(self.steps)
        working = [one for one in found if one.success >= self.success]
        told = ", ".join(f"{names[one.label]} ({one.success:.0%})" for one in working)
        clean.progress.say(f"classes with a trigger: {told}." if working else "no class has a trigger.")
        if not working:
            return model
        return clean.tune(
            model,
            steps=self.tune_steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            loss=self._loss(model, [one.change for one in working]),
            what="unlearn what was found",
        )

    def _look(self, model: nn.Module, clean: Clean, label: int) -> Inverted:
        bounds = Bounds(distance=self.distance, spread=self.spread, mask=self.mask)
        return inverted(model, clean, label, self.at, bounds, steps=self.steps, batch=self.batch)

    def _loss(self, model: nn.Module, changes: list[Change]) -> Loss:
        def loss(images: Tensor, labels: Tensor) -> Tensor:
            which = torch.randint(len(changes), (len(images),), device=images.device)
            has = torch.rand(len(images), device=images.device) < self.stamped
            shown = images
            for number, change in enumerate(changes):
                shown = torch.where((has & (which == number))[:, None, None, None], change(images), shown)
            return nn.functional.cross_entropy(model(shown).float(), labels)

        return loss
