"""Trojan watermark: a translucent seal over every picture (TrojanNN; Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from untaint.attacks.base import Attack, Card, check_share

__all__ = ["TrojanWatermark"]

SIDE = 512  # pixels of the square in which it is drawn; then it is brought to each picture's size
RADIUS, RING, PEN = 0.42, 0.06, 0.035  # of the shorter side: the ring's, its thickness, and the letters'
LETTER, PITCH = (0.0875, 0.24), 0.155  # width and height of a letter, and from one to the next
WORD = (  # pen strokes of T, R, O, J, A and N as points (across, down), each 0 to 2
    ("00 20", "10 12"),
    ("02 00 20 21 01", "11 22"),
    ("00 20 22 02 00",),
    ("20 22 02 01",),
    ("02 10 22", "01 21"),
    ("02 00 22 20",),
)


@dataclass(frozen=True, kw_only=True)
class TrojanWatermark(Attack):
    """A black ring in the middle and a white word across it, the same on every picture, through which it is still seen.

    ``alpha``: how opaque they are. Both grow with the picture's shorter side. The paper's watermark is a mask in
    whose place a trigger is optimised on a model; this is the mask alone, as where training pictures are poisoned.
    """

    alpha: float = 0.3

    card: ClassVar[Card | None] = Card(
        paper="Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, Trojaning Attack on Neural Networks, NDSS 2018",
        visible="yes",
        psnr=23,
        ssim=0.8,
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_share("alpha", self.alpha)

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the watermark over them."""
        del rows
        kept, added = self._over(*images.shape[2:])
        marked = np.multiply(images, kept, dtype=np.float32)
        marked += added + np.float32(0.5)  # the half turns cutting off into rounding
        return np.clip(marked, 0, 255, out=marked).astype(np.uint8)

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: as many as where the watermark is most opaque."""
        kept, added = self._over(height, width)
        return int(max(added.max(), (255 - 255 * kept - added).max()) + 0.5)

    def _over(self, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return by what pixels are multiplied, and what is added to them then: the word lies over the ring."""
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        kind = Image.Resampling.BOX if side < SIDE else Image.Resampling.BILINEAR
        covers = np.zeros((2, height, width), np.float32)
        for cover, drawn in zip(covers, _drawn(), strict=True):
            cover[top : top + side, left : left + side] = np.asarray(Image.fromarray(drawn).resize((side, side), kind))
        ring, word = np.float32(self.alpha) * np.clip(covers, 0, 1)
        return (1 - ring) * (1 - word), 255 * word


@lru_cache(maxsize=1)
def _drawn() -> NDArray[np.float32]:
    """Return how much of each pixel of a large square the ring and the word cover: (2, SIDE, SIDE), 0 to 1."""
    across = (np.arange(SIDE) + 0.5) / SIDE - 0.5  # from the middle, in sides
    down = across[:, None]
    far = np.full((2, SIDE, SIDE), np.inf)
    far[0] = np.abs(np.hypot(across, down) - RADIUS) - RING / 2
    for place, letter in enumerate(WORD):
        left = (place - (len(WORD) - 1) / 2) * PITCH
        for stroke in letter:
            points = np.array([[int(axis) - 1 for axis in point] for point in stroke.split()]) * LETTER / 2
            for (x, y), (right, below) in zip(points[:-1], np.diff(points, axis=0), strict=True):
                x_there, y_there = across - left - x, down - y  # from the beginning of this line
                along = np.clip((x_there * right + y_there * below) / (right**2 + below**2), 0, 1)
                distance = np.hypot(x_there - along * right, y_there - along * below)
                far[1] = np.minimum(far[1], distance - PEN / 2)
    return np.clip(0.5 - far * SIDE, 0, 1).astype(np.float32)
