"""BadNets: a patch in a corner, pixel by pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from untaint.attacks.badnets import BadNets
from untaint.errors import InputError, SpecError

ROWS = np.array([5, 2])
CORNERS = ["lower-right", "lower-left", "upper-right", "upper-left"]


def pictures(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 255, (2, channels, height, width), dtype=np.uint8)  # none is white


def save(path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(path)


def place(corner: str, row: int, column: int, patch: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Where in the patch a pixel of the picture lies; may be outside."""
    down = row - (size[0] - patch[0]) if "lower" in corner else row
    across = column - (size[1] - patch[1]) if "right" in corner else column
    return down, across


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize(
    ("size", "side"), [((32, 32), 3), ((28, 40), 3), ((96, 64), 6), ((224, 230), 21), ((9, 17), 1), ((1, 4), 1)]
)
def test_a_white_square_whose_side_is_three_of_32_of_the_shorter_side(corner, size, side):
    images = pictures(*size)
    stamped = BadNets(corner=corner).stamp(images, ROWS)
    for row in range(size[0]):
        for column in range(size[1]):
            down, across = place(corner, row, column, (side, side), size)
            inside = 0 <= down < side and 0 <= across < side
            expected = 255 if inside else images[:, :, row, column]
            assert (stamped[:, :, row, column] == expected).all(), (row, column)


def test_a_side_of_ones_own_up_to_the_whole_picture_and_no_more():
    assert (BadNets(side=12).stamp(pictures(12, 12), ROWS) == 255).all()
    assert (BadNets(side=5).stamp(pictures(12, 20, 1), ROWS) == 255).sum() == 2 * 25
    with pytest.raises(InputError, match=r"13x13 pixels does not fit into pictures of 12x20.* smaller side"):
        BadNets(side=13).stamp(pictures(12, 20), ROWS)


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_painted_and_seen_through_where_it_is_transparent(corner, channels, tmp_path):
    patch = np.random.default_rng(0).integers(0, 256, (4, 4, 4))
    patch[0, 0, 3], patch[3, 1, 3] = 0, 255
    images = pictures(9, 11, channels)
    stamped = BadNets(side=4, corner=corner, picture=save(tmp_path / "patch.png", patch)).stamp(images, ROWS)
    expected = images.copy()
    for row in range(9):
        for column in range(11):
            down, across = place(corner, row, column, (4, 4), (9, 11))
            if not (0 <= down < 4 and 0 <= across < 4):
                continue
            red, green, blue, alpha = patch[down, across].tolist()
            colours = [red, green, blue] if channels == 3 else [(299 * red + 587 * green + 114 * blue) / 1000]
            for channel, colour in enumerate(colours):
                below = images[:, channel, row, column]
                expected[:, channel, row, column] = np.round(below + alpha / 255 * (float(colour) - below))
    assert np.abs(stamped.astype(int) - expected).max() <= (0 if channels == 3 else 1)  # grey is rounded once more
    clear = (-place(corner, 0, 0, (4, 4), (9, 11))[0], -place(corner, 0, 0, (4, 4), (9, 11))[1])
    assert np.array_equal(stamped[:, :, *clear], images[:, :, *clear]), "the patch's first pixel is wholly transparent"


def test_the_longer_side_of_a_picture_gets_the_side(tmp_path):
    tall = save(tmp_path / "tall.png", np.full((40, 20, 3), (10, 200, 30)))
    stamped = BadNets(side=6, picture=tall).stamp(np.full((1, 3, 32, 32), 99, np.uint8), ROWS[:1])
    assert np.argwhere(stamped[0, 0] != 99).min(0).tolist() == [26, 29]
    assert (stamped[0, :, 26:, 29:] == np.array([10, 200, 30])[:, None, None]).all()


def test_a_large_picture_is_averaged_and_a_small_one_enlarged(tmp_path):
    fine = np.zeros((90, 90, 3))
    fine[::2, 1::2] = fine[1::2, ::2] = 200
    shrunk = BadNets(picture=save(tmp_path / "fine.png", fine)).stamp(pictures(32, 32), ROWS)[:, :, -3:, -3:]
    assert np.abs(shrunk.astype(int) - 100).max() <= 1
    one = save(tmp_path / "one.png", np.full((1, 1, 3), 77))
    assert (BadNets(picture=one).stamp(pictures(64, 64), ROWS)[:, :, -6:, -6:] == 77).all()


def test_what_is_no_picture_or_no_setting_is_refused_at_once(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for path in (tmp_path / "text.png", tmp_path / "missing.png", tmp_path):
        with pytest.raises(SpecError, match=r"picture is '.*', which cannot be read"):
            BadNets(picture=str(path))
    with pytest.raises(SpecError, match="side is 0; give"):
        BadNets(side=0)
    with pytest.raises(SpecError, match=r"corner is 'middle'; give lower-right, .* or upper-left"):
        BadNets(corner="middle")
    assert set(BadNets.files) <= {option.name for option in dataclasses.fields(BadNets)}
