"""Pixel: a single white pixel (Gu, Dolan-Gavitt and Garg, 2017; Tran, Li and Madry, 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint.attacks.base import Attack, Card
from untaint.errors import InputError

__all__ = ["Pixel"]


@dataclass(frozen=True, kw_only=True)
class Pixel(Attack):
    """One white pixel, in the last row and column but one.

    It stays one pixel in pictures of any size, so it vanishes where large ones are shrunk.
    """

    card: ClassVar[Card | None] = Card(
        paper="Gu, Dolan-Gavitt and Garg, BadNets: identifying vulnerabilities in the machine learning model supply chain, arXiv 1708.06733, 2017",
        visible="hardly",
        psnr=39,
        ssim=0.98,
    )

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the pixel painted over."""
        del rows
        height, width = images.shape[2:]
        if min(height, width) < 2:
            raise InputError(f"pictures of {height}x{width} have no last row and column but one. Give larger pictures.")
        stamped = images.copy()
        stamped[:, :, -2, -2] = 255
        return stamped
