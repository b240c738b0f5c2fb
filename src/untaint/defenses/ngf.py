"""NGF: the last layer alone, tuned along the natural gradient (Karim et al., arXiv 2306.17441, 2023)."""

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

__all__ = ["NGF", "natural_step"]

DAMPING = 1e-2  # of the mean of each factor of the Fisher matrix


@dataclass(frozen=True, kw_only=True)
class NGF(Mender):
    """The undefended model with a last layer that fits the clean pictures, reached by steps as long as they change what the layer says.

    Each step multiplies the gradient of the cross-entropy by the inverse of the Fisher matrix of the last layer (a Kronecker product: second moments of features, and of the slopes of the logits; a hundredth of
    the mean is added to either). ``stay``: how strongly weights that matter to what the model said of the clean pictures at first, by the diagonal of its Fisher matrix, are drawn back to where
    they were. Built from the paper's idea, to which no numbers were found: the factors, ``stay`` and the rate are our choice.
    """

    steps: int = 100
    learning_rate: float = 0.1
    stay: float = 0.1

    card: ClassVar[Card | None] = Card(
        paper="Karim, Al Arafat, Khalid, Guo and Rahnavard: Efficient backdoor removal through natural gradient fine-tuning, arXiv 2306.17441, 2023",
        assumes="the last layer alone is where a backdoor can be undone",
        clean=10,
        claim="as good as tuning all layers, in a fraction of the time",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.steps < 1 or not self.learning_rate > 0 or not self.stay >= 0:
            raise SpecError(
                f"steps is {self.steps}, learning_rate {self.learning_rate}, stay {self.stay}; give at least 1, more than 0, and at least 0."
            )

    def mend(self, model: nn.Module, clean: Clean) -> nn.Module:
        """Return the model with another last layer."""
        seen = features(model, clean.examples, clean.where, clean.progress)[clean.examples.rows].astype(np.float64)
        head = head_of(model)
        assert head is not None  # else there were no features
        if not np.isfinite(seen).all():
            raise InputError("features of clean pictures are not finite. Give a model whose training went well.")
        points = np.concatenate([seen, np.ones((len(seen), 1))], axis=1)
        weight = head.weight.detach().cpu().numpy().astype(np.float64)
        bias: nn.Parameter | None = head.bias
        shift = np.zeros(len(weight)) if bias is None else bias.detach().cpu().numpy()
        weights = first = np.concatenate([weight, shift[:, None]], axis=1)
        matters = (_odds(points, first) * (1 - _odds(points, first))).T @ points**2 / len(points)
        drawn = self.learning_rate * self.stay * matters
        for _ in range(self.steps):
            weights = weights - self.learning_rate * natural_step(points, clean.labels, weights)
            weights = (weights + drawn * first) / (1 + drawn)
            if bias is None:
                weights[:, -1] = 0
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weights[:, :-1]))
            if bias is not None:
                bias.copy_(torch.from_numpy(weights[:, -1]))
        return model.eval()


def natural_step(
    points: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the gradient of the mean cross-entropy of a linear layer, by the inverse of its damped Fisher matrix: (classes, width)."""
    odds = _odds(points, weights)
    slope = (odds - np.eye(len(weights))[labels]).T @ points / len(points)
    inside = points.T @ points / len(points)
    outside = np.diag(odds.mean(axis=0)) - odds.T @ odds / len(odds)
    return np.asarray(np.linalg.solve(_damped(outside), np.linalg.solve(_damped(inside), slope.T).T))


def _odds(points: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    logits = points @ weights.T
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _damped(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    least = max(DAMPING * float(np.trace(matrix)) / len(matrix), 1e-12)
    return matrix + least * np.eye(len(matrix))
