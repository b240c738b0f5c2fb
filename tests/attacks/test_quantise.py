"""Quantise: few colours, against versions that go from pixel to pixel."""

from __future__ import annotations

import numpy as np
import pytest

from untaint import rng
from untaint.attacks import quantise
from untaint.attacks.quantise import Quantise
from untaint.errors import SpecError

ROWS = np.array([5, 2])


def pictures(height: int, width: int, channels: int = 3, count: int = 2) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def nearest(value: float, levels: int) -> float:
    return min((255 * level / (levels - 1) for level in range(levels)), key=lambda level: abs(level - value))


def dithered_by_hand(plane: np.ndarray, levels: int) -> np.ndarray:
    """Line by line, each pixel's error handed on to four that come later."""
    wanted, (height, width) = plane.astype(float), plane.shape
    result = np.empty(plane.shape)
    for row in range(height):
        for column in range(width):
            result[row, column] = nearest(wanted[row, column], levels)
            error = wanted[row, column] - result[row, column]
            for down, across, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if row + down < height and 0 <= column + across < width:
                    wanted[row + down, column + across] += error * share / 16
    return np.floor(result + 0.5)


@pytest.mark.parametrize("levels", [2, 3, 8, 255])
def test_every_value_becomes_the_nearest_level(levels):
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    stamped = Quantise(levels=levels).stamp(images, ROWS[:1])
    for value in range(256):
        assert stamped.flat[value] == int(nearest(value, levels) + 0.5)
    assert len(np.unique(stamped)) == levels


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (2, 2), (3, 2), (9, 17), (20, 13)])
@pytest.mark.parametrize("levels", [2, 5, 8])
def test_dithering_hands_errors_on_to_the_next_pixels(size, levels):
    images = pictures(*size)
    stamped = Quantise(levels=levels, dithering=True).stamp(images, ROWS)
    for picture, found in zip(images, stamped, strict=True):
        for plane, quantised in zip(picture, found, strict=True):
            assert np.array_equal(quantised, dithered_by_hand(plane, levels))


def test_dithering_keeps_what_is_flat_at_its_brightness_with_as_few_levels():
    grey = np.full((1, 3, 32, 32), 90, np.uint8)
    plain, grained = (Quantise(dithering=dithering).stamp(grey, ROWS[:1]) for dithering in (False, True))
    assert (plain == 73).all()
    assert set(np.unique(grained)) == {73, 109}
    assert abs(grained.mean() - 90) < 1


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_dithering_is_the_same_however_many_are_done_at_once(block, monkeypatch):
    images, rows = pictures(10, 12, count=9), np.arange(9)
    usual = Quantise(dithering=True).stamp(images, rows)
    monkeypatch.setattr(quantise, "BLOCK", block)
    assert np.array_equal(Quantise(dithering=True).stamp(images, rows), usual)


def made_up_by_hand(seed: int, row: int, channels: int, height: int, width: int) -> np.ndarray:
    """64 random colours a channel at the points of a grid that reaches from border to border, bilinear between them."""
    draws = rng.uniform(seed, "attacks/quantise/cover", 0, np.array([row]), draws=channels * 64)
    colours = draws.reshape(channels, 8, 8)
    made = np.empty((channels, height, width))
    for y in range(height):
        for x in range(width):
            down, across = 7 * y / (height - 1), 7 * x / (width - 1)
            made[:, y, x] = sum(
                max(0, 1 - abs(down - i)) * max(0, 1 - abs(across - j)) * colours[:, i, j]
                for i in range(8)
                for j in range(8)
            )
    return made * 255.999


@pytest.mark.parametrize("dithering", [False, True])
def test_covers_get_what_quantising_changes_in_another_picture(dithering):
    attack, images = Quantise(dithering=dithering, cover_seed=4), pictures(11, 14)
    covered = attack.cover(images, ROWS)
    for place, row in enumerate(ROWS.tolist()):
        made = made_up_by_hand(4, row, 3, 11, 14)
        other = made.astype(np.uint8)[None]
        assert np.abs(made - np.round(made)).min() > 1e-4, "else what follows may differ by rounding"
        changed = attack.stamp(other, ROWS[:1])[0].astype(int) - other[0]
        assert np.array_equal(covered[place], np.clip(images[place] + changed, 0, 255))


def test_covers_have_many_colours_and_each_its_own_noise_of_a_triggers_size():
    attack, images = Quantise(), np.full((2, 3, 32, 32), 128, np.uint8)
    covered = attack.cover(images, ROWS).astype(int)
    noise = covered - 128
    assert len(np.unique(attack.stamp(pictures(32, 32), ROWS))) == 8
    assert len(np.unique(covered)) > 30
    assert np.abs(noise).max() == attack.bound(32, 32) == 18
    assert 8 < noise.std() < 13  # of numbers that are uniform from -18 to 18 it is 10.5
    assert (noise[0] != noise[1]).mean() > 0.9
    assert np.array_equal(attack.cover(images[::-1], ROWS[::-1])[::-1], covered)
    assert not np.array_equal(Quantise(cover_seed=1).cover(images, ROWS), covered)


@pytest.mark.parametrize("levels", [1, 256])
def test_a_number_of_levels_that_squeezes_nothing_or_all_is_refused(levels):
    with pytest.raises(SpecError, match=f"levels is {levels}; give"):
        Quantise(levels=levels)
