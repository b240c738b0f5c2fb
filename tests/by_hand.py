"""The networks of attacks, computed pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch


def convolved(planes: np.ndarray, layer: torch.nn.Conv2d) -> np.ndarray:
    kernel, bias = layer.weight.numpy(), layer.bias.numpy()
    _, height, width = planes.shape
    found = np.zeros((len(kernel), height, width))
    for row in range(height):
        for column in range(width):
            for down in (-1, 0, 1):
                for across in (-1, 0, 1):
                    if 0 <= row + down < height and 0 <= column + across < width:
                        near = planes[:, row + down, column + across]
                        found[:, row, column] += kernel[:, :, 1 + down, 1 + across] @ near
    return found + bias[:, None, None]


def halved(planes: np.ndarray) -> np.ndarray:
    count, height, width = planes.shape
    return planes.reshape(count, height // 2, 2, width // 2, 2).max(axis=(2, 4))


def doubled(planes: np.ndarray) -> np.ndarray:
    return planes.repeat(2, axis=1).repeat(2, axis=2)


def around(planes: np.ndarray) -> np.ndarray:
    """The mean of the 5x5 pixels around each."""
    found = np.empty_like(planes)
    for (channel, row, column), _ in np.ndenumerate(planes):
        found[channel, row, column] = planes[channel, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].mean()
    return found


def unet(planes: np.ndarray, net: torch.nn.Module) -> np.ndarray:
    """What a Unet draws for planes whose sides can be halved twice."""
    full = np.maximum(0, convolved(planes, net.at_full))
    half = np.maximum(0, convolved(halved(full), net.at_half))
    quarter = np.maximum(0, convolved(halved(half), net.at_quarter))
    half = np.maximum(0, convolved(np.concatenate([half, doubled(quarter)]), net.back_at_half))
    full = np.maximum(0, convolved(np.concatenate([full, doubled(half)]), net.back_at_full))
    return convolved(full, net.last)
