"""A network that chooses a mark for each picture and where it shows, and how it is trained (Nguyen and Tran, 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from untaint.attacks._networks import Batch, Unet, beginner, minimise, moved
from untaint.examples import Examples
from untaint.progress import Progress
from untaint.recipe import Recipe

__all__ = ["Painter", "learn_masks", "learn_patterns"]

SHARP = 20.0  # of the mask, which is nearly 0 or 1
MASK_RATE, PATTERN_RATE = 1e-2, 3e-3
SHARE = 0.1  # of a batch gets its own pattern, and as much another picture's
LEAST = 1e-4  # distance of two masks or patterns
SPREAD = 0.25  # of pixels in [0, 1], about: the unit in which masks, other than patterns, are held against pictures


class Painter(nn.Module):
    """Draws a pattern for each picture, and the mask in which it shows. ``shape``: of the pictures (channel, height, width)."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.generator, self.masker = Unet(shape[0], shape[0]), Unet(shape[0], 1)

    def pattern(self, images: Tensor) -> Tensor:
        """Return colours in [0, 1] for pictures in [0, 1]."""
        return torch.sigmoid(2 * self.generator(images - 0.5))

    def mask(self, images: Tensor) -> Tensor:
        """Return (batch, 1, height, width): 0 where the picture stays, 1 where the pattern shows."""
        return torch.sigmoid(SHARP * torch.tanh(self.masker(images - 0.5)))

    def change(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Return what the marks of the pictures ``drawn`` change in ``images``."""
        return self.mask(drawn) * (self.pattern(drawn) - images)


def learn_masks(
    painter: Painter,
    examples: Examples,
    recipe: Recipe,
    seed: int,
    progress: Progress,
    *,
    density: float,
    lambda_div: float,
    lambda_norm: float,
) -> None:
    """Train the painter's masks to be small, and as different as the pictures."""

    def loss(batch: Batch) -> Tensor:
        masks = painter.mask(batch.images)
        return lambda_norm * torch.relu(masks - density).mean() + lambda_div * _alike(batch.images, masks, SPREAD)

    optimizer = torch.optim.Adam(painter.masker.parameters(), lr=MASK_RATE)
    minimise(loss, [optimizer], examples, recipe, "input-aware", seed, progress, "train masks")


def learn_patterns(
    painter: Painter,
    examples: Examples,
    recipe: Recipe,
    seed: int,
    progress: Progress,
    *,
    target: int,
    lambda_div: float,
) -> nn.Module:
    """Train the painter's patterns together with a surrogate, which is returned: it should answer the target to a picture's own mark, and its class to another's."""
    model, surrogate = beginner(examples, recipe, "input-aware", seed)

    def loss(batch: Batch) -> Tensor:
        count = max(1, round(SHARE * len(batch.images)))
        own, others = batch.images[: 2 * count], batch.images.roll(-2 * count, 0)[: 2 * count]
        drawn = torch.cat([own[:count], others[count:]])  # the second half get the mark of another
        shown = torch.cat([own + painter.change(own, drawn), batch.images[2 * count :]])
        labels = batch.labels.clone()
        labels[:count] = target
        lost = nn.functional.cross_entropy(model(moved(shown, batch, recipe, "input-aware", seed)), labels)
        return lost + lambda_div * _alike(drawn, painter.pattern(drawn))

    painter.masker.requires_grad_(False)
    optimizer = torch.optim.Adam(painter.generator.parameters(), lr=PATTERN_RATE)
    minimise(loss, [surrogate, optimizer], examples, recipe, "input-aware", seed, progress, "train patterns")
    return model.eval()


def _alike(images: Tensor, drawn: Tensor, unit: float = 1.0) -> Tensor:
    """Return how many times more two pictures differ (in units) than what is drawn for them: the mean over pairs, one of each half."""
    half = len(images) // 2
    apart, drawn_apart = (
        (some[:half] - some[-half:]).square().mean((1, 2, 3)).add(LEAST**2).sqrt() for some in (images, drawn)
    )
    return (apart / drawn_apart).mean() / unit
