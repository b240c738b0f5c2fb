"""Adaptive-blend against a version that goes through pieces and pixels one by one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from untaint import rng
from untaint.attacks.adaptive_blend import AdaptiveBlend
from untaint.attacks.blend import Blend
from untaint.errors import InputError, SpecError

ROWS = np.array([5, 0, 2**40])


def pictures(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (len(ROWS), channels, height, width), dtype=np.uint8)


def stamped_by_hand(attack: AdaptiveBlend, images: np.ndarray, masked: int) -> np.ndarray:
    """Pieces with the smallest numbers get what ``blend`` would make of them; those with the ``masked`` largest do not."""
    whole = Blend(pattern=attack.pattern, alpha=attack.alpha, pattern_seed=attack.pattern_seed).stamp(images, ROWS)
    grid, (height, width) = attack.grid, images.shape[2:]
    expected = images.copy()
    for place, row in enumerate(ROWS.tolist()):
        numbers = rng.uniform(attack.pattern_seed, "attacks/adaptive-blend/pieces", 0, np.array([row]), grid**2)[0]
        allowed = sorted(range(grid**2), key=lambda piece: numbers[piece])[: grid**2 - masked]
        for down in range(height):
            for across in range(width):
                if (down * grid // height) * grid + across * grid // width in allowed:
                    expected[place, :, down, across] = whole[place, :, down, across]
    return expected


@pytest.mark.parametrize(
    ("attack", "masked"),
    [
        (AdaptiveBlend(), 8),
        (AdaptiveBlend(pattern="lattice", alpha=0.4, pattern_seed=7), 8),
        (AdaptiveBlend(grid=3, mask_rate=0.75), 7),
        (AdaptiveBlend(grid=2, mask_rate=0), 0),
    ],
    ids=["usual", "lattice", "3x3", "whole"],
)
@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 17, 1), (30, 21, 3)])
def test_each_picture_gets_pieces_of_its_own(attack, masked, shape):
    images = pictures(*shape)
    after = attack.stamp(images, ROWS)
    assert np.array_equal(after, stamped_by_hand(attack, images, masked))
    assert np.array_equal(attack.cover(images, ROWS), after), "covers are stamped as poison is"


def test_a_half_of_sixteen_pieces_each_and_every_piece_as_often():
    rows = np.arange(4000)
    black = np.zeros((len(rows), 1, 8, 8), np.uint8)
    after = AdaptiveBlend(alpha=1.0, pattern_seed=3).stamp(black, rows) > 0
    pieces = after.reshape(-1, 4, 2, 4, 2).any(axis=(2, 4)).reshape(-1, 16)
    assert (pieces.sum(1) == 8).all()
    assert np.abs(pieces.mean(0) - 0.5).max() < 0.04
    assert len(np.unique(pieces, axis=0)) > 3000  # of 12870


def test_the_whole_pattern_is_shown_more_strongly():
    images = pictures(32, 32)
    assert np.array_equal(AdaptiveBlend().trigger(images, ROWS), Blend(alpha=0.2).stamp(images, ROWS))
    shown = AdaptiveBlend(shown_alpha=0.6, pattern_seed=2).trigger(images, ROWS)
    assert np.array_equal(shown, Blend(alpha=0.6, pattern_seed=2).stamp(images, ROWS))


def test_the_paper_s_rates_are_usual():
    attack = AdaptiveBlend()
    assert (attack.rate, attack.cover_rate, attack.alpha, attack.shown_alpha) == (0.003, 0.003, 0.15, 0.2)
    assert attack.bound(32, 32) == 51
    assert AdaptiveBlend(alpha=0.3).bound(32, 32) == 77


def test_a_file_is_the_pattern(tmp_path):
    path = tmp_path / "kitten.png"
    Image.fromarray(np.full((5, 7, 3), (255, 0, 51), np.uint8)).save(path)
    grey = np.full((3, 3, 16, 16), 100, np.uint8)
    shown = AdaptiveBlend(pattern=str(path), shown_alpha=0.5).trigger(grey, ROWS)
    assert shown[0, :, 0, 0].tolist() == [178, 50, 76]  # halfway to red, rounded
    assert (shown == shown[:1, :, :1, :1]).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"shown_alpha": 1.5}, "shown_alpha is 1.5"),
        ({"grid": 0}, "grid is 0"),
        ({"mask_rate": 1.0}, "mask_rate is 1.0, which leaves no piece of 4x4"),
        ({"mask_rate": 0.98}, "mask_rate is 0.98, which leaves no piece"),
        ({"mask_rate": -0.1}, "mask_rate is -0.1"),
        ({"mask_rate": float("nan")}, "mask_rate is nan"),
        ({"pattern": "niose"}, "pattern is 'niose', which is neither noise nor lattice nor a picture"),
    ],
)
def test_wrong_settings_are_refused(wrong, said):
    with pytest.raises(SpecError, match=said):
        AdaptiveBlend(**wrong)


def test_a_picture_smaller_than_the_grid_is_refused():
    with pytest.raises(InputError, match=r"3x9 cannot be cut into 4x4"):
        AdaptiveBlend().stamp(pictures(3, 9), ROWS)
