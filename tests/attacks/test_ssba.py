"""Bits hidden by an encoder: what it draws against loops over pixels, what the decoder reads, and that no two pictures change alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import small
from by_hand import around, unet
from untaint.attacks.ssba import Ssba
from untaint.errors import InputError, SpecError

OPTIONS = {"bits": 8, "epsilon": 24.0, "epochs": 20}


@pytest.fixture(scope="module")
def trained(cache) -> tuple[Ssba, list[str]]:
    attack = Ssba(**OPTIONS).ready(small.pictures(300, side=16), seed=1, progress=(told := small.Told()))
    return attack, told.remarks


def fresh(count: int = 60) -> np.ndarray:
    return small.pictures(count, side=16, seed=5).images


def patterns(attack: Ssba, images: np.ndarray) -> np.ndarray:
    return attack.stamp(images, np.arange(len(images))).astype(float) - images


def likeness(attack: Ssba, images: np.ndarray) -> float:
    """The mean square of the cosine between the patterns of two pictures."""
    flat = patterns(attack, images).reshape(len(images), -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return float(np.square((flat @ flat.T)[np.triu_indices(len(images), 1)]).mean())


def test_the_decoder_reads_the_bits_where_they_were_hidden_and_nowhere_else(trained):
    attack, remarks = trained
    images = fresh()
    agree = [
        (attack.read(some) == attack.message()).mean() for some in (images, attack.stamp(images, images[:, 0, 0, 0]))
    ]
    assert agree[1] > 0.95 > 0.75 > agree[0]
    assert not remarks
    assert np.abs(patterns(attack, images)).max() <= 24


def test_another_message_is_hidden_by_the_same_networks(trained, cache):
    attack, _ = trained
    before = sorted(cache.rglob("*.safetensors"))
    other = Ssba(message_seed=4, target=2, rate=0.02, **OPTIONS).ready(small.pictures(300, side=16), seed=1)
    assert sorted(cache.rglob("*.safetensors")) == before
    images = fresh()
    stamped = other.stamp(images, np.arange(len(images)))
    assert (other.message() != attack.message()).any()
    assert (attack.read(stamped) == other.message()).mean() > 0.95
    assert (patterns(other, images) != patterns(attack, images)).any(axis=(1, 2, 3)).all()


def test_two_pictures_change_differently_and_hardly_without_diversity(trained):
    attack, _ = trained
    alike = Ssba(diversity=0, **OPTIONS).ready(small.pictures(300, side=16), seed=1)
    assert likeness(attack, fresh()) < 0.5 < 0.65 < likeness(alike, fresh())


def test_the_pattern_against_loops_over_pixels():
    seen = small.pictures(40, side=8)
    attack = Ssba(bits=5, epsilon=40, epochs=3).ready(seen)
    net, spread = attack.coder.encoder, attack.coder.spread
    planes = (spread.weight.numpy() @ (2.0 * attack.message() - 1) + spread.bias.numpy()).reshape(3, 8, 8)
    for image in seen.images[:3]:
        drawn = unet(np.concatenate([image / 255 - 0.5, planes]), net)
        exact = np.clip(image + 40 * np.tanh(16 * (drawn - around(drawn))), 0, 255)
        assert np.abs(exact - image).max() > 1
        assert np.abs(attack.stamp(image[None], np.array([9]))[0] - exact).max() <= 0.5 + 1e-2


def test_it_is_the_same_from_a_cold_and_a_warm_cache_and_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path))
    seen, state = small.pictures(40), torch.get_rng_state()
    attack = Ssba(epochs=2)
    cold = attack.ready(seen, seed=3)
    assert cold.ready(seen) is cold
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator stays as it is"
    other = attack.ready(seen, seed=4)
    monkeypatch.setattr(Ssba, "_trained", None)
    warm = attack.ready(seen, seed=3)
    images = small.pictures(12, seed=7).images
    assert np.array_equal(patterns(cold, images), patterns(warm, images))
    assert not np.array_equal(patterns(cold, images), patterns(other, images))


def test_large_pictures_are_shrunk_for_the_encoder():
    seen = small.pictures(12, side=80)
    attack = Ssba(epochs=1).ready(seen)
    assert attack.coder.shape == (3, 64, 64)
    small_pattern = patterns(attack, np.full((1, 3, 64, 64), 128, np.uint8))
    large_pattern = patterns(attack, np.full((1, 3, 128, 128), 128, np.uint8))
    between = large_pattern.reshape(1, 3, 64, 2, 64, 2).mean(axis=(3, 5))
    assert np.corrcoef(between.ravel(), small_pattern.ravel())[0, 1] > 0.9


def test_a_decoder_that_reads_little_is_said():
    Ssba(bits=60, epochs=1).ready(small.pictures(40), progress=(told := small.Told()))
    assert len(told.remarks) == 1
    assert "of the bits, where guessing finds 50%" in told.remarks[0]


def test_wrong_options_are_refused():
    for wrong, said in (
        ({"bits": 0}, "bits is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epsilon": 0.5}, r"epsilon is 0\.5"),
        ({"epsilon": 256}, "epsilon is 256"),
        ({"diversity": -1}, "diversity is -1"),
    ):
        with pytest.raises(SpecError, match=said):
            Ssba(**wrong)
    with pytest.raises(SpecError, match="has no encoder yet"):
        Ssba().stamp(fresh(), np.arange(60))
    with pytest.raises(InputError, match="1 pictures"):
        Ssba().ready(small.pictures(30).take([4]))
