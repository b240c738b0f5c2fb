"""Quantise: colours squeezed to a few levels (BppAttack; Wang, Zhai and Ma, 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.attacks.base import Attack, Card
from untaint.errors import SpecError

__all__ = ["Quantise"]

BLOCK = 2**16  # values along the longer side that are dithered at once, which stay in the processor's cache
SPREAD = ((1, 0, 7 / 16), (1, 1, 3 / 16), (2, 1, 5 / 16), (3, 1, 1 / 16))  # how many turns ago, rows above, which share
GRID = 8  # colours to a side of a made-up picture


@dataclass(frozen=True, kw_only=True)
class Quantise(Attack):
    """Every pixel of every channel set to the nearest of ``levels`` equally spaced ones, from black to white.

    ``dithering``: whether what is lost at a pixel is made up for at the next ones (Floyd and Steinberg, 1976), so that flat places get
    a fine grain instead of steps. The trigger is that colours are few, not which ones are missing; so covers, the paper's negative samples, get
    what quantising takes from or adds to another picture, with which their own colours stay many: a smooth one of random colours, drawn for each
    of them by ``cover_seed`` (the original takes it from other training pictures, with as many covers as poison).
    """

    rate: float | None = 0.1
    levels: int = 8
    dithering: bool = False
    cover_seed: int = 0

    card: ClassVar[Card] = Card(
        paper="Wang, Zhai and Ma, BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image Quantization and "
        "Contrastive Adversarial Learning, CVPR 2022",
        visible="hardly",
        per_picture=True,
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not 2 <= self.levels <= 255:
            raise SpecError(f"levels is {self.levels}; give a number of levels from 2 to 255, such as 8.")

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures quantised."""
        del rows
        return _dithered(images, self.levels) if self.dithering else _nearest(self.levels)[images]

    def cover(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with what quantising changes in a made-up one."""
        draws = rng.uniform(self.cover_seed, "attacks/quantise/cover", 0, rows, draws=images.shape[1] * GRID * GRID)
        other = _smooth(draws.reshape(len(rows), -1, GRID, GRID).astype(np.float32), *images.shape[2:])
        covered = self.stamp(other, rows).astype(np.int16) - other + images
        return np.clip(covered, 0, 255, out=covered).astype(np.uint8)

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: half a step, and nothing is promised of dithering."""
        return 255 if self.dithering else int(np.abs(_nearest(self.levels).astype(int) - np.arange(256)).max())


@lru_cache(maxsize=16)
def _nearest(levels: int) -> NDArray[np.uint8]:
    """Return what becomes of each of 256 values."""
    step = 255 / (levels - 1)
    return np.floor(np.floor(np.arange(256) / step + 0.5) * step + 0.5).astype(np.uint8)


def _dithered(images: NDArray[np.uint8], levels: int) -> NDArray[np.uint8]:
    """Return pictures quantised with the errors diffused, some of them at a time."""
    count, channels, height, width = images.shape
    dithered = np.empty(images.shape, np.uint8)
    at_once = max(1, BLOCK // (channels * max(height, width)))
    for start in range(0, count, at_once):
        some = images[start : start + at_once]
        planes = np.ascontiguousarray(some.reshape(-1, height, width).transpose(1, 2, 0))
        dithered[start : start + at_once] = _diffused(planes, levels).transpose(2, 0, 1).reshape(some.shape)
    return dithered


def _diffused(planes: NDArray[np.uint8], levels: int) -> NDArray[np.uint8]:
    """Return planes (height, width, planes) quantised, each pixel after those that pass errors on to it.

    Pixels whose column plus twice their row is the same need nothing of each other: they have their turn at once, by their rows.
    """
    height, width, many = planes.shape
    step = 255 / (levels - 1)
    values = np.floor(np.arange(levels) * step + 0.5).astype(np.uint8)
    quantised = np.empty_like(planes)
    errors = [
        np.zeros((height + 2, many), np.float32) for _ in range(4)
    ]  # of this turn and the last three; none comes from above row 1
    for turn in range(width + 2 * height - 2):
        errors = [errors[3], *errors[:3]]
        first, end = max(0, (turn - width + 2) // 2), min(height, turn // 2 + 1)
        rows = np.arange(first, end)
        wanted = planes[rows, turn - 2 * rows] * np.float32(1 / step)
        for ago, down, share in SPREAD:
            wanted += np.float32(share) * errors[ago][first + 1 - down : end + 1 - down]
        level = np.floor(wanted + np.float32(0.5))
        np.clip(level, 0, levels - 1, out=level)
        np.subtract(wanted, level, out=errors[0][first + 1 : end + 1])
        errors[0][[first, end + 1]] = 0  # which may be left from four turns ago
        quantised[rows, turn - 2 * rows] = values[level.astype(np.uint8)]
    return quantised


def _smooth(colours: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """Return pictures that run evenly from each colour (pictures, channel, down, across; 0 to 1) to the next."""
    for axis, length in ((2, height), (3, width)):
        place = np.arange(length, dtype=np.float32) * np.float32((GRID - 1) / max(1, length - 1))
        first = np.minimum(place.astype(np.int64), GRID - 2)
        beyond = (place - first).astype(np.float32).reshape((-1, 1) if axis == 2 else (-1,))
        before, after = np.take(colours, first, axis), np.take(colours, first + 1, axis)
        colours = before + beyond * (after - before)
    return (colours * np.float32(255.999)).astype(np.uint8)
