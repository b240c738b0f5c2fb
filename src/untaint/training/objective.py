"""What a training goes down where it is not the mean cross-entropy alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Batch", "Objective"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One batch of a training step.

    ``rows``: who is in it, int64 (batch,). ``images``: float32 (batch, channels, height, width) in [0, 1], augmented. ``labels``: int64 (batch,), on the device. ``epoch``, from 0, of ``epochs``.
    ``forward``: pictures to logits, float32, in the training's precision. ``again``: the same pictures augmented by other draws, the n-th for a number n above 0.
    """

    rows: NDArray[np.int64]
    images: Tensor
    labels: Tensor
    epoch: int
    epochs: int
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    again: Callable[[int], Tensor]


class Objective(nn.Module, ABC):
    """A loss with what belongs to it. You write ``loss``.

    Its parameters are trained with the model's, by the same optimizer; what it trains by itself it keeps as buffers. Both are part of
    a checkpoint, so that an interrupted training goes on with the same bits; nothing else of it may change while it is used.
    """

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar that has gradients; nothing is recorded and no host waits."""

    def stepped(self, model: nn.Module) -> None:
        """Be told that the optimizer has made its step."""
