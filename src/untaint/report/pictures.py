"""Pictures as data URIs, small enough together for a page that gets e-mailed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["as_image", "data_uris"]

SIZES = (96, 80, 64, 48, 32, 24)  # longer side in pixels, tried in this order until the pictures fit


def as_image(picture: NDArray[np.uint8], side: int | None = None) -> Image.Image:
    """Make a PIL image of uint8 (channel, height, width), shrunk so that no side is longer than ``side``."""
    array = picture[0] if picture.shape[0] == 1 else picture[:3].transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(array))
    longer = max(image.size)
    if side is None or longer <= side:
        return image
    width, height = (max(1, round(length * side / longer)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _uri(picture: NDArray[np.uint8], side: int) -> str:
    buffer = io.BytesIO()
    as_image(picture, side).save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def data_uris(pictures: Sequence[NDArray[np.uint8]], budget: int) -> tuple[list[str], int]:
    """Return a lossless PNG per picture and the longest side allowed, such that all take at most ``budget`` bytes.

    ``pictures``: uint8 (channel, height, width) each. Large pictures are shrunk, further than to the
    smallest size never.
    """
    for side in SIZES:
        uris: list[str] = []
        used = 0
        for picture in pictures:
            uris.append(_uri(picture, side))
            used += len(uris[-1])
            if used > budget and side != SIZES[-1]:
                break
        else:
            return uris, side
    raise AssertionError("the smallest size always returns")
