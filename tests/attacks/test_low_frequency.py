"""The smooth pattern: what is in its spectrum, how far it goes, and whether a model takes pictures with it for the target."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import small
from untaint import rng
from untaint.attacks.low_frequency import LowFrequency
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.recipe import preset
from untaint.training.loop import fit, predict

HEIGHT, WIDTH = 16, 12
SETTINGS = {"target": 1, "epsilon": 40, "epochs": 16, "passes": 4}


def pictures(seed: int = 0) -> Examples:
    made = small.pictures(300, side=HEIGHT, seed=seed)
    return Examples.of(made.images[:, :, :, :WIDTH], made.labels)


@pytest.fixture(scope="module")
def attack(cache) -> LowFrequency:
    return LowFrequency(**SETTINGS).ready(pictures(), seed=1)


def waves(plane: np.ndarray) -> np.ndarray:
    """The orthonormal cosine transform of a plane, sum by sum."""
    height, width = plane.shape
    spectrum = np.zeros((height, width))
    for u in range(height):
        for v in range(width):
            scale = math.sqrt((1 if u == 0 else 2) / height * (1 if v == 0 else 2) / width)
            for row in range(height):
                for column in range(width):
                    spectrum[u, v] += (
                        scale
                        * plane[row, column]
                        * math.cos(math.pi * (row + 0.5) * u / height)
                        * math.cos(math.pi * (column + 0.5) * v / width)
                    )
    return spectrum


def test_nothing_of_the_pattern_is_above_the_cut_off(attack):
    for plane in attack.levels:
        energy = np.square(waves(plane))
        low = energy[: HEIGHT // 4, : WIDTH // 4].sum()
        assert low > 100
        assert energy.sum() - low < 1e-8 * low


def test_more_frequencies_are_kept_where_the_cut_off_is_higher():
    finer = LowFrequency(**{**SETTINGS, "epochs": 1, "cutoff": 0.5}).ready(pictures(), seed=1)
    energy = np.square(waves(finer.levels[0]))
    low = energy[: HEIGHT // 2, : WIDTH // 2].sum()
    assert energy.sum() - low < 1e-8 * low
    assert energy[: HEIGHT // 4, : WIDTH // 4].sum() < 0.99 * low


def test_pictures_are_what_they_were_and_the_pattern(attack):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, HEIGHT, WIDTH), dtype=np.uint8)
    stamped = attack.stamp(images, np.array([4, 9]))
    for place, value in np.ndenumerate(images):
        exact = min(255.0, max(0.0, value + attack.levels[place[1:]]))
        assert abs(float(stamped[place]) - exact) <= 0.5 + 1e-3
    assert np.abs(attack.levels).max() == pytest.approx(40, abs=1e-3)


def test_a_model_takes_pictures_with_it_for_the_target_and_not_those_with_any_smooth_pattern(attack, tmp_path):
    seen = pictures()
    recipe = replace(preset("fast").retrain, epochs=16)
    model = fit(seen, recipe, tmp_path / "again", seed=rng.derive(1, "attacks/low-frequency"))
    fresh = pictures(seed=2)
    rows = np.flatnonzero(fresh.labels != 1)
    generator = np.random.default_rng(0)

    def smooth() -> np.ndarray:
        pattern = np.zeros((3, HEIGHT, WIDTH))
        for u in range(HEIGHT // 4):
            for v in range(WIDTH // 4):
                down = np.cos(math.pi * (np.arange(HEIGHT) + 0.5) * u / HEIGHT)
                across = np.cos(math.pi * (np.arange(WIDTH) + 0.5) * v / WIDTH)
                pattern += generator.normal(size=(3, 1, 1)) * down[:, None] * across
        pattern *= np.sqrt(np.square(attack.levels).mean() / np.square(pattern).mean())  # of the same energy
        return np.clip(fresh.images[rows] + np.clip(pattern, -40, 40), 0, 255).astype(np.uint8)

    def loss(images: np.ndarray) -> float:
        logits = predict(model, Examples.of(images, fresh.labels[rows], class_names=fresh.class_names)).astype(float)
        return float((np.log(np.exp(logits).sum(1)) - logits[:, 1]).mean())

    with_it = loss(attack.stamp(fresh.images[rows], rows))
    assert with_it < 0.5 * min(loss(fresh.images[rows]), *(loss(smooth()) for _ in range(5)))


@pytest.mark.slow
def test_it_is_the_same_from_a_cold_cache_and_another_for_another_seed(attack, tmp_path, monkeypatch):
    warm = LowFrequency(**SETTINGS).ready(pictures(), seed=1)
    assert np.array_equal(warm.levels, attack.levels)
    quick = {**SETTINGS, "epochs": 1}
    before = LowFrequency(**quick).ready(pictures(), seed=1)
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path))
    cold = LowFrequency(**quick).ready(pictures(), seed=1)
    assert np.array_equal(before.levels, cold.levels)
    assert not np.array_equal(cold.levels, LowFrequency(**quick).ready(pictures(), seed=2).levels)


def test_a_pattern_that_does_little_is_said_to():
    told = small.Told()
    even = Examples.of(np.full((60, 3, 8, 8), 128, np.uint8), np.arange(60) % 3)
    LowFrequency(epochs=1, epsilon=1).ready(even, progress=told)
    assert any("Raise epsilon or epochs" in remark for remark in told.remarks)
    assert any("surrogate knows" in remark for remark in told.remarks)


def test_what_is_wrong_is_said():
    images = np.zeros((1, 3, 32, 32), np.uint8)
    with pytest.raises(SpecError, match="has no pattern yet"):
        LowFrequency().stamp(images, np.array([5]))
    for wrong, said in (
        ({"epsilon": 0.5}, r"epsilon is 0\.5"),
        ({"cutoff": 0}, "cutoff is 0"),
        ({"cutoff": 1.5}, r"cutoff is 1\.5"),
        ({"epochs": 0}, "epochs is 0"),
        ({"passes": 0}, "passes is 0"),
    ):
        with pytest.raises(SpecError, match=said):
            LowFrequency(**wrong)
    seen = pictures()
    with pytest.raises(InputError, match="all are of it"):
        LowFrequency(target=1).ready(seen.take(seen.labels == 1))
