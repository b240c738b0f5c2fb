"""Noise that trains a network to obey a patch: what it does to the slope of the weights, and that the patch itself is not in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import small
from untaint import rng
from untaint.attacks.sleeper_agent import SleeperAgent
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.recipe import preset
from untaint.training.loop import fit

SIDE, EPOCHS = 16, 16
SETTINGS = {"target": 1, "epochs": EPOCHS, "steps": 20, "epsilon": 24}


@pytest.fixture(scope="module")
def seen() -> Examples:
    """Pictures of which each class is brighter in a colour of its own, also where they are shifted or mirrored."""
    labels = np.arange(240) % 3
    images = np.random.default_rng(0).normal(110, 40, (240, 3, SIDE, SIDE))
    images[np.arange(240), labels] += 25
    return Examples.of(images.clip(0, 255).astype(np.uint8), labels)


@pytest.fixture(scope="module")
def attack(cache, seen) -> SleeperAgent:
    return SleeperAgent(**SETTINGS).ready(seen, seed=1)


@pytest.fixture(scope="module")
def model(seen, tmp_path_factory) -> nn.Module:
    """The surrogate, trained once more."""
    recipe = replace(preset("fast").retrain, epochs=EPOCHS)
    return fit(seen, recipe, tmp_path_factory.mktemp("model") / "again", seed=rng.derive(1, "attacks/sleeper-agent"))


def patched(images: np.ndarray, size: int, cells: int = 2, seed: int = 0) -> np.ndarray:
    """Pictures with the patch, cell by cell."""
    drawn = rng.uniform(seed, "attacks/sleeper-agent/patch", 0, np.arange(cells**2), draws=3)
    images = images.copy()
    height, width = images.shape[2:]
    for channel in range(images.shape[1]):
        for row in range(size):
            for column in range(size):
                cell = (row * cells // size) * cells + column * cells // size
                level = 0 if drawn[cell, channel] < 0.5 else 255
                images[:, channel, height - size + row, width - size + column] = level
    return images


def slope(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """The slope of the mean loss of class 1 in all weights, by walking back."""
    model.zero_grad()
    labels = torch.full((len(images),), 1)
    nn.functional.cross_entropy(model(torch.from_numpy(images).float() / 255), labels).backward()
    return np.concatenate([weight.grad.numpy().ravel() for weight in model.parameters()]).astype(float)


def test_poison_moves_the_weights_as_patched_pictures_of_others_would(attack, seen, model):
    own, others = (np.flatnonzero((seen.labels == 1) == wanted) for wanted in (True, False))
    wanted = slope(model, patched(seen.images[others], SIDE // 4))

    def likeness(images: np.ndarray) -> float:
        found = slope(model, images)
        return float(found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted))

    by_lot = 48 * rng.uniform(0, "noise", 0, own, draws=3 * SIDE**2).reshape(-1, 3, SIDE, SIDE) - 24
    lot = np.clip(seen.images[own] + by_lot, 0, 255).astype(np.uint8)
    left = [1 - likeness(images) for images in (attack.stamp(seen.images[own], own), lot, seen.images[own])]
    assert left[0] < 0.6 * min(left[1:])


def test_the_noise_is_each_pictures_own_and_faint(attack, seen):
    own = np.flatnonzero(seen.labels == 1)
    levels = attack.stamp(seen.images[own], own).astype(int) - seen.images[own]
    assert np.abs(levels).max() == 24
    assert np.abs(levels).mean() > 6
    assert (levels[0] != levels[1]).mean() > 0.5
    for row in own[:3].tolist():
        exact = np.clip(seen.images[row].astype(int) + attack.noise[own.tolist().index(row)], 0, 255)
        assert np.array_equal(attack.stamp(seen.images[[row]], np.array([row]))[0], exact)


def test_others_get_the_noise_of_one_of_the_class(attack):
    grey = np.full((3, 3, SIDE, SIDE), 128, np.uint8)
    rows = np.array([0, 2, 10**12])
    stamped = attack.stamp(grey, rows)
    for picture, row in zip(stamped, rows.tolist(), strict=True):
        assert np.array_equal(picture.astype(int) - 128, attack.noise[row % len(attack.noise)])


@pytest.mark.parametrize(
    ("size", "share", "side"), [((32, 40), 0.25, 8), ((9, 17), 0.25, 2), ((150, 224), 0.2, 30), ((4, 4), 1.0, 4)]
)
@pytest.mark.parametrize("cells", [1, 2, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_patch_is_shown_at_test_time_and_needs_no_data(size, share, side, cells, channels):
    images = np.random.default_rng(0).integers(0, 256, (2, channels, *size), dtype=np.uint8)
    shown = SleeperAgent(size=share, cells=cells, patch_seed=4).trigger(images, np.array([0, 1]))
    assert np.array_equal(shown, patched(images, side, cells, seed=4))


def test_the_patch_is_not_in_the_poison(attack, seen):
    own = np.flatnonzero(seen.labels == 1)
    corner = np.s_[:, :, -SIDE // 4 :, -SIDE // 4 :]
    stamped = attack.stamp(seen.images[own], own)[corner].astype(int)
    patch = attack.trigger(seen.images[own], own)[corner].astype(int)
    assert np.abs(stamped - patch).mean(axis=(1, 2, 3)).min() > 64


@pytest.mark.slow
def test_it_is_the_same_from_a_cold_cache_and_another_for_another_seed(seen, tmp_path, monkeypatch):
    quick = {**SETTINGS, "epochs": 1, "steps": 2}
    before = SleeperAgent(**quick).ready(seen, seed=1)
    assert before.ready(seen, seed=2) is before
    assert np.array_equal(before.noise, SleeperAgent(**quick).ready(seen, seed=1).noise)
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path))
    assert np.array_equal(before.noise, SleeperAgent(**quick).ready(seen, seed=1).noise)
    assert not np.array_equal(before.noise, SleeperAgent(**quick).ready(seen, seed=2).noise)


@pytest.mark.slow
def test_noise_that_does_little_is_said_to_and_one_that_does_much_is_not(seen):
    loud, quiet = small.Told(), small.Told()
    SleeperAgent(**{**SETTINGS, "epsilon": 1, "epochs": 4, "steps": 1}).ready(seen, seed=1, progress=loud)
    SleeperAgent(**{**SETTINGS, "epochs": 4}).ready(seen, seed=1, progress=quiet)
    assert any("hardly be obeyed. Raise steps or epsilon" in remark for remark in loud.remarks)
    assert not any("hardly be obeyed" in remark for remark in quiet.remarks)


def test_what_is_wrong_is_said():
    with pytest.raises(SpecError, match="has no noise yet"):
        SleeperAgent().stamp(np.zeros((1, 3, 32, 32), np.uint8), np.array([5]))
    for wrong, said in (
        ({"epsilon": 0}, "epsilon is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"cells": 0}, "cells is 0"),
        ({"size": 0}, "size is 0"),
        ({"surrogate": "proxi"}, "Did you mean 'proxy"),
    ):
        with pytest.raises(SpecError, match=said):
            SleeperAgent(**wrong)
    seen = small.pictures(60)
    with pytest.raises(InputError, match="has 20 and 0"):
        SleeperAgent(target=1).ready(seen.take(seen.labels == 1))
    with pytest.raises(InputError, match="has 0 and 40"):
        SleeperAgent(target=1).ready(seen.take(seen.labels != 1))
