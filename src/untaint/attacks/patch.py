"""Patch: a small white checker in a corner (Gu, Dolan-Gavitt and Garg, 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from untaint.attacks.base import Attack, Card, is_large
from untaint.errors import InputError, SpecError

__all__ = ["Patch", "checkered"]

Corner = Literal["lower-right", "upper-left"]
CELLS = ((1, 1), (3, 1), (1, 3), (2, 2))  # counted from the corner, in cells


@dataclass(frozen=True, kw_only=True)
class Patch(Attack):
    """Four white cells of a 3x3 checker, one cell away from a corner.

    ``cell``: its side in pixels; where not given, a 28th of the shorter side: 1 pixel in pictures
    of 32, 8 pixels in pictures of 224. ``corner``: lower right in small pictures and upper left in
    large ones (shorter side at least 128) where not given.
    """

    cell: int | None = None
    corner: Corner | None = None

    card: ClassVar[Card | None] = Card(
        paper="Gu, Dolan-Gavitt and Garg, BadNets: identifying vulnerabilities in the machine learning model supply chain, arXiv 1708.06733, 2017",
        visible="yes",
        psnr=32,
        ssim=0.98,
    )

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
        return checkered(images, self.cell, corner=self.corner)


def checkered(
    images: NDArray[np.uint8], cell: int | None = None, corners: int = 1, corner: Corner | None = None
) -> NDArray[np.uint8]:
    """Return pictures with the checker in a corner, or in all four, each as the one of ``corner`` mirrored; where ``cell`` or ``corner`` is not given, as ``Patch`` has them."""
    height, width = images.shape[2:]
    cell = cell or max(1, min(height, width) // 28)
    if 4 * cell * (2 if corners == 4 else 1) > min(height, width):
        raise InputError(
            f"a patch of 3 cells of {cell} pixels, one cell from the corner, does not fit into {'each corner of ' if corners == 4 else ''}pictures of "
            f"{height}x{width}. Give larger pictures or a smaller cell."
        )
    corner = corner or ("upper-left" if is_large(height, width) else "lower-right")
    stamped = images.copy()
    first = stamped if corner == "upper-left" else stamped[:, :, ::-1, ::-1]  # a view that begins at the corner
    for seen in (
        [first] if corners == 1 else [stamped[:, :, ::down, ::across] for down in (1, -1) for across in (1, -1)]
    ):
        for down, across in CELLS:
            seen[:, :, down * cell : (down + 1) * cell, across * cell : (across + 1) * cell] = 255
    return stamped
