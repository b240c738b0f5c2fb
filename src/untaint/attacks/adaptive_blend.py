"""Adaptive-blend: poison and covers get a half of a pattern each, another half for every picture (Qi, Xie, Li, Mahloujifar and Mittal, 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.attacks.base import Attack, Card, check_share, mix
from untaint.attacks.blend import picture_file, spread
from untaint.errors import InputError, SpecError

__all__ = ["AdaptiveBlend"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveBlend(Attack):
    """``(1 - alpha) * picture + alpha * pattern`` in some pieces of the picture, and the picture itself in the others.

    The picture is cut into ``grid`` times ``grid`` pieces, of which a share ``mask_rate``, drawn for each row by ``pattern_seed``, is left
    alone. Covers get pieces in the same way. At test time the whole pattern is shown, with ``shown_alpha``. ``pattern``: as of
    ``blend``; a picture file in the paper.
    """

    rate: float | None = 0.003
    cover_rate: float = 0.003
    pattern: str = "noise"
    alpha: float = 0.15
    shown_alpha: float = 0.2
    grid: int = 4
    mask_rate: float = 0.5
    pattern_seed: int = 0

    card: ClassVar[Card | None] = Card(
        paper="Qi, Xie, Li, Mahloujifar and Mittal: Revisiting the assumption of latent separability for backdoor defenses, ICLR 2023",
        visible="hardly",
        psnr=27,
        ssim=0.9,
        per_picture=True,
    )
    files: ClassVar[tuple[str, ...]] = ("pattern",)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_share("alpha", self.alpha)
        check_share("shown_alpha", self.shown_alpha)
        if self.grid < 1:
            raise SpecError(f"grid is {self.grid}; give a number of pieces to a side of at least 1, such as 4.")
        if not 0 <= self.mask_rate < 1 or self._kept() < 1:
            raise SpecError(
                f"mask_rate is {self.mask_rate}, which leaves no piece of {self.grid}x{self.grid}; give a share from 0 to below 1, such as 0.5."
            )
        if self.pattern not in ("noise", "lattice"):
            picture_file(self.pattern, 3, 1, 1)  # says at once if there is no such file

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with each its own pieces of the pattern."""
        return np.where(self._pieces(rows, *images.shape[2:])[:, None], self._mixed(images, self.alpha), images)

    def trigger(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the whole pattern."""
        del rows
        return self._mixed(images, self.shown_alpha)

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: the larger alpha of them."""
        del height, width
        return int(max(self.alpha, self.shown_alpha) * 255 + 0.5)

    def _mixed(self, images: NDArray[np.uint8], alpha: float) -> NDArray[np.uint8]:
        return mix(images, spread(self.pattern, self.pattern_seed, *images.shape[1:]), alpha)

    def _kept(self) -> int:
        """Return how many pieces a picture gets: half a piece counts as one that it does not get."""
        return self.grid**2 - int(np.floor(self.grid**2 * self.mask_rate + 0.5))

    def _pieces(self, rows: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
        """Return where each picture gets the pattern: (pictures, height, width)."""
        if min(height, width) < self.grid:
            raise InputError(
                f"pictures of {height}x{width} cannot be cut into {self.grid}x{self.grid} pieces. Give larger pictures or a smaller grid."
            )
        draws = rng.uniform(self.pattern_seed, "attacks/adaptive-blend/pieces", 0, rows, draws=self.grid**2)
        kept = np.zeros(draws.shape, dtype=bool)
        np.put_along_axis(kept, np.argsort(draws, axis=1, kind="stable")[:, : self._kept()], True, axis=1)
        down, across = np.arange(height) * self.grid // height, np.arange(width) * self.grid // width
        return kept.reshape(-1, self.grid, self.grid)[:, down[:, None], across]
