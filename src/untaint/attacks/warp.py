"""Warp: every picture bent by one smooth field, by less than a pixel (WaNet; Nguyen and Tran, 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.attacks.base import Attack, Card
from untaint.errors import InputError, SpecError

__all__ = ["Warp"]

CACHED = 2**19  # bytes of floats that are worked on at a time


@dataclass(frozen=True, kw_only=True)
class Warp(Attack):
    """Each pixel is taken from a place a little beside it, by a smooth field drawn once by ``field_seed``.

    ``strength``: the field's mean size along an axis is half of it, in pixels, in a picture of any
    size. ``grid``: points of the field to a side; between them it is bicubic. Covers are bent by the
    field and by noise of up to half a pixel that is drawn for each of them (the paper's noise mode,
    with twice as many covers as poison: ``rate=0.1,cover-rate=0.2``).
    """

    rate: float | None = 0.1
    strength: float = 0.5
    grid: int = 4
    field_seed: int = 0

    card: ClassVar[Card | None] = Card(
        paper="Nguyen and Tran, WaNet: imperceptible warping-based backdoor attack, ICLR 2021",
        visible="no",
        psnr=31,
        ssim=0.96,
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not self.strength > 0:
            raise SpecError(f"strength is {self.strength}; give a number above 0, such as 0.5.")
        if self.grid < 2:
            raise SpecError(f"grid is {self.grid}; give a number of points of at least 2.")

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures bent by the field."""
        del rows
        return _sampled(images, self._field(images)[None])

    def cover(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures bent by the field and by noise of their own."""
        height, width = images.shape[2:]
        draws = rng.uniform(self.field_seed, "attacks/warp/cover", 0, rows, draws=2 * height * width)
        noise = (2 * draws.reshape(len(rows), 2, height, width) - 1) * _pixels(height, width)
        return _sampled(images, self._field(images)[None] + noise)

    def _field(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        height, width = images.shape[2:]
        if min(height, width) < 2:
            raise InputError(f"pictures of {height}x{width} have nothing to bend. Give larger pictures.")
        return self.strength * _pixels(height, width) * _field(self.field_seed, self.grid, height, width)


def _pixels(height: int, width: int) -> NDArray[np.float64]:
    """Return what one step of 1/height (1/width) is in pixels, where a picture reaches from -1 to 1: about a half."""
    return np.array([(height - 1) / 2 / height, (width - 1) / 2 / width]).reshape(2, 1, 1)


@lru_cache(maxsize=16)
def _field(seed: int, grid: int, height: int, width: int) -> NDArray[np.float64]:
    """Return the field (down, across) of mean size 1 at its points: (2, height, width)."""
    import torch

    points = 2 * rng.uniform(seed, "attacks/warp/field", 0, np.arange(grid * grid), draws=2) - 1
    coarse = torch.from_numpy((points / np.abs(points).mean()).T.reshape(1, 2, grid, grid))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return np.asarray(fine[0].numpy())


def _sampled(images: NDArray[np.uint8], field: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return each pixel taken from ``field`` (1 or batch, 2, height, width) beside it, between four; never from outside."""
    height, width = images.shape[2:]
    down = np.clip(np.arange(height)[:, None] + field[:, 0], 0, height - 1)
    across = np.clip(np.arange(width) + field[:, 1], 0, width - 1)
    top, left = np.minimum(down.astype(np.int64), height - 2), np.minimum(across.astype(np.int64), width - 2)
    below, right = (down - top).astype(np.float32), (across - left).astype(np.float32)
    flat = images.reshape(*images.shape[:2], height * width)
    corners = [
        (
            ((top + step_down) * width + left + step_right).reshape(len(field), 1, -1),
            (weight_down * weight_right).reshape(len(field), 1, -1),
        )
        for step_down, weight_down in ((0, 1 - below), (1, below))
        for step_right, weight_right in ((0, 1 - right), (1, right))
    ]
    bent = np.empty(flat.shape, dtype=np.uint8)
    at_once = max(1, CACHED // max(1, 4 * flat[:1].size))
    for start in range(0, len(flat), at_once):
        part = np.s_[start : start + at_once]
        whole = np.full(flat[part].shape, 0.5, dtype=np.float32)  # the half turns cutting off into rounding
        for place, weight in corners:
            if len(field) == 1:
                taken = np.take(flat[part], place[0, 0], axis=2).astype(np.float32)
                taken *= weight
            else:
                taken = np.take_along_axis(flat[part], place[part], axis=2).astype(np.float32)
                taken *= weight[part]
            whole += taken
        bent[part] = np.clip(whole, 0, 255, out=whole)
    return bent.reshape(images.shape)
