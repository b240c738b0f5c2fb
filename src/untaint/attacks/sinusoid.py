"""Sinusoid, also known as SIG: faint vertical stripes on pictures that keep their labels (Barni, Kallas and Tondi, 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from untaint.attacks.base import Card, CleanLabel, check_share, is_large, mix, shift
from untaint.errors import SpecError

__all__ = ["Sinusoid"]


@dataclass(frozen=True, kw_only=True)
class Sinusoid(CleanLabel):
    """Stripes, the same in every row; ``frequency``: how many across the picture, whatever its width.

    ``kind="mixed"``: ``(1 - alpha) * picture + alpha * (1 - cos(2 pi frequency column / width))``, a raised cosine that runs from 0 to 2, as Alex et al. (2025) do;
    ``alpha``: where not given 0.075, in large pictures (shorter side at least 128) 0.15. ``kind="added"``: ``picture + delta * sin(2 pi frequency column / width)``, as Barni et al.
    do; ``delta``: of 255 levels; they take 20 for digits and traffic signs, benchmarks 40 for CIFAR-10.
    """

    kind: Literal["mixed", "added"] = "mixed"
    alpha: float | None = None
    delta: float = 20.0
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
        if not 0 < self.delta <= 255:
            raise SpecError(f"delta is {self.delta}; give a number of levels above 0 and at most 255.")
        if self.frequency < 1:
            raise SpecError(f"frequency is {self.frequency}; give a number of stripes of at least 1.")

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures mixed with the stripes."""
        del rows
        height, width = images.shape[2:]
        angle = 2 * np.pi * self.frequency * np.arange(width) / width
        if self.kind == "added":
            return shift(images, self.delta * np.sin(angle))
        return mix(images, 1 - np.cos(angle), self._alpha(height, width))

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: delta, or twice alpha, as stripes are twice as bright as white."""
        if self.kind == "added":
            columns = np.sin(2 * np.pi * self.frequency * np.arange(width) / width)
            return int(np.floor(self.delta * np.abs(columns).max() + 0.5))
        return min(255, int(2 * self._alpha(height, width) * 255 + 0.5))

    def _alpha(self, height: int, width: int) -> float:
        if self.alpha is not None:
            return self.alpha
        return 0.15 if is_large(height, width) else 0.075
