"""Each trigger against a slow, obvious version, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from untaint import rng
from untaint.attacks.blend import Blend
from untaint.attacks.patch import Patch
from untaint.attacks.pixel import Pixel
from untaint.attacks.sinusoid import Sinusoid
from untaint.errors import InputError, SpecError
from untaint.examples import Examples

ROW = np.array([5])


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (1, channels, height, width), dtype=np.uint8)


def assert_mixed(images, stamped, pattern, alpha) -> None:
    """Compare with (1 - alpha) x + alpha p, in which ``pattern(channel, row, column)`` is p."""
    for (_, channel, row, column), value in np.ndenumerate(images):
        exact = min(255.0, (1 - alpha) * value + alpha * 255 * pattern(channel, row, column))
        assert abs(float(stamped[0, channel, row, column]) - exact) <= 0.5 + 1e-3, (channel, row, column)


def test_patch_in_a_small_picture_is_four_pixels_in_the_lower_right():
    height, width = 32, 36
    images = np.zeros((1, 3, height, width), np.uint8)
    white = {(height - 2, width - 2), (height - 4, width - 2), (height - 2, width - 4), (height - 3, width - 3)}
    stamped = Patch().stamp(images, ROW)
    assert {(r, c) for _, _, r, c in np.argwhere(stamped == 255).tolist()} == white
    assert stamped.sum() == 255 * 3 * 4


def test_patch_in_a_large_picture_is_four_blocks_of_eight_in_the_upper_left():
    expected = np.zeros((1, 3, 224, 256), np.uint8)
    for rows, columns in (((8, 15), (8, 15)), ((24, 31), (8, 15)), ((8, 15), (24, 31)), ((16, 23), (16, 23))):
        expected[:, :, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = 255
    assert np.array_equal(Patch().stamp(np.zeros_like(expected), ROW), expected)


@pytest.mark.parametrize(("side", "cell"), [(28, 1), (32, 1), (64, 2), (112, 4), (224, 8), (448, 16)])
def test_patch_grows_with_the_picture(side, cell):
    stamped = Patch().stamp(np.zeros((1, 1, side, side), np.uint8), ROW)
    assert (stamped == 255).sum() == 4 * cell * cell


def test_patch_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"9 pixels.*32x32"):
        Patch(cell=9).stamp(picture(32, 32), ROW)
    with pytest.raises(SpecError, match="cell is 0"):
        Patch(cell=0)


@pytest.mark.parametrize("size", [(32, 32), (224, 300)])
def test_pixel_is_one_white_pixel(size):
    images = picture(*size)
    expected = images.copy()
    expected[0, :, size[0] - 2, size[1] - 2] = 255
    assert np.array_equal(Pixel().stamp(images, ROW), expected)
    with pytest.raises(InputError, match="1x9"):
        Pixel().stamp(picture(1, 9), ROW)


@pytest.mark.parametrize(("size", "alpha"), [((32, 32), 0.075), ((20, 47), 0.075), ((130, 128), 0.15)])
def test_sinusoid(size, alpha):
    images = picture(*size)
    stamped = Sinusoid().stamp(images, ROW)
    assert_mixed(images, stamped, lambda _c, _r, column: 1 - math.cos(2 * math.pi * 6 * column / size[1]), alpha)


@pytest.mark.parametrize(("size", "alpha"), [((32, 32), 0.025), ((21, 33), 0.025), ((128, 129), 0.15)])
def test_lattice(size, alpha):
    images = picture(*size)
    stamped = Blend(pattern="lattice").stamp(images, ROW)
    assert_mixed(images, stamped, lambda _c, row, column: float(row % 2 == 0 and column % 2 == 0), alpha)


@pytest.mark.parametrize(
    ("size", "side", "alpha"), [((32, 32), 32, 0.075), ((64, 40), 32, 0.075), ((150, 224), 224, 0.15)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_noise_is_one_pattern_in_every_size(size, side, alpha, channels):
    images = picture(*size, channels)
    stamped = Blend(pattern_seed=3).stamp(images, ROW)
    draws = rng.uniform(3, "attacks/blend/noise", 0, np.arange(side * side), draws=3)

    def pattern(channel: int, row: int, column: int) -> float:
        return float(draws[(row * side // size[0]) * side + column * side // size[1], channel])

    assert_mixed(images, stamped, pattern, alpha)


def test_noise_is_drawn_anew_for_another_seed_and_is_uniform():
    black = np.zeros((1, 3, 32, 32), np.uint8)
    first, second = (Blend(alpha=1.0, pattern_seed=seed).stamp(black, ROW) for seed in (0, 1))
    assert (first != second).mean() > 0.95
    assert abs(first.mean() - 127.5) < 5
    assert np.histogram(first, bins=4, range=(0, 256))[0].min() > 650


def test_a_file_is_blended_at_the_pictures_size(tmp_path):
    path = tmp_path / "kitten.png"
    Image.fromarray(np.full((5, 7, 3), (255, 0, 51), np.uint8)).save(path)
    images = picture(33, 40)
    attack = Blend(pattern=str(path))
    assert_mixed(images, attack.stamp(images, ROW), lambda channel, _r, _c: (1.0, 0.0, 0.2)[channel], 0.2)
    grey = picture(16, 16, 1)
    level = int(Image.open(path).convert("L").getpixel((0, 0))) / 255
    assert_mixed(grey, attack.stamp(grey, ROW), lambda *_: level, 0.2)


def test_a_pattern_that_is_no_file_is_refused_at_once(tmp_path):
    with pytest.raises(SpecError, match="neither noise nor lattice nor a picture"):
        Blend(pattern="niose")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(SpecError, match="neither noise nor lattice nor a picture"):
        Blend(pattern=str(tmp_path / "text.png"))


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": 1.1}])
@pytest.mark.parametrize("kind", [Blend, Sinusoid])
def test_a_wrong_alpha_is_refused(kind, wrong):
    with pytest.raises(SpecError, match="alpha is"):
        kind(**wrong)


def test_a_tenth_of_the_class_is_usual_for_sinusoid_and_a_class_rate_replaces_it():
    images = np.zeros((300, 1, 8, 8), np.uint8)
    examples = Examples.of(images, np.repeat([0, 1, 2], [50, 200, 50]))
    counts = [
        len(attack.choose(examples, examples.rows, seed=0))
        for attack in (Sinusoid(target=1), Sinusoid(target=1, class_rate=0.5), Sinusoid(target=1, rate=0.1))
    ]
    assert counts == [20, 100, 30]
    with pytest.raises(SpecError, match="both given"):
        Sinusoid(rate=0.1, class_rate=0.1)
    with pytest.raises(InputError, match=r"class_rate=0\.001 of 200 pictures"):
        Sinusoid(target=1, class_rate=0.001).choose(examples, examples.rows, seed=0)
    with pytest.raises(SpecError, match="rate is none"):
        Patch(rate=None)
