"""Patch: a small white checker in a corner (Gu, Dolan-Gavitt and Garg, 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from untaint.attacks.base import Attack, is_large
from untaint.errors import InputError, SpecError

__all__ = ["Patch"]

CELLS = ((1, 1), (3, 1), (1, 3), (2, 2))  # counted from the corner, in cells


@dataclass(frozen=True, kw_only=True)
class Patch(Attack):
    """Four white cells of a 3x3 checker, one cell away from a corner.

    ``cell``: its side in pixels; where not given, a 28th of the shorter side: 1 pixel in pictures
    of 32, 8 pixels in pictures of 224. ``corner``: lower right in small pictures and upper left in
    large ones (shorter side at least 128) where not given.
    """

    cell: int | None = None
    corner: Literal["lower-right", "upper-left"] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.cell is not None and self.cell < 1:
            raise SpecError(f"cell is {self.cell}; give a number of pixels of at least 1.")
        if self.corner not in (None, "lower-right", "upper-left"):
            raise SpecError(f"corner is '{self.corner}'; give lower-right or upper-left.")

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the checker painted over."""
        del rows
        height, width = images.shape[2:]
        cell = self.cell or max(1, min(height, width) // 28)
        if 4 * cell > min(height, width):
            raise InputError(
                f"a patch of 3 cells of {cell} pixels, one cell from the corner, does not fit into pictures of "
                f"{height}x{width}. Give larger pictures or a smaller cell."
            )
        corner = self.corner or ("upper-left" if is_large(height, width) else "lower-right")
        stamped = images.copy()
        seen = stamped if corner == "upper-left" else stamped[:, :, ::-1, ::-1]  # a view that begins at the corner
        for down, across in CELLS:
            seen[:, :, down * cell : (down + 1) * cell, across * cell : (across + 1) * cell] = 255
        return stamped
