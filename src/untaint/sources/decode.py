"""From the bytes of one picture to upright RGB pixels.

EXIF orientation is honoured; transparency lies on white; 16-bit pictures are scaled to 8; of an
animation the first frame is taken. Only formats that Pillow decodes itself are opened (EPS, for
one, would start another program).
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from untaint.sources.base import Item, Unreadable, read

__all__ = [
    "PICTURE_SUFFIXES",
    "VERSION",
    "decode_batch",
    "explain",
    "finished",
    "opened",
    "pixels",
    "quiet",
    "squash",
    "upright",
]

VERSION = 1  # raise when the same bytes would give other pixels: it is part of the cache's key

_PLUGINS = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "PPM": "Ppm",
    "GIF": "Gif",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "MPO": "Mpo",
    "AVIF": "Avif",
    "JPEG2000": "Jpeg2K",
    "ICO": "Ico",
    "PCX": "Pcx",
    "TGA": "Tga",
}
PICTURE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".mpo"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
        *(".ico", ".pcx", ".tga"),
    )
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # the EXIF tag
_EXIF_PLACES = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


@cache
def _formats() -> list[str]:
    Image.preinit()
    for plugin in _PLUGINS.values():
        try:
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
        except ImportError:  # AVIF is younger than the oldest Pillow that is supported
            continue
    return [name for name in _PLUGINS if name in Image.OPEN]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's remarks on odd files to itself, but let none of its bomb warnings pass as a picture."""
    with warnings.catch_warnings():
        silence()
        yield


def silence() -> None:
    """Set the warning filters of ``quiet`` for good; for a process of our own."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def explain(error: Exception) -> str:
    """Return in a few words, the same each time, why a picture could not be decoded."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels (a decompression bomb?)"
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture in a format that can be read"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    text = re.sub(r"<[^>]*>|0x[0-9a-f]+", "", str(error)).strip()
    return f"it is damaged ({text or type(error).__name__})"


def _reason(error: Exception) -> Unreadable:
    return error if isinstance(error, Unreadable) else Unreadable(explain(error))


def opened(data: bytes) -> Image.Image:
    """Return a picture whose header was read and whose pixels were not; raises Unreadable."""
    if not data:
        raise Unreadable("the file is empty (0 bytes)")
    try:
        return Image.open(BytesIO(data), formats=_formats())
    except Exception as error:  # Pillow raises nearly every kind for damaged files
        raise _reason(error) from None


def upright(data: bytes) -> Image.Image:
    """Return one picture in RGB at its own size, turned upright; raises Unreadable."""
    return finished(opened(data))


def finished(image: Image.Image) -> Image.Image:
    """Return an image that somebody else opened, in RGB and upright; raises Unreadable."""
    try:
        image.load()
        return _turned(_flat(image), _orientation(image))
    except Exception as error:
        raise _reason(error) from None


def pixels(data: bytes, size: int) -> NDArray[np.uint8]:
    """Return one picture squashed to a square: uint8 (size, size, 3); raises Unreadable.

    A large JPEG is reduced while it is decoded, to no less than twice the size, then with a filter.
    """
    image = opened(data)
    try:
        if image.format in ("JPEG", "MPO"):
            image.draft(image.mode, (2 * size, 2 * size))
        image.load()
        return np.asarray(_turned(squash(_flat(image), size), _orientation(image)))
    except Exception as error:
        raise _reason(error) from None


def squash(image: Image.Image, size: int) -> Image.Image:
    """Return the whole picture, size x size, never cropped: antialiased when it is reduced, smooth when enlarged."""
    if image.size == (size, size):
        return image
    # When reducing, Hamming is as sharp as bicubic at two thirds of the time.
    kind = Image.Resampling.HAMMING if min(image.size) >= size else Image.Resampling.BICUBIC
    return image.resize((size, size), kind, reducing_gap=2.0)


def _orientation(image: Image.Image) -> int:
    if image.format != "TIFF" and not any(place in image.info for place in _EXIF_PLACES):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data say nothing about the pixels
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _flat(image: Image.Image) -> Image.Image:
    """Return the picture in RGB, transparency on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        white = Image.new("RGBA", solid.size, "white")
        return Image.alpha_composite(white, solid).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode == "F":
        top = 1.0 if values.max(initial=0.0) <= 1.0 else 255.0
    else:  # a 16-bit picture may come in mode I
        top = 65_535.0 if values.max(initial=0.0) <= 65_535.0 else 2.0**32 - 1
    return Image.fromarray(np.rint(np.clip(values / top, 0.0, 1.0) * 255.0).astype(np.uint8))


def decode_batch(items: list[Item], size: int) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Return uint8 (items, 3, size, size), and the reason for each item that could not be decoded (it is 0)."""
    out = np.zeros((len(items), 3, size, size), dtype=np.uint8)
    reasons: dict[int, str] = {}
    for place, item in enumerate(items):
        try:
            out[place] = pixels(read(item), size).transpose(2, 0, 1)
        except Unreadable as error:
            reasons[place] = str(error)
    return out, reasons
