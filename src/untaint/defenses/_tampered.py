"""Pictures with triggers that a defender draws at random: rectangles, noise, shadows, and other pictures laid over them (after Zeng, Park, Mao and Jia, 2021)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from untaint import rng

__all__ = ["KINDS", "drawn", "tampered"]

KINDS = ("white", "coloured", "noise", "shadow", "blend")
DRAWS = 11  # numbers that one picture's tampering takes, but for the noise
RECTANGLE = 0.25  # of the side, at most; at least one pixel
VARIANCE = (10.0, 70.0)  # of the noise, in levels squared
SHADOW = (0.4, 0.8)  # of the brightness is left
WEIGHT = (0.1, 0.3)  # of the picture that is laid over another


def drawn(seed: int, purpose: str, epoch: int, rows: NDArray[np.int64]) -> Tensor:
    """Return the numbers by which pictures are tampered with, each row's own: float32 (rows, 11) in [0, 1)."""
    numbers = rng.uniform(seed, purpose, epoch, rows, DRAWS).astype(np.float32)
    return torch.from_numpy(np.minimum(numbers, np.float32(1 - 2**-24)))


def tampered(images: Tensor, others: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
    """Return pictures that have each been tampered with in one way: float32 (batch, channels, height, width) in [0, 1], in whole levels of 255.

    ``others``: what may be laid over them. ``numbers``: as ``drawn`` gives them, of which the first decides on the way. ``noise``: of the pictures' shape, with a standard deviation of one.
    """
    numbers = numbers.to(images.device)[:, :, None, None, None]
    kind = (numbers[:, 0] * len(KINDS)).long()
    ways = [
        _rectangle(images, numbers, torch.ones_like(numbers[:, 5:8, 0])),
        _rectangle(images, numbers, numbers[:, 5 : 5 + images.shape[1], 0]),
        images + _between(numbers[:, 1], *VARIANCE).sqrt() / 255 * noise,
        images * _shadow(images, numbers),
        torch.lerp(images, others, _between(numbers[:, 1], *WEIGHT)),
    ]
    found = images
    for number, way in enumerate(ways):
        found = torch.where(kind == number, way, found)
    return (found.clamp(0, 1) * 255).round() / 255


def _between(numbers: Tensor, least: float, most: float) -> Tensor:
    return least + (most - least) * numbers


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the rows and the columns of pixels lie: (height, 1) and (width,), counted from 0."""
    height, width = images.shape[2:]
    return torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)


def _rectangle(images: Tensor, numbers: Tensor, colour: Tensor) -> Tensor:
    """Return pictures with a rectangle of some colour, (batch, channels or more, 1, 1), somewhere."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for place, side, large, where in zip(_places(images), images.shape[2:], (1, 2), (3, 4), strict=True):
        extent = 1 + (numbers[:, large] * max(1, int(RECTANGLE * side))).floor()
        begin = (numbers[:, where] * (side - extent + 1)).floor()
        inside = inside & (place >= begin) & (place < begin + extent)
    return torch.where(inside, colour[:, : images.shape[1]], images)


def _shadow(images: Tensor, numbers: Tensor) -> Tensor:
    """Return what is left of the brightness: one, and less beyond a line through a random point at a random angle."""
    down, across = _places(images)
    angle = 2 * torch.pi * numbers[:, 2]
    ahead = (down - numbers[:, 3] * len(down)) * angle.sin() + (across - numbers[:, 4] * len(across)) * angle.cos()
    return torch.where(ahead > 0, _between(numbers[:, 1], *SHADOW), 1.0)
