"""``Proxy``: a small residual network that learns fast on two CPU cores.

Eight layers (He et al., 2016): a 3x3 stem and three residual blocks, the first at full resolution,
and the mean over the picture. At 32x32 and width 16 it takes 12 million multiplications a picture.

Networks that halve the resolution right after the stem are up to 1.8 times as fast, and some are 2 to
3 points more accurate on 10,000 pictures of CIFAR-10, but they learn faint triggers by heart, picture by
picture, instead of as a rule: with 100 pictures of a noise blend at 7.5 %, after 12 epochs, they recognised
10 to 24 % of those that they were not trained on, this one 55 % (one seed each). What a watcher does not
learn, it cannot tell of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Proxy"]


class _Block(nn.Module):
    """Two 3x3 convolutions and a way past them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)
        self.past: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            self.past = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, images: Tensor) -> Tensor:
        inner = torch.relu_(self.first_norm(self.first(images)))
        return torch.relu_(self.second_norm(self.second(inner)) + self.past(images))


class Proxy(nn.Module):
    """A small network for pictures of about 16 to 128 pixels; its features have ``4 * width`` entries."""

    def __init__(self, classes: int, width: int = 16, channels: int = 3) -> None:
        """``classes``: how many logits; ``width``: channels of the stem; ``channels``: 1 or 3."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.body = nn.Sequential(_Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of float pictures (batch, channels, height, width)."""
        logits: Tensor = self.head(self.body(self.stem(images)).mean(dim=(2, 3)))
        return logits
