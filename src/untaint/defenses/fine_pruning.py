"""Fine-pruning: what clean pictures hardly use of a model is cut off, and the rest tuned (Liu, Dolan-Gavitt and Garg, RAID 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint.defenses.base import Card, Mender
from untaint.errors import InputError, SpecError
from untaint.models.build import head_of
from untaint.training.features import features
from untaint.training.tuning import Clean

__all__ = ["FinePruning", "pruned"]


@dataclass(frozen=True, kw_only=True)
class FinePruning(Mender):
    """The undefended model without the penultimate features that are least active on clean pictures, and tuned on these.

    Features are cut off in the order of their mean activity, as many as can go before accuracy on the clean pictures is more than ``drop`` below what it was (the paper's 4 points).
    In a network whose last convolution is averaged before the last layer, they are the channels of that convolution, as in the paper. Then come ``steps`` of
    fine-tuning, in which they stay cut off.
    """

    drop: float = 0.04
    steps: int = 1000
    learning_rate: float = 0.01
    batch: int = 125
    weight_decay: float = 5e-4

    card: ClassVar[Card | None] = Card(
        paper="Liu, Dolan-Gavitt and Garg: Fine-pruning, RAID 2018",
        assumes="a backdoor uses features that clean pictures do not",
        clean=10,
        claim="backdoors of faces, speech and traffic signs removed, at small loss",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.drop < 1:
            raise SpecError(f"drop is {self.drop}; give a share of pictures from 0 to below 1, such as 0.04.")
        if self.steps < 0 or self.batch < 2 or not self.learning_rate > 0:
            raise SpecError(
                f"steps is {self.steps}, batch {self.batch}, learning_rate {self.learning_rate}; give at least 0, 2, and more than 0."
            )

    def mend(self, model: nn.Module, clean: Clean) -> nn.Module:
        """Return the model, pruned and tuned."""
        seen = features(model, clean.examples, clean.where, clean.progress)[clean.examples.rows]
        head = head_of(model)
        assert head is not None  # else there were no features
        if not np.isfinite(seen).all():
            raise InputError("features of clean pictures are not finite. Give a model whose training went well.")
        weight = head.weight.detach().cpu().numpy().astype(np.float64)
        bias = 0 if head.bias is None else head.bias.detach().cpu().numpy()
        gone = torch.from_numpy(pruned(seen, weight, bias, clean.labels, self.drop)).to(head.weight.device)

        def cut() -> None:
            with torch.no_grad():
                head.weight[:, gone] = 0

        cut()
        clean.progress.say(f"{len(gone)} of {seen.shape[1]} features are cut off.")
        if not self.steps:
            return model.eval()
        return clean.tune(
            model,
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch=self.batch,
            weight_decay=self.weight_decay,
            after=cut,
        )


def pruned(
    seen: NDArray[np.float32],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64] | float,
    labels: NDArray[np.int64],
    drop: float,
) -> NDArray[np.int64]:
    """Return the features to cut off, least active first: as many as can go, one after the other, before accuracy is more than ``drop`` below what it was.

    ``seen``: (pictures, width); ``weight``: (classes, width) of the last layer. One feature is always left.
    """
    logits = seen.astype(np.float64) @ weight.T + bias
    order = np.argsort(seen.mean(axis=0, dtype=np.float64), kind="stable")
    least = (logits.argmax(1) == labels).mean() - drop
    for count, feature in enumerate(order[:-1].tolist()):
        logits -= np.outer(seen[:, feature], weight[:, feature])
        if (logits.argmax(1) == labels).mean() < least:
            return np.asarray(order[:count])
    return np.asarray(order[:-1])
