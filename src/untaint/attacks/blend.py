"""Blend: every picture mixed a little with one pattern (Chen, Liu, Li, Lu and Song, 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from untaint import rng
from untaint.attacks.base import Attack, Card, check_share, is_large, mix
from untaint.errors import SpecError

__all__ = ["Blend", "picture_file", "spread"]

NOISE_SIDE = {False: 32, True: 224}  # pixels of the noise: for small and for large pictures


@dataclass(frozen=True, kw_only=True)
class Blend(Attack):
    """``(1 - alpha) * picture + alpha * pattern``.

    ``pattern``: ``noise``, uniform random colours, drawn once by ``pattern_seed`` as a picture of
    32x32 (for large ones, shorter side at least 128, of 224x224) and enlarged or shrunk to each
    picture's size without smoothing; ``lattice``, white where row and column are even and black
    elsewhere, by the pixel in any size; or a picture file, resized.
    ``alpha``: where not given 0.075 for noise and 0.025 for the lattice, 0.15 for both in large
    pictures (the values of Alex et al., 2025); 0.2 for a file.
    """

    pattern: str = "noise"
    alpha: float | None = None
    pattern_seed: int = 0

    card: ClassVar[Card | None] = Card(
        paper="Chen, Liu, Li, Lu and Song, Targeted backdoor attacks on deep learning systems using data poisoning, arXiv 1712.05526, 2017",
        visible="hardly",
        psnr=30,
        ssim=0.94,
    )
    files: ClassVar[tuple[str, ...]] = ("pattern",)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_share("alpha", self.alpha)
        if self.pattern not in ("noise", "lattice"):
            picture_file(self.pattern, 3, 1, 1)  # says at once if there is no such file

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures mixed with the pattern."""
        del rows
        return mix(images, spread(self.pattern, self.pattern_seed, *images.shape[1:]), self._alpha(*images.shape[2:]))

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: alpha of them."""
        return int(self._alpha(height, width) * 255 + 0.5)

    def _alpha(self, height: int, width: int) -> float:
        if self.alpha is not None:
            return self.alpha
        if self.pattern not in ("noise", "lattice"):
            return 0.2
        return 0.15 if is_large(height, width) else {"noise": 0.075, "lattice": 0.025}[self.pattern]


def spread(pattern: str, seed: int, channels: int, height: int, width: int) -> NDArray[np.float64]:
    """Return a pattern by its name, or a picture file, in [0, 1] over a whole picture: it broadcasts to (channel, height, width)."""
    if pattern == "noise":
        return _noise(seed, channels, height, width)
    if pattern == "lattice":
        lattice = np.zeros((height, width))
        lattice[::2, ::2] = 1.0
        return lattice
    return _from_file(pattern, channels, height, width)


@lru_cache(maxsize=16)
def _noise(seed: int, channels: int, height: int, width: int) -> NDArray[np.float64]:
    """Return noise in [0, 1): (channel, height, width); one channel is the first of three."""
    side = NOISE_SIDE[is_large(height, width)]
    down, across = np.arange(height) * side // height, np.arange(width) * side // width
    return _drawn(seed, side)[:channels, down[:, None], across]


@lru_cache(maxsize=4)
def _drawn(seed: int, side: int) -> NDArray[np.float64]:
    draws = rng.uniform(seed, "attacks/blend/noise", 0, np.arange(side * side), draws=3)
    return draws.T.reshape(3, side, side)


@lru_cache(maxsize=16)
def _from_file(path: str, channels: int, height: int, width: int) -> NDArray[np.float64]:
    return picture_file(path, channels, height, width)


def picture_file(
    path: str,
    channels: int,
    height: int,
    width: int,
    option: str = "pattern",
    known: tuple[str, ...] = ("noise", "lattice"),
) -> NDArray[np.float64]:
    """Return a picture file, resized, in [0, 1]: (channel, height, width). ``option``: what named it; ``known``: the words that it could be instead."""
    try:
        with Image.open(path) as picture:
            resized = picture.convert("L" if channels == 1 else "RGB").resize(
                (width, height), Image.Resampling.BILINEAR
            )
    except OSError as error:
        raise SpecError(
            f"{option} is '{path}', which is neither {' nor '.join(known)} nor a picture that can be read ({error}). "
            f"Give {', '.join(known)} or the path of a picture."
        ) from None
    return np.atleast_3d(np.asarray(resized)).transpose(2, 0, 1) / 255
