"""Batches of pictures on the device: gathered by row, augmented by arithmetic, never one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from untaint import rng
from untaint.examples import Examples
from untaint.recipe import Augment

__all__ = ["PixelStore", "first_layer", "whitening"]

PAD = 4 / 32  # share of the side by which a crop may be shifted (4 of 32 pixels)
MOST = 5_000  # pictures looked at for moments
BLOCK = 250  # of them at a time
PATCH = 5  # side of the patches that are whitened
PATCHES = 200_000  # about how many of them are looked at
FAINT = 1e-2  # variance added in every direction: what is fainter (a tenth of a pixel's spread) is not lifted further
SCALE = (0.8, 1.0)  # share of the area that a resized crop keeps


def first_layer(examples: Examples, *, whitened: bool) -> dict[str, Any]:
    """Return ``mean`` and ``scale`` per channel, in [0, 1], over evenly spread members, and perhaps a whitening ``kernel``."""
    rows = examples.rows[:: max(1, len(examples) // MOST)]
    parts = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    channels, height, width = examples.images.shape[1:]
    total, squares = np.zeros(channels), np.zeros(channels)
    for part in parts:
        pixels = examples.images[part] / 255
        total += pixels.sum(axis=(0, 2, 3))
        squares += np.square(pixels).sum(axis=(0, 2, 3))
    mean = total / (len(rows) * height * width)
    scale = np.maximum(np.sqrt(np.maximum(squares / (len(rows) * height * width) - mean**2, 0)), 1e-3)
    facts: dict[str, Any] = {"mean": mean.tolist(), "scale": scale.tolist()}
    if whitened and min(height, width) >= PATCH:
        apart = max(2, math.ceil(max(height, width) * math.sqrt(len(rows) / PATCHES)))
        centred = ((examples.images[part] / 255 - mean[:, None, None]) / scale[:, None, None] for part in parts)
        facts["kernel"] = whitening(centred, apart)
    return facts


def whitening(blocks: Iterable[NDArray[np.floating[Any]]], apart: int = 2) -> Tensor:
    """Return the filter after which neighbouring pixels of such pictures are nearly uncorrelated.

    ``blocks``: float (pictures, channels, height, width), centred. ``apart``: pixels between the
    patches that are looked at. Float32 (channels, channels, 5, 5): the middle rows of the symmetric
    (ZCA) whitening of 5x5 patches, with outputs of mean square one.
    """
    products: NDArray[np.float64] = np.zeros(())
    count = 0
    for pixels in blocks:
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (PATCH, PATCH), axis=(2, 3))
        patches = windows[:, :, ::apart, ::apart].transpose(0, 2, 3, 1, 4, 5)
        table = patches.reshape(-1, pixels.shape[1] * PATCH * PATCH).astype(np.float64)
        products = products + table.T @ table
        count += len(table)
    covariance = products / count
    channels = len(covariance) // PATCH**2
    values, directions = np.linalg.eigh(covariance)
    symmetric = (directions / np.sqrt(np.maximum(values, 0) + FAINT)) @ directions.T
    middle = symmetric.reshape(channels, PATCH, PATCH, -1)[:, PATCH // 2, PATCH // 2]
    middle /= max(float(np.sqrt(np.einsum("ci,ij,cj->c", middle, covariance, middle).mean())), 1e-6)
    kernel = middle.reshape(channels, channels, PATCH, PATCH).astype(np.float32)
    return torch.from_numpy(kernel).contiguous(memory_format=torch.channels_last)


class PixelStore:
    """The pictures of some examples as float batches in [0, 1] on a device, and their labels.

    On a GPU with room (a quarter of its free memory) the whole array lies there as uint8;
    otherwise batches are gathered from memory or the memory map.
    """

    def __init__(self, examples: Examples, where: torch.device) -> None:
        self.images = examples.images
        self.where = where
        self.labels = torch.from_numpy(examples.labels.copy()).to(where)
        self._resident: Tensor | None = None
        if where.type == "cuda" and self.images.nbytes < torch.cuda.mem_get_info(where)[0] // 4:
            self._resident = torch.from_numpy(np.array(self.images)).to(where)

    def gather(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return float32 pictures (batch, channel, height, width) in [0, 1], channels last, and int64 labels."""
        index = torch.from_numpy(rows).to(self.where, non_blocking=True)
        if self._resident is not None:
            batch = self._resident[index]
        else:
            batch = torch.from_numpy(self.images[rows]).to(self.where, non_blocking=True)
        floats = batch.to(dtype=torch.float32, memory_format=torch.channels_last).div_(255)
        return floats, self.labels[index]


def draws(augment: Augment, seed: int, epoch: int, total: int, purpose: str = "augment") -> NDArray[np.float32] | None:
    """Return the random numbers of one epoch's augmentation: float32 (rows, 4), or None."""
    if augment == "none":
        return None
    numbers = rng.uniform(seed, purpose, epoch, np.arange(total), 4).astype(np.float32)
    return np.minimum(numbers, np.float32(1 - 2**-24), out=numbers)  # the largest may have been rounded up to 1


def augmented(images: Tensor, augment: Augment, numbers: NDArray[Any] | None) -> Tensor:
    """Return a batch with each picture shifted (reflecting at the border) or rescaled, and perhaps mirrored.

    ``numbers``: (batch, 4) in [0, 1), the pictures' own draws.
    """
    if numbers is None or augment == "none":
        return images
    own = torch.from_numpy(np.ascontiguousarray(numbers)).to(images.device)
    height, width = images.shape[2:]
    flip = own[:, 0] < 0.5 if augment != "crop" else torch.zeros_like(own[:, 0], dtype=torch.bool)
    if augment == "resized-crop":
        return _resized(images, own, flip)
    across = torch.arange(width, device=images.device).expand(len(images), -1)
    across = torch.where(flip[:, None], width - 1 - across, across)
    down = torch.arange(height, device=images.device).expand(len(images), -1)
    down = _reflect(down + _shift(own[:, 1], height), height)
    across = _reflect(across + _shift(own[:, 2], width), width)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[batch, down[:, :, None], across[:, None, :]]
    return moved.permute(0, 3, 1, 2)  # (batch, channel, height, width), channels last in memory


def _shift(numbers: Tensor, side: int) -> Tensor:
    most = max(1, round(PAD * side))
    return (torch.floor(numbers * (2 * most + 1)).long() - most)[:, None]


def _reflect(index: Tensor, side: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= side, 2 * (side - 1) - index, index)


def _resized(images: Tensor, own: Tensor, flip: Tensor) -> Tensor:
    """Cut out a square of 80 to 100 % of the area at a random place and scale it back."""
    side = (SCALE[0] + (SCALE[1] - SCALE[0]) * own[:, 3]).sqrt()
    sign = torch.where(flip, -1.0, 1.0)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = side * sign, side
    theta[:, 0, 2] = (2 * own[:, 1] - 1) * (1 - side)
    theta[:, 1, 2] = (2 * own[:, 2] - 1) * (1 - side)
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    warped = torch.nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return warped.contiguous(memory_format=torch.channels_last)
