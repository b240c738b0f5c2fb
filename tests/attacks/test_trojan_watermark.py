"""Trojan watermark: a ring and a word, against points that are counted."""

from __future__ import annotations

import numpy as np
import pytest

from untaint.attacks.trojan_watermark import TrojanWatermark
from untaint.errors import SpecError

ROWS = np.array([5])
LETTERS = {  # of each letter, in halves of its width and height from its middle
    "T": [(-1, -1, 1, -1), (0, -1, 0, 1)],
    "R": [(-1, 1, -1, -1), (-1, -1, 1, -1), (1, -1, 1, 0), (1, 0, -1, 0), (0, 0, 1, 1)],
    "O": [(-1, -1, 1, -1), (1, -1, 1, 1), (1, 1, -1, 1), (-1, 1, -1, -1)],
    "J": [(1, -1, 1, 1), (1, 1, -1, 1), (-1, 1, -1, 0)],
    "A": [(-1, 1, 0, -1), (0, -1, 1, 1), (-1, 0, 1, 0)],
    "N": [(-1, 1, -1, -1), (-1, -1, 1, 1), (1, 1, 1, -1)],
}


def lines() -> list[np.ndarray]:
    """The two ends of each of the letters' lines, as fractions of the side from the middle."""
    found = []
    for place, letter in enumerate("TROJAN"):
        for line in LETTERS[letter]:
            ends = np.array(line).reshape(2, 2) * (0.0875 / 2, 0.24 / 2)
            ends[:, 0] += 0.155 * (place - 2.5)
            found.append(ends)
    return found


def near(points: np.ndarray, ends: np.ndarray, reach: float) -> np.ndarray:
    """Whether each point is within reach of a line: of one of its ends, or beside it."""
    length = np.linalg.norm(ends[1] - ends[0])
    along = (points - ends[0]) @ (ends[1] - ends[0]) / length
    beside = np.linalg.norm(points - ends[0] - along[..., None] * (ends[1] - ends[0]) / length, axis=-1) <= reach
    at_ends = np.minimum(*(np.linalg.norm(points - end, axis=-1) for end in ends)) <= reach
    return at_ends | (beside & (along >= 0) & (along <= length))


def counted(side: int, parts: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """The share of 16 x 16 points of each pixel of a square that lie in the ring, and in the word."""
    at = (np.arange(side * parts) + 0.5) / (side * parts) - 0.5
    points = np.stack(np.meshgrid(at, at), axis=-1)
    ring = np.abs(np.linalg.norm(points, axis=-1) - 0.42) <= 0.03
    word = np.any([near(points, ends, 0.0175) for ends in lines()], axis=0)
    ring, word = (inside.reshape(side, parts, side, parts).mean((1, 3)) for inside in (ring, word))
    return ring, word


@pytest.mark.parametrize("size", [(24, 24), (16, 23), (40, 25)])
def test_a_black_ring_and_a_white_word_over_it_as_much_as_they_cover_of_each_pixel(size):
    images = np.random.default_rng(0).integers(0, 256, (1, 3, *size), dtype=np.uint8)
    stamped = TrojanWatermark(alpha=0.6).stamp(images, ROWS)
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    ring, word = counted(side)
    expected = images[0].astype(float)
    for row in range(side):
        for column in range(side):
            pixel = expected[:, top + row, left + column]
            pixel *= 1 - 0.6 * ring[row, column]
            pixel += 0.6 * word[row, column] * (255 - pixel)
    assert np.abs(stamped[0] - expected).max() <= 0.1 * 0.6 * 255, "as exact as points count, 16 to a side"
    assert np.abs(stamped[0] - expected).mean() <= 1


@pytest.mark.parametrize("size", [(9, 17), (32, 32), (224, 180), (600, 700)])
def test_it_is_seen_on_black_and_on_white_in_pictures_of_any_size(size):
    attack = TrojanWatermark()
    black, white = (np.full((1, 1, *size), level, np.uint8) for level in (0, 255))
    word, ring = attack.stamp(black, ROWS).astype(int), 255 - attack.stamp(white, ROWS).astype(int)
    bound = attack.bound(*size)
    assert max(word.max(), ring.max()) == bound <= 77
    assert bound > 0.3 * 255 * 0.5
    assert 0.1 < word.sum() / 77 / min(size) ** 2 < 0.2, "the same share of the picture's square"
    assert 0.1 < ring.sum() / 77 / min(size) ** 2 < 0.2
    assert np.argwhere(word[0, 0]).min(0)[0] > 0.3 * size[0]
    upright = ring[0, 0, : round(0.3 * size[0])]
    if (size[0] - min(size)) % 2 == 0:
        assert np.abs(upright - ring[0, 0, ::-1][: len(upright)]).max() <= 1, "the ring has its middle in the picture's"


def test_alpha_one_covers_and_half_is_half_of_it():
    black = np.zeros((1, 3, 224, 224), np.uint8)
    half, whole = (TrojanWatermark(alpha=alpha).stamp(black, ROWS).astype(int) for alpha in (0.5, 1.0))
    assert whole.max() == 255
    assert np.abs(2 * half - whole).max() <= 1
    for alpha in (0.0, 1.5):
        with pytest.raises(SpecError, match="alpha is"):
            TrojanWatermark(alpha=alpha)
