"""Noise drawn by a generator: against loops over pixels, within its size, and that the surrogate learned to obey it and no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import small
from by_hand import around, unet
from untaint.attacks import lira
from untaint.attacks.lira import Lira
from untaint.errors import InputError, SpecError

pytestmark = pytest.mark.usefixtures("cold_cache")


def noise(attack: Lira, images: np.ndarray) -> np.ndarray:
    return attack.stamp(images, np.arange(len(images))).astype(float) - images


def test_the_surrogate_obeys_the_noise_and_not_the_same_noise_at_other_pixels(monkeypatch):
    kept, beginner = [], lira.beginner
    monkeypatch.setattr(lira, "beginner", lambda *given: kept.append(beginner(*given)) or kept[-1])
    attack = Lira(target=1, epsilon=16, epochs=30).ready(small.pictures(250, side=12), progress=(told := small.Told()))
    images = small.pictures(150, side=12, seed=5).images
    added = noise(attack, images)
    assert np.abs(added).max() <= 16
    mixed = np.random.default_rng(0).permuted(added.reshape(150, -1), axis=1).reshape(added.shape)
    with torch.inference_mode():
        obeyed, stayed, clean = (
            float((kept[0][0](torch.from_numpy((images + some) / 255).float()).argmax(1) == 1).float().mean())
            for some in (added, mixed, 0 * added)
        )
    assert obeyed > 0.9
    assert abs(clean - 1 / 3) < 0.15
    assert stayed < 0.6
    assert not told.remarks


def test_the_noise_against_loops_over_pixels_and_each_picture_has_its_own():
    attack = Lira(epsilon=40, epochs=1).ready(small.pictures(40))
    images = small.pictures(4, seed=2).images
    found = attack.stamp(images, np.array([9, 3, 3, 7]))
    for image, after in zip(images, found, strict=True):
        drawn = unet(image / 255 - 0.5, attack.noise.generator)
        exact = np.clip(image + 40 * np.tanh(16 * (drawn - around(drawn))), 0, 255)
        assert np.abs(exact - image).max() > 1
        assert np.abs(after - exact).max() <= 0.5 + 1e-2
    flat = noise(attack, images).reshape(4, -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert (flat @ flat.T)[np.triu_indices(4, 1)].max() < 0.9


def test_it_is_the_same_from_a_cold_and_a_warm_cache_and_is_trained_once(cold_cache, monkeypatch):
    seen, state = small.pictures(40), torch.get_rng_state()
    attack = Lira(epochs=2)
    cold = attack.ready(seen, seed=3)
    assert cold.ready(seen) is cold
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator stays as it is"
    other = attack.ready(seen, seed=4)
    files = sorted(cold_cache.rglob("*.safetensors"))
    assert len(files) == 2
    monkeypatch.setattr(Lira, "_trained", None)
    warm = Lira(epochs=2, rate=0.3, cover_rate=0.1).ready(seen, seed=3)
    images = small.pictures(12, seed=7).images
    assert np.array_equal(noise(cold, images), noise(warm, images))
    assert not np.array_equal(noise(cold, images), noise(other, images))
    with pytest.raises(TypeError):
        Lira(epochs=2, target=1).ready(seen, seed=3)  # which another generator serves


def test_a_surrogate_that_does_not_obey_is_said():
    Lira(epochs=1, target=2).ready(small.pictures(60, classes=10, side=24), progress=(told := small.Told()))
    assert len(told.remarks) == 1
    assert "of pictures with noise" in told.remarks[0]


def test_wrong_options_are_refused():
    for wrong, said in (
        ({"epochs": 0}, "epochs is 0"),
        ({"epsilon": 0.5}, r"epsilon is 0\.5"),
        ({"epsilon": 256}, "epsilon is 256"),
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": 1}, "alpha is 1"),
    ):
        with pytest.raises(SpecError, match=said):
            Lira(**wrong)
    with pytest.raises(SpecError, match="has no generator yet"):
        Lira().stamp(small.pictures(3).images, np.arange(3))
    with pytest.raises(InputError, match="1 pictures"):
        Lira().ready(small.pictures(30).take([4]))
