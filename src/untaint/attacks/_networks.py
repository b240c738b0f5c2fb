"""A small network that draws a picture for a picture, the size at which it works, and how attackers train their networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.examples import Examples
from untaint.models.build import build
from untaint.progress import Progress
from untaint.recipe import Recipe
from untaint.training.device import device
from untaint.training.pixels import PixelStore, augmented, first_layer

__all__ = ["Batch", "Unet", "beginner", "minimise", "moved", "seen", "smoothed", "working_size"]

SIDE = 64  # pixels; larger pictures are shrunk to it before a network looks at them
MOST = 10_000  # pictures that networks are trained on
SMOOTH = 5  # pixels: what a faint pattern has in common over so many a side is left out, since people see it first


def working_size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channel, height, width) at which networks work for pictures of ``shape``: its own, but at most 64 pixels a side."""
    channels, height, width = shape
    return channels, min(height, SIDE), min(width, SIDE)


def seen(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return a batch of pictures at the working size."""
    if tuple(images.shape[2:]) != shape[1:]:
        images = nn.functional.interpolate(images, size=shape[1:], mode="bilinear", antialias=True)
    return images.contiguous()


class Unet(nn.Module):
    """Convolutions at full, half and quarter resolution, each joined to what came before it (Ronneberger, Fischer and Brox, 2015). No layer looks at other pictures of the batch."""

    def __init__(self, inside: int, outside: int, width: int = 12) -> None:
        """``inside``, ``outside``: channels; ``width``: those at full resolution."""
        super().__init__()
        self.at_full = nn.Conv2d(inside, width, 3, padding=1)
        self.at_half = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.at_quarter = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.back_at_half = nn.Conv2d(4 * width, width, 3, padding=1)
        self.back_at_full = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = nn.Conv2d(width, outside, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, outside, height, width), any number each."""
        full = torch.relu(self.at_full(images))
        half = torch.relu(self.at_half(nn.functional.max_pool2d(full, 2)))
        quarter = torch.relu(self.at_quarter(nn.functional.max_pool2d(half, 2)))
        half = torch.relu(self.back_at_half(torch.cat([half, _enlarged(quarter, half)], dim=1)))
        full = torch.relu(self.back_at_full(torch.cat([full, _enlarged(half, full)], dim=1)))
        drawn: Tensor = self.last(full)
        return drawn


def _enlarged(images: Tensor, like: Tensor) -> Tensor:
    return nn.functional.interpolate(images, size=like.shape[2:])


def smoothed(images: Tensor) -> Tensor:
    """Return the mean of the 5x5 pixels around each, fewer at the border."""
    return nn.functional.avg_pool2d(images, SMOOTH, stride=1, padding=SMOOTH // 2, count_include_pad=False)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step looks at: pictures in [0, 1] at the working size, their labels and rows, which ``epoch`` it is, and what ``share`` of all steps is done."""

    images: Tensor
    labels: Tensor
    rows: NDArray[np.int64]
    epoch: int
    share: float


def minimise(
    loss: Callable[[Batch], Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    examples: Examples,
    recipe: Recipe,
    name: str,
    seed: int,
    progress: Progress,
    what: str,
) -> None:
    """Take the recipe's epochs over at most 10,000 of the pictures, in steps that make the loss small; rates rise and fall with the recipe's.

    ``name``: of the attack, by which pictures are chosen and ordered; ``what``: for the bar.
    """
    shape = working_size(examples.images.shape[1:])
    chosen = rng.choose(seed, f"attacks/{name}/pictures", examples.rows, MOST)
    store, steps = PixelStore(examples, device()), -(-len(chosen) // recipe.batch)
    highest = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    with progress.step(what, recipe.epochs * len(chosen)) as step:
        for number in range(recipe.epochs * steps):
            epoch, index = divmod(number, steps)
            rows = np.array_split(rng.order(seed, f"attacks/{name}/order", epoch, chosen), steps)[index]
            images, labels = store.gather(rows)
            share = number / (recipe.epochs * steps)
            found = loss(Batch(images=seen(images, shape), labels=labels, rows=rows, epoch=epoch, share=share))
            for optimizer, rates in zip(optimizers, highest, strict=True):
                optimizer.zero_grad(set_to_none=True)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * recipe.learning_rate_at(number, steps) / recipe.learning_rate
            found.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
            step.advance(len(rows))


def beginner(examples: Examples, recipe: Recipe, name: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return an untrained classifier for these pictures at the working size, and what will train it."""
    own, shape = rng.derive(seed, f"attacks/{name}"), working_size(examples.images.shape[1:])
    model = build(recipe.model, len(examples.class_names), shape, seed=own, **first_layer(examples, whitened=False)).to(
        device()
    )
    return model, torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def moved(images: Tensor, batch: Batch, recipe: Recipe, name: str, seed: int) -> Tensor:
    """Return pictures, the first of the batch, shifted and mirrored as the recipe says, by draws for their rows."""
    rows = batch.rows[: len(images)]
    numbers = rng.uniform(seed, f"attacks/{name}/moved", batch.epoch, rows, 4).astype(np.float32)
    return augmented(images, recipe.augment, np.minimum(numbers, np.float32(1 - 2**-24)))  # which may round up to 1
