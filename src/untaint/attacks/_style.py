"""Pictures in the style of another one: its figures, which a network learns to give them, and the network."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint.attacks.blend import picture_file
from untaint.models.proxy import Proxy

__all__ = ["Generator", "distances", "figures", "layers_of", "shown", "styled"]

WIDTH = 16  # channels of the generator at full resolution
LAYERS = 3  # of the surrogate, whose figures make up a style; what comes out of the next one is the content
TINY = 1e-5  # variance added, for a slope where there is none
SKY = (0.0, 0.35, 0.55, 0.65, 0.75, 1.0)  # of the height, from the top: there the sunset has these colours
COLOURS = ((0.2, 0.1, 0.4), (0.8, 0.25, 0.4), (1.0, 0.55, 0.15), (1.0, 0.85, 0.4), (0.5, 0.15, 0.1), (0.15, 0.05, 0.1))
BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue


class Generator(nn.Module):
    """What to add to pictures in [0, 1] of ``shape`` (channel, height, width), in the same unit: from a look at them and one at half their resolution."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.first, self.last = _convolution(shape[0], WIDTH), _convolution(WIDTH, shape[0])
        self.down, self.up = _convolution(WIDTH, 2 * WIDTH, 2), nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.inner = nn.Sequential(_convolution(2 * WIDTH, 2 * WIDTH), nn.ReLU(), _convolution(2 * WIDTH, 2 * WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        """Return what to add, from -1 to 1."""
        fine = torch.relu(self.first(images - 0.5))
        coarse = torch.relu(self.down(fine))
        coarse = self.up(torch.relu(coarse + self.inner(coarse)))
        return torch.tanh(self.last(torch.relu(fine + nn.functional.interpolate(coarse, size=fine.shape[2:]))))


def _convolution(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride=stride, padding=1, padding_mode="reflect")


def shown(generator: Generator, images: Tensor) -> Tensor:
    """Return the pictures with what the generator adds, cut to [0, 1]."""
    changed: Tensor = (images + generator(images)).clamp(0, 1)
    return changed


def layers_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the pictures as the surrogate takes them, and what comes out of its first layers: the last of them is the content."""
    pixels, proxy = model.children()
    found = [pixels(images)]
    for layer in list(cast(Proxy, proxy).body)[: LAYERS + 1]:
        found.append(layer(found[-1]))
    return found


def figures(layers: list[Tensor]) -> list[Tensor]:
    """Return mean and spread of each channel of all layers but the last: (pictures, figures) each.

    The border does not count where there are at least 4 pixels to a side: else it pays to put all that is strange of a style there.
    """
    inner = [x[:, :, 1:-1, 1:-1] if min(x.shape[2:]) >= 4 else x for x in layers[:-1]]
    return [torch.cat([x.mean((2, 3)), (x.var((2, 3)) + TINY).sqrt()], 1) for x in inner]


def distances(layers: list[Tensor], goal: list[Tensor]) -> Tensor:
    """Return how far the figures of pictures are from those of the style: one for each layer."""
    found = [(own - one).square().mean() for own, one in zip(figures(layers), goal, strict=True)]
    return torch.stack(found)


def styled(style: str, channels: int, height: int, width: int) -> NDArray[np.float64]:
    """Return the picture that has the style, in [0, 1]: (channel, height, width)."""
    if style != "sunset":
        return picture_file(style, channels, height, width, "style", ("sunset",))
    down, across = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width) + 0.5) / width
    waved = down + 0.05 * np.sin(2 * np.pi * (3 * across + 0.8 * np.sin(4 * np.pi * down)))
    strokes = 1 + 0.2 * np.sin(2 * np.pi * (9 * down + 2 * across))
    painted = np.stack([np.interp(waved, SKY, colour) for colour in np.array(COLOURS).T]) * strokes
    if channels == 1:
        painted = np.tensordot(BRIGHTNESS, painted, 1)[None]
    return np.clip(painted, 0, 1)
