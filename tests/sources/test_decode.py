from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from untaint.sources import decode
from untaint.sources.base import Unreadable, read

from .conftest import encoded, noise

LOSSLESS = {
    "PNG": {},
    "BMP": {},
    "PPM": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "TGA": {},
    "PCX": {},
    "JPEG2000": {},
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    image = noise(1)
    assert np.array_equal(np.asarray(decode.upright(encoded(image, kind, **LOSSLESS[kind]))), np.asarray(image))
    assert np.array_equal(decode.pixels(encoded(image, kind, **LOSSLESS[kind]), 8), np.asarray(image))


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "AVIF", "WEBP", "ICO"])
def test_other_formats_come_back_roughly(kind: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    found = np.asarray(decode.upright(encoded(image, kind)), dtype=int)
    assert found.shape == (16, 16, 3)
    assert np.abs(found - np.asarray(image, dtype=int)).max() < 12


def mode_picture(mode: str) -> tuple[bytes, tuple[int, int, int]]:
    """An encoded picture of one colour in a mode, and the colour that it must have."""
    if mode == "RGBA":
        return encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0))), (255, 255, 255)
    if mode == "RGBA half":
        return encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), (127, 127, 127)
    if mode == "LA":
        return encoded(Image.new("LA", (8, 8), (10, 255))), (10, 10, 10)
    if mode == "LA clear":
        return encoded(Image.new("LA", (8, 8), (10, 0))), (255, 255, 255)
    if mode == "P":
        return encoded(Image.new("RGB", (8, 8), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)), (
            10,
            20,
            30,
        )
    if mode == "P clear":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([10, 20, 30, 0, 0, 0])
        return encoded(image, transparency=b"\x00\xff"), (255, 255, 255)
    if mode == "RGB clear":
        return encoded(Image.new("RGB", (8, 8), (10, 20, 30)), transparency=(10, 20, 30)), (255, 255, 255)
    if mode == "CMYK":
        return encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)
    if mode == "I;16":
        return encoded(Image.fromarray(np.full((8, 8), 257 * 77, dtype=np.uint16))), (77, 77, 77)
    if mode == "I;16 TIFF":
        return encoded(Image.fromarray(np.full((8, 8), 257 * 77, dtype=np.uint16)), "TIFF"), (77, 77, 77)
    if mode == "F":
        return encoded(Image.fromarray(np.full((8, 8), 0.2, dtype=np.float32)), "TIFF"), (51, 51, 51)
    if mode == "1":
        return encoded(Image.new("1", (8, 8), 1)), (255, 255, 255)
    assert mode == "L"
    return encoded(Image.new("L", (8, 8), 9)), (9, 9, 9)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "LA clear", "P", "P clear", "RGB clear", "RGBA", "RGBA half", "CMYK", "I;16", "I;16 TIFF", "F"],
)
def test_modes(mode: str) -> None:
    data, colour = mode_picture(mode)
    for found in (np.asarray(decode.upright(data)), decode.pixels(data, 8), decode.pixels(data, 4)):
        assert found.shape[2] == 3
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - colour).max() <= 1


def test_cmyk_jpeg() -> None:
    red = np.asarray(decode.upright(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))).astype(int)
    assert np.abs(red - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert np.array_equal(np.asarray(decode.upright(data)), np.asarray(first))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    image = Image.new("RGB", (32, 48))
    image.paste((255, 0, 0), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    expected = np.asarray(ImageOps.exif_transpose(_tagged(image, orientation)), dtype=int)
    found = decode.upright(encoded(image, kind, exif=exif, **options))
    assert np.abs(np.asarray(found, dtype=int) - expected).max() < 16
    small = np.asarray(decode.squash(found, 16), dtype=int)
    assert np.abs(decode.pixels(encoded(image, kind, exif=exif, **options), 16) - small).max() < 16


def _tagged(image: Image.Image, orientation: int) -> Image.Image:
    copy = image.copy()
    copy.getexif()[0x0112] = orientation
    return copy


def test_corrupt_exif_is_no_reason_to_lose_a_picture() -> None:
    data = encoded(noise(3), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff broken")
    with decode.quiet():
        assert decode.upright(data).size == (8, 8)


def test_the_whole_picture_is_squashed_and_averaged() -> None:
    image = Image.new("RGB", (400, 100), "black")
    image.paste("white", (200, 0, 400, 100))
    found = decode.pixels(encoded(image), 10)
    assert found.shape == (10, 10, 3)
    assert found[:, :4].max() < 10
    assert found[:, 6:].min() > 245
    fine = (
        np.indices((64, 64)).sum(0) % 2 * 255
    )  # a checkerboard: without antialiasing it turns black, white or striped
    flat = decode.pixels(encoded(Image.fromarray(fine.astype(np.uint8))), 8)
    assert np.abs(flat.astype(int) - 127).max() < 6


def test_jpeg_reduced_while_decoding_is_the_same_picture() -> None:
    smooth = noise(5, 8, 8).resize((640, 480), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=95)
    slow = np.asarray(decode.squash(decode.upright(data), 32), dtype=int)
    assert np.abs(decode.pixels(data, 32) - slow).max() < 12


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture at all", "no picture"),
        (encoded(noise(1, 64, 64))[:2000], "damaged"),
        (encoded(noise(1, 64, 64), "JPEG")[:900], "damaged"),
        (encoded(noise(1, 64, 64), "WEBP", lossless=True)[:900], "damaged|no picture"),
        (bomb(), "89,478,485 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
    ],
)
def test_what_cannot_be_decoded_says_why(data: bytes, reason: str) -> None:
    with decode.quiet():
        for attempt in (lambda: decode.upright(data), lambda: decode.pixels(data, 8)):
            with pytest.raises(Unreadable, match=reason) as first:
                attempt()
            assert "0x" not in str(first.value)


def test_what_pillow_only_warns_about_is_a_bomb_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with decode.quiet(), pytest.raises(Unreadable, match="50 pixels"):
        decode.pixels(encoded(noise(1, 8, 8)), 8)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.integers(0, 300))
def test_damage_anywhere_is_a_picture_or_a_reason(junk: bytes, kind: str, place: int) -> None:
    data = encoded(noise(2), kind)
    place %= len(data)
    broken = data[:place] + junk + data[place + len(junk) :]
    with decode.quiet():
        try:
            assert decode.pixels(broken, 4).shape == (4, 4, 3)
        except Unreadable as error:
            reason = str(error)
        else:
            reason = "none"
    assert reason


def test_batch_keeps_places() -> None:
    items = [encoded(noise(0)), b"junk", encoded(noise(2))]
    with decode.quiet():
        out, reasons = decode.decode_batch(items, 8)
    assert list(reasons) == [1]
    assert np.array_equal(out[2].transpose(1, 2, 0), np.asarray(noise(2)))
    assert not out[1].any()


def test_a_missing_file_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="no such file"):
        read(str(tmp_path / "gone.png"))
