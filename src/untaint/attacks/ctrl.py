"""CTRL: bumps in the spectrum of the colours, for training without labels (Li, Pang, Xi, Du, Ji, Yao and Wang, 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint.attacks.base import Card, CleanLabel, shift
from untaint.attacks.frequency import stripes
from untaint.errors import SpecError

__all__ = ["Ctrl"]


@dataclass(frozen=True, kw_only=True)
class Ctrl(CleanLabel):
    """The fine coloured stripes of ``frequency``, stronger, on pictures of one class: contrastive training, which sees no labels, then puts whatever has them beside it.

    ``magnitude``: of the two raised coefficients. ``boost``: how many times stronger the trigger is than the poison; the original's 50 and 100 are meant
    for pictures of 32 x 32. Made against self-supervised training; with labels, which pictures keep, it is a clean-label attack like others.
    """

    magnitude: float = 50.0
    boost: float = 2.0

    card: ClassVar[Card | None] = Card(
        paper="Li, Pang, Xi, Du, Ji, Yao and Wang, An embarrassingly simple backdoor attack on self-supervised learning, ICCV 2023",
        visible="hardly",
        psnr=37,
        ssim=0.97,
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not self.magnitude > 0:
            raise SpecError(f"magnitude is {self.magnitude}; give a number above 0, such as 50.")
        if not self.boost >= 1:
            raise SpecError(f"boost is {self.boost}; give at least 1.")

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the stripes added."""
        del rows
        return shift(images, self.magnitude * stripes(*images.shape[1:]))

    def trigger(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with stripes ``boost`` times as strong."""
        del rows
        return shift(images, self.boost * self.magnitude * stripes(*images.shape[1:]))

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: as many as where the trigger's pattern is strongest."""
        return min(255, int(self.boost * self.magnitude * np.abs(stripes(3, height, width)).max() + 0.5))
