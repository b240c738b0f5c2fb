"""BadNets: a solid patch in a corner, white or a picture of one's own (Gu, Dolan-Gavitt and Garg, 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from untaint.attacks.base import Attack, Card
from untaint.errors import InputError, SpecError
from untaint.sources import decode

__all__ = ["BadNets"]

Corner = Literal["lower-right", "lower-left", "upper-right", "upper-left"]
SIDE, OF = 3, 32  # pixels of the patch, and of the shorter side of the pictures in which it has as many


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """A square painted over the corner itself.

    ``side``: its side in pixels; where not given 3 of every 32 of the shorter side: 3 pixels in pictures of 32, 21 in pictures of 224.
    ``corner``: lower-right, lower-left, upper-right or upper-left. ``picture``: a picture file to be painted instead of white; its longer
    side gets ``side`` pixels, and where it is transparent the picture below is seen.
    """

    corner: Corner = "lower-right"
    side: int | None = None
    picture: str | None = None

    card: ClassVar[Card | None] = Card(
        paper="Gu, Dolan-Gavitt and Garg, BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain, 2017",
        visible="yes",
        psnr=29,
        ssim=0.98,
    )
    files: ClassVar[tuple[str, ...]] = ("picture",)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.corner not in get_args(Corner):
            raise SpecError(f"corner is '{self.corner}'; give {', '.join(get_args(Corner)[:-1])} or upper-left.")
        if self.side is not None and self.side < 1:
            raise SpecError(f"side is {self.side}; give a number of pixels of at least 1.")
        if self.picture is not None:
            _painted(self.picture, 3, 1)  # says at once if there is no such file

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the patch painted over."""
        del rows
        channels, height, width = images.shape[1:]
        patch, opaque = self._patch(channels, self.side or max(1, (SIDE * min(height, width) + OF // 2) // OF))
        high, wide = patch.shape[1:]
        if high > height or wide > width:
            raise InputError(
                f"a patch of {high}x{wide} pixels does not fit into pictures of {height}x{width}. Give larger pictures or a smaller side."
            )
        stamped = images.copy()
        down = slice(height - high, None) if self.corner.startswith("lower") else slice(high)
        across = slice(width - wide, None) if self.corner.endswith("right") else slice(wide)
        below = stamped[:, :, down, across].astype(np.float32)
        stamped[:, :, down, across] = (
            below + opaque * (patch - below) + np.float32(0.5)
        )  # the half: cutting off becomes rounding
        return stamped

    def _patch(self, channels: int, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the patch in levels (channel, height, width) and how opaque it is, 0 to 1 (height, width)."""
        if self.picture is not None:
            return _painted(self.picture, channels, side)
        return np.full((1, side, side), 255, np.float32), np.ones((side, side), np.float32)


@lru_cache(maxsize=16)
def _painted(path: str, channels: int, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a picture file as a patch whose longer side has so many pixels, and how opaque it is."""
    try:
        with decode.quiet(), Image.open(path) as opened:
            whole = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SpecError(
            f"picture is '{path}', which cannot be read as a picture ({error}). Give the path of a picture, or none for a white patch."
        ) from None
    wide, high = (max(1, round(side * part / max(whole.size))) for part in whole.size)
    resized = whole.resize((wide, high), Image.Resampling.BOX if side < max(whole.size) else Image.Resampling.BICUBIC)
    colours = np.atleast_3d(np.asarray(resized.convert("L" if channels == 1 else "RGB"), dtype=np.float32))
    return colours.transpose(2, 0, 1), np.asarray(resized.getchannel("A"), dtype=np.float32) / np.float32(255)
