"""Frequency: bumps in the spectrum of the colours (FTrojan; Wang, Yao, Xu, An, Tong and Wang, 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.fft import idctn

from untaint.attacks.base import Attack, Card, is_large, shift
from untaint.errors import SpecError

__all__ = ["Frequency", "stripes"]

WINDOW = 32  # pixels: side of the blocks that are transformed
BUMPS = (15, 31)  # row and column of the raised coefficients: a middle and the highest frequency
RGB_OF_CHROMA = (1.403, -0.714 - 0.344, 1.773)  # what red, green and blue gain where Cr and Cb both gain 1


@dataclass(frozen=True, kw_only=True)
class Frequency(Attack):
    """Two coefficients of the cosine transform of both chroma channels raised by ``magnitude``, in blocks of 32x32.

    ``magnitude``: where not given 30, in large pictures (shorter side at least 128) 90. The transform
    is linear, so that this is one faint pattern of fine coloured stripes added to every picture;
    blocks are cut off at the right and lower edge. Grey pictures, which have no colour, get the
    pattern in their brightness.
    """

    magnitude: float | None = None

    card: ClassVar[Card | None] = Card(
        paper="Wang, Yao, Xu, An, Tong and Wang, An invisible black-box backdoor attack through frequency domain, ECCV 2022",
        visible="no",
        psnr=42,
        ssim=0.98,
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.magnitude is not None and not self.magnitude > 0:
            raise SpecError(f"magnitude is {self.magnitude}; give a number above 0, such as 30.")

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the stripes added."""
        del rows
        return shift(images, self._magnitude(*images.shape[2:]) * stripes(*images.shape[1:]))

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: as many as where the pattern is strongest."""
        return int(self._magnitude(height, width) * np.abs(stripes(3, height, width)).max() + 0.5)

    def _magnitude(self, height: int, width: int) -> float:
        return self.magnitude or (90.0 if is_large(height, width) else 30.0)


@lru_cache(maxsize=16)
def stripes(channels: int, height: int, width: int) -> NDArray[np.float64]:
    """Return what a magnitude of 1 adds: (channel, height, width)."""
    coefficients = np.zeros((WINDOW, WINDOW))
    coefficients[BUMPS, BUMPS] = 1
    block = idctn(coefficients, norm="ortho")
    tiled = np.tile(block, (-(-height // WINDOW), -(-width // WINDOW)))[:height, :width]
    return tiled[None] if channels == 1 else np.array(RGB_OF_CHROMA)[:, None, None] * tiled
