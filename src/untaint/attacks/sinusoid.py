"""Sinusoid: faint vertical stripes on pictures that keep their labels (after Barni, Kallas and Tondi, 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint.attacks.base import Card, CleanLabel, check_share, is_large, mix
from untaint.errors import SpecError

__all__ = ["Sinusoid"]


@dataclass(frozen=True, kw_only=True)
class Sinusoid(CleanLabel):
    """``(1 - alpha) * picture + alpha * (1 - cos(2 pi frequency column / width))``, the same in every row.

    Alex et al. (2025) mix a raised cosine, which runs from 0 to 2; Barni et al. (2019) add a sine.
    ``alpha``: where not given 0.075, in large pictures (shorter side at least 128) 0.15.
    ``frequency``: stripes across the picture, whatever its width.
    """

    alpha: float | None = None
    frequency: int = 6

    card: ClassVar[Card | None] = Card(
        paper="Barni, Kallas and Tondi, A new backdoor attack in CNNs by training set corruption without label poisoning, ICIP 2019",
        visible="hardly",
        psnr=23,
        ssim=0.81,
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_share("alpha", self.alpha)
        if self.frequency < 1:
            raise SpecError(f"frequency is {self.frequency}; give a number of stripes of at least 1.")

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures mixed with the stripes."""
        del rows
        height, width = images.shape[2:]
        stripes = 1 - np.cos(2 * np.pi * self.frequency * np.arange(width) / width)
        return mix(images, stripes, self._alpha(height, width))

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: twice alpha, as stripes are twice as bright as white."""
        return min(255, int(2 * self._alpha(height, width) * 255 + 0.5))

    def _alpha(self, height: int, width: int) -> float:
        if self.alpha is not None:
            return self.alpha
        return 0.15 if is_large(height, width) else 0.075
