"""Adaptive-patch against patches painted pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from untaint import rng
from untaint.attacks.adaptive_patch import AdaptivePatch
from untaint.errors import InputError, SpecError

ROWS = np.arange(12)
OPACITY = {"checker": 0.5, "stripes": 0.5, "ring": 0.3, "cross": 0.2}


def pictures(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (len(ROWS), channels, height, width), dtype=np.uint8)


def colour(kind: str, down: float, across: float) -> tuple[float, float, float] | None:
    """What a patch shows at a place in it (0 to 1 from its upper left corner); None: what lies below."""
    if kind == "checker":
        return (1.0, 1.0, 1.0) if (math.floor(4 * down) + math.floor(4 * across)) % 2 == 0 else (0.0, 0.0, 0.0)
    if kind == "stripes":
        return (1.0, 0.9, 0.0) if math.floor(4 * down) in (0, 2) else (0.0, 0.1, 0.8)
    if kind == "ring":
        away = math.sqrt((down - 0.5) ** 2 + (across - 0.5) ** 2)
        if away > 0.5:
            return None
        return (0.0, 1.0, 0.3) if away > 0.25 else (0.4, 0.0, 0.4)
    diagonal = abs(down - across) < 0.2 or abs(down + across - 1) < 0.2
    return (1.0, 0.0, 0.1) if diagonal else None


def painted_by_hand(picture: np.ndarray, kind: str, opacity: float) -> np.ndarray:
    channels, height, width = picture.shape
    shorter = min(height, width)
    side, away = max(4, shorter // 4), shorter // 16
    top = away if kind in ("checker", "stripes") else height - away - side
    left = away if kind in ("checker", "ring") else width - away - side
    exact = picture.astype(float)
    for down in range(side):
        for across in range(side):
            shown = colour(kind, (down + 0.5) / side, (across + 0.5) / side)
            if shown is not None:
                red, green, blue = shown
                levels = shown if channels == 3 else (0.299 * red + 0.587 * green + 0.114 * blue,)
                below = exact[:, top + down, left + across]
                exact[:, top + down, left + across] = (1 - opacity) * below + opacity * 255 * np.array(levels)
    return exact


@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 17, 1), (41, 30, 3), (64, 64, 1)])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_each_picture_gets_one_faint_patch_by_its_row(shape, strength):
    images, attack = pictures(*shape), AdaptivePatch(strength=strength, patch_seed=5)
    after = attack.stamp(images, ROWS)
    drawn = set()
    for place, row in enumerate(ROWS.tolist()):
        number = rng.uniform(5, "attacks/adaptive-patch/which", 0, np.array([row]))[0, 0]
        kind = list(OPACITY)[math.floor(4 * number)]
        drawn.add(kind)
        exact = painted_by_hand(images[place], kind, strength * OPACITY[kind])
        assert np.abs(after[place] - exact).max() <= 0.5 + 1e-3, kind
    assert drawn == set(OPACITY)
    assert np.array_equal(attack.cover(images, ROWS), after), "covers are stamped as poison is"


@pytest.mark.parametrize("shown", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 17, 3), (28, 28, 1)])
def test_several_are_shown_at_once_and_share_no_pixel(shown, shape):
    images = pictures(*shape)
    after = AdaptivePatch(shown=shown, shown_opacity=0.8).trigger(images, ROWS)
    exact = images[0].astype(float)
    changed = np.zeros(shape[:2], int)
    for kind in list(OPACITY)[:shown]:
        changed += (painted_by_hand(np.zeros_like(images[0]), kind, 1.0) > 0).any(0)
        exact = painted_by_hand(exact, kind, 0.8)
    assert np.abs(after[0] - exact).max() <= 0.5 + 1e-3
    assert changed.max() == 1


def test_the_patches_are_drawn_alike_often_and_anew_by_another_seed():
    rows = np.arange(4000)
    black = np.zeros((len(rows), 3, 16, 16), np.uint8)
    first, second = (AdaptivePatch(patch_seed=seed).stamp(black, rows) for seed in (0, 1))
    _, counts = np.unique(first.reshape(len(rows), -1), axis=0, return_counts=True)
    assert len(counts) == 4
    assert counts.min() > 900
    assert 0.2 < (first == second).all(axis=(1, 2, 3)).mean() < 0.3


def test_the_paper_s_rates_are_usual():
    attack = AdaptivePatch()
    assert (attack.rate, attack.cover_rate) == (0.003, 0.006)
    assert attack.bound(32, 32) == 255
    assert AdaptivePatch(shown_opacity=0.2, strength=0.8).bound(32, 32) == 102


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"strength": 0.0}, "strength is 0.0"),
        ({"strength": 2.5}, "strength is 2.5; give a number above 0 and at most 2"),
        ({"shown": 0}, "shown is 0"),
        ({"shown": 5}, "shown is 5; give a number of patches from 1 to 4"),
        ({"shown_opacity": 0.0}, "shown_opacity is 0.0"),
    ],
)
def test_wrong_settings_are_refused(wrong, said):
    with pytest.raises(SpecError, match=said):
        AdaptivePatch(**wrong)


def test_a_picture_too_small_for_four_patches_is_refused():
    with pytest.raises(InputError, match="do not fit into pictures of 7x40"):
        AdaptivePatch().stamp(pictures(7, 40), ROWS)
