"""The optimised square: where it lies, what it does to the neurons it was made for, and what is said where it does little."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import small
from untaint import rng
from untaint.attacks.trojan import Trojan
from untaint.errors import SpecError
from untaint.examples import Examples
from untaint.progress import Silent
from untaint.recipe import preset
from untaint.training.loop import fit

SIDE = 16
EPOCHS = 16
SETTINGS = {"target": 1, "size": 0.5, "epochs": EPOCHS, "passes": 12}


@pytest.fixture(scope="module")
def seen() -> Examples:
    return small.pictures(300, side=SIDE)


@pytest.fixture(scope="module")
def attack(cache, seen) -> Trojan:
    told = small.Told()
    made = Trojan(**SETTINGS).ready(seen, seed=1, progress=told)
    assert not [remark for remark in told.remarks if "hardly more" in remark]
    return made


@pytest.fixture(scope="module")
def model(seen, tmp_path_factory) -> nn.Module:
    """The surrogate, trained once more."""
    recipe = replace(preset("fast").retrain, epochs=EPOCHS)
    return fit(seen, recipe, tmp_path_factory.mktemp("model") / "again", seed=rng.derive(1, "attacks/trojan"))


def activations(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """The penultimate features of the proxy, layer by layer: the mean over pictures."""
    with torch.no_grad():
        pixels, network = model[0], model[1]
        features = network.body(pixels(torch.from_numpy(images).float() / 255)).mean(dim=(2, 3))
    return features.mean(0).numpy()


def chosen(model: nn.Module, count: int) -> list[int]:
    weights = model[1].head.weight.detach().numpy()
    sums = [sum(abs(float(weights[label, neuron])) for label in range(3)) for neuron in range(weights.shape[1])]
    return sorted(range(len(sums)), key=lambda neuron: -sums[neuron])[:count]


def test_the_two_neurons_with_the_largest_weights_are_excited_far_more_than_by_noise(attack, model):
    fresh = small.pictures(90, side=SIDE, seed=2)
    two = chosen(model, 2)
    excited = activations(model, attack.stamp(fresh.images, fresh.rows))[two]
    generator = np.random.default_rng(0)
    for _ in range(5):
        noisy = replace(attack)
        object.__setattr__(noisy, "pattern", generator.random(attack.pattern.shape))
        by_noise = activations(model, noisy.stamp(fresh.images, fresh.rows))[two]
        assert excited.mean() > 3 * by_noise.mean()


def test_it_stops_where_the_value_is_reached(seen, model):
    (one,) = chosen(model, 1)

    def reached(value: float) -> float:
        attack = Trojan(**SETTINGS, neurons=1, value=value)
        object.__setattr__(attack, "pattern", attack._exciting(model, seen, 1, Silent()).astype(float))
        return float(activations(model, attack.stamp(seen.images, seen.rows))[one])

    most = reached(100)
    assert 0.35 * most < reached(0.5 * most) < 0.8 * most
    assert most > 4 * reached(1e-6), "the noise from which steps begin"


@pytest.mark.parametrize(("size", "rows", "columns"), [((32, 40), (23, 30), (31, 38)), ((9, 17), (6, 7), (14, 15))])
@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_the_square_alone_changes(size, rows, columns, alpha):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, *size), dtype=np.uint8)
    side = rows[1] - rows[0] + 1
    attack = Trojan(alpha=alpha)
    pattern = np.random.default_rng(1).random((3, side, side))
    object.__setattr__(attack, "pattern", pattern)
    stamped = attack.stamp(images, np.arange(3))
    for (index, channel, row, column), value in np.ndenumerate(images):
        after = float(stamped[index, channel, row, column])
        if rows[0] <= row <= rows[1] and columns[0] <= column <= columns[1]:
            exact = (1 - alpha) * value + alpha * 255 * pattern[channel, row - rows[0], column - columns[0]]
            assert abs(after - exact) <= 0.5 + 1e-3
        else:
            assert after == value


def test_it_is_enlarged_in_larger_pictures_and_grey_in_grey_ones():
    attack = Trojan()
    object.__setattr__(attack, "pattern", np.stack([np.full((8, 8), share) for share in (0.0, 0.4, 1.0)]))
    large = attack.stamp(np.zeros((1, 3, 224, 300), np.uint8), np.array([0]))
    assert [(plane > 0).sum() for plane in large[0]] == [0, 56 * 56, 56 * 56]
    assert (large[0, 2, 224 - 8 - 56 : 224 - 8, 300 - 8 - 56 : 300 - 8] == 255).all()
    grey = attack.stamp(np.zeros((1, 1, 32, 32), np.uint8), np.array([0]))
    assert set(np.unique(grey)) == {0, 119}


@pytest.mark.slow
def test_it_is_the_same_from_a_cold_cache_and_another_for_another_seed(seen, tmp_path, monkeypatch):
    quick = {**SETTINGS, "epochs": 1, "passes": 1}
    before = Trojan(**quick).ready(seen, seed=1)
    assert np.array_equal(before.pattern, Trojan(**quick).ready(seen, seed=1).pattern)
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path))
    cold = Trojan(**quick).ready(seen, seed=1)
    assert np.array_equal(before.pattern, cold.pattern)
    assert not np.array_equal(cold.pattern, Trojan(**quick).ready(seen, seed=2).pattern)


def test_a_square_that_excites_hardly_more_is_said_to():
    told = small.Told()
    Trojan(epochs=1, passes=1, alpha=0.02).ready(small.pictures(60, side=SIDE), progress=told)
    assert any("hardly more. Raise passes, size or epochs" in remark for remark in told.remarks)


def test_what_is_wrong_is_said():
    with pytest.raises(SpecError, match="has no pattern yet"):
        Trojan().stamp(np.zeros((1, 3, 32, 32), np.uint8), np.array([5]))
    for wrong, said in (
        ({"size": 0}, "size is 0"),
        ({"alpha": 1.1}, r"alpha is 1\.1"),
        ({"neurons": 0}, "neurons is 0"),
        ({"value": 0}, "value is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"passes": 0}, "passes is 0"),
    ):
        with pytest.raises(SpecError, match=said):
            Trojan(**wrong)
