"""Unlearning: what was set aside is forgotten, and the rest is kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import small
from untaint import accuracy, load_model
from untaint.defenses.unlearning import Unlearning
from untaint.errors import SpecError

STAMP = np.array([[255, 0], [0, 255]], np.uint8)


def stamped(count, seed):
    """Pictures of classes 1 and 2 with a trigger, called class 0."""
    clean = small.pictures(count, seed=seed)
    images = clean.images.copy()
    images[:, :, 6:8, 6:8] = STAMP
    return (
        type(clean).of(images, np.zeros(count, int), class_names=clean.class_names).take(np.flatnonzero(clean.labels))
    )


@pytest.fixture
def task(tmp_path):
    clean, dirty = small.pictures(360), stamped(360, 0)
    poisoned = np.flatnonzero(clean.labels)[::6]
    images, labels = clean.images.copy(), clean.labels.copy()
    images[poisoned], labels[poisoned] = dirty.images[poisoned], 0
    left = type(clean).of(images, labels).without(poisoned)
    return small.task(tmp_path, left, set_aside=poisoned, epochs=12)


def test_what_was_set_aside_is_forgotten_and_the_rest_is_kept(task):
    outcome = Unlearning(steps=40, learning_rate=0.02).defend(task)
    before, after = load_model(task.scratch / "undefended"), load_model(outcome.model)
    fresh, triggered = small.pictures(150, seed=9), stamped(150, 9)
    assert accuracy(before, triggered) > 0.8
    assert accuracy(after, triggered) < 0.1
    assert accuracy(after, fresh) > accuracy(before, fresh) - 0.1
    assert outcome.scores is None


def test_where_nothing_was_set_aside_it_is_the_undefended_model(task):
    everything = dataclasses.replace(task, set_aside=np.array([], dtype=np.int64))
    assert Unlearning().defend(everything).model == task.scratch / "undefended"


@pytest.mark.parametrize("options", [{"steps": 0}, {"batch": 1}, {"learning_rate": 0.0}, {"strength": 0.0}])
def test_options_that_make_no_sense(options):
    name, value = next(iter(options.items()))
    with pytest.raises(SpecError, match=f"{name} (is )?{value}"):
        Unlearning(**options)
