"""``Proxy``: a small convolutional network that learns fast on two CPU cores.

Six 3x3 convolutions, the resolution halved by maxima after the first, third and fifth, and the mean
over the picture. At 32x32 and width 16 it takes 12 million multiplications a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Proxy"]


class _Layer(nn.Module):
    """A 3x3 convolution, perhaps the maxima of 2x2, batch normalisation, and what is positive of it."""

    def __init__(self, inside: int, outside: int, *, halve: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.halve = halve
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, images: Tensor) -> Tensor:
        images = self.convolution(images)
        if self.halve:
            images = nn.functional.max_pool2d(images, 2)
        return torch.relu_(self.norm(images))


class Proxy(nn.Module):
    """A small network for pictures of 8 to 128 pixels; its features have ``4 * width`` entries."""

    def __init__(self, classes: int, width: int = 16, channels: int = 3, shrink: int = 1) -> None:
        """``classes``: how many logits; ``width``: channels of the first layer; ``channels``: 1 or 3; ``shrink``: how many times smaller it sees pictures."""
        super().__init__()
        self.shrink = shrink
        self.body = nn.Sequential(
            _Layer(channels, width, halve=True),
            _Layer(width, 2 * width),
            _Layer(2 * width, 4 * width, halve=True),
            _Layer(4 * width, 4 * width),
            _Layer(4 * width, 4 * width, halve=True),
            _Layer(4 * width, 4 * width),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of float pictures (batch, channels, height, width)."""
        if self.shrink > 1:
            images = nn.functional.avg_pool2d(images, self.shrink)
        logits: Tensor = self.head(self.body(images).mean(dim=(2, 3)))
        return logits
