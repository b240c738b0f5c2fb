"""A trained model trained a little further, on a few pictures known to be clean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.errors import TrainingError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.recipe import Augment
from untaint.training.device import device, keyed
from untaint.training.loop import blocks, predict
from untaint.training.pixels import PixelStore, augmented, draws

__all__ = ["Clean", "Loss"]

Loss = Callable[[Tensor, Tensor], Tensor]  # of pictures (batch, channels, height, width) in [0, 1] and their labels
MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Pictures known to be clean (the members of ``examples``), and what tuning a model on them takes.

    ``augment``: how the model's own training varied its pictures.
    """

    examples: Examples
    augment: Augment = "none"
    seed: int = 0
    where: torch.device = field(default_factory=device)
    progress: Progress = field(default_factory=Silent)

    def batches(self, steps: int, batch: int, *, vary: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """Give so many batches: all pictures in turn, in an order that changes each time; with ``vary`` as in the model's training."""
        store, rows = PixelStore(self.examples, self.where), self.examples.rows
        times = max(1, -(-len(rows) // batch))
        for turn in range(-(-steps // times)):
            shuffled = rng.order(self.seed, "tuning", turn, rows)
            numbers = draws(self.augment if vary else "none", self.seed, turn, self.examples.total)
            for some in np.array_split(shuffled, times)[: steps - turn * times]:
                images, labels = store.gather(some)
                yield augmented(images, self.augment, None if numbers is None else numbers[some]), labels

    def tune(
        self,
        model: nn.Module,
        *,
        steps: int,
        learning_rate: float,
        batch: int,
        weight_decay: float = 0.0,
        momentum: float = MOMENTUM,
        loss: Loss | None = None,
        weights: Iterable[Tensor] | None = None,
        after: Callable[[], None] | None = None,
        what: str = "fine-tune",
    ) -> nn.Module:
        """Take so many steps of SGD with ``momentum`` on the model itself, and return it in eval mode.

        ``loss``: of a batch, the cross-entropy if not given. ``weights``: those that change, all if not given. ``after``: is called after each step.
        Raises TrainingError when the loss is not finite in the end.
        """
        model = model.to(self.where).train()
        moved = list(model.parameters() if weights is None else weights)
        optimizer = torch.optim.SGD(moved, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)

        def usual(images: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(model(images).float(), labels)

        asked, last = loss or usual, torch.zeros((), device=self.where)
        with keyed(self.where, self.seed, "tuning/layers"), self.progress.step(what, steps, unit="steps") as step:
            for images, labels in self.batches(steps, batch):
                last = asked(images, labels)
                optimizer.zero_grad(set_to_none=True)
                last.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if after is not None:
                    after()
                step.advance(1)
        if not bool(torch.isfinite(last.detach())):
            raise TrainingError(
                f"the loss is {float(last.detach())} after {steps} steps with learning rate {learning_rate:g}. Give a lower one."
            )
        return model.eval()

    def accuracy(self, model: nn.Module) -> float:
        """Return the share of the clean pictures that a model is right about."""
        right: NDArray[np.bool_] = predict(model, self.examples, self.where).argmax(1) == self.labels
        return float(right.mean())

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of the clean pictures, in the order of their rows."""
        return self.examples.labels[self.examples.rows]

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give all pictures once, in the order of their rows, as they are."""
        store = PixelStore(self.examples, self.where)
        return (store.gather(rows) for rows in blocks(self.examples.rows))
