"""Triggers that the Adversarial Robustness Toolbox has too, pixel for pixel."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from untaint.attacks import ATTACKS

ROWS = np.arange(3)


@pytest.fixture(scope="module")
def perturbations():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.poisoning import perturbations

        yield perturbations


def pictures(side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (3, 3, side, side), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("side", [28, 32, 48])
@pytest.mark.parametrize(("name", "theirs"), [("patch", "add_pattern_bd"), ("pixel", "add_single_bd")])
def test_agrees_with_the_same_trigger_of_art(perturbations, name, theirs, side):
    images = pictures(side)
    last = images.transpose(0, 2, 3, 1).astype(np.float64) / 255
    expected = getattr(perturbations, theirs)(last, distance=2, pixel_value=1.0)
    stamped = ATTACKS.build(name).stamp(images, ROWS)
    assert np.array_equal(stamped, np.rint(255 * expected).astype(np.uint8).transpose(0, 3, 1, 2))


@pytest.mark.slow
def test_blend_with_a_picture_file_agrees_with_arts_up_to_rounding(perturbations, tmp_path):
    from PIL import Image

    images, pattern = pictures(32), pictures(32)[0]
    Image.fromarray(pattern.transpose(1, 2, 0)).save(tmp_path / "pattern.png")
    stamped = ATTACKS.build(f"blend:pattern={tmp_path / 'pattern.png'},alpha=0.25").stamp(images, ROWS)
    for picture, own in zip(images, stamped, strict=True):
        theirs = perturbations.insert_image(
            picture.transpose(1, 2, 0).astype(np.float32) / 255,
            backdoor_path=str(tmp_path / "pattern.png"),
            channels_first=False,
            random=False,
            x_shift=0,
            y_shift=0,
            mode="RGB",
            blend=0.25,
        )
        assert np.abs(255 * theirs.transpose(2, 0, 1) - own).max() <= 1.01
