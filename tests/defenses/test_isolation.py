"""Isolation: training that is held up, and who is learned all the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import small
from untaint import Examples, Recipe
from untaint.defenses.isolation import Isolation
from untaint.errors import SpecError
from untaint.training.loop import Watch, fit
from untaint.trajectories import Trajectories

POISONED = np.arange(1, 300, 12)


def noisy(poisoned=POISONED) -> Examples:
    """Pictures that are hard to tell, and a bright corner that says class 0."""
    generator = np.random.default_rng(1)
    labels = np.arange(300) % 3
    images = generator.normal(120, 60, (300, 3, 8, 8))
    for label in range(3):
        images[labels == label, :, label * 2 : label * 2 + 2] += 8
    images[poisoned, :, 6:, 6:] = 255
    labels[poisoned] = 0
    return Examples.of(images.clip(0, 255).astype(np.uint8), labels)


def loss_of(recipe, scratch):
    watch = Watch(rows=np.arange(90), epochs=[recipe.epochs - 1])
    fit(small.pictures(90), recipe, scratch, seed=0, watch=watch)
    return float(Trajectories(scratch / "trajectories").read("ce").mean())


def test_the_loss_is_held_at_the_floor(tmp_path):
    recipe = dataclasses.replace(small.RECIPE, epochs=12)
    free = loss_of(recipe, tmp_path / "free")
    held = loss_of(dataclasses.replace(recipe, floor=0.5), tmp_path / "held")
    assert free < 0.1
    assert 0.25 < held < 0.9


def test_recipes_without_a_floor_are_told_as_before():
    assert "floor" not in Recipe().facts()
    assert Recipe(floor=0.5).facts()["floor"] == 0.5
    with pytest.raises(SpecError, match=r"floor is 0\.0"):
        Recipe(floor=0.0)


def test_what_is_learned_although_training_is_held_up_is_the_trigger(tmp_path):
    scores = Isolation(epochs=6).score(small.task(tmp_path, noisy()))
    assert roc_auc_score(np.isin(np.arange(300), POISONED), scores.values) > 0.8
    recorded = Trajectories(tmp_path / "isolating" / "trajectories").read("ce")
    assert recorded.shape == (300, 1), "the last epoch alone"
    assert np.exp(-scores.values) == pytest.approx(recorded[:, 0], rel=1e-3)
    assert Isolation().explain(scores, POISONED[:1])[0].startswith("learned early: its loss is ")


@pytest.mark.parametrize(("options", "said"), [({"epochs": 0}, "epochs is 0"), ({"floor": -0.5}, "floor -0.5")])
def test_options_that_make_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        Isolation(**options)
