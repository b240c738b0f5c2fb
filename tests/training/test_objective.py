"""Trainings that go down something else than the mean cross-entropy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from small import RECIPE, Stopping, contents, pictures
from untaint.errors import SpecError
from untaint.training.loop import Watch, fit
from untaint.training.objective import Objective

AUGMENTED = replace(RECIPE, augment="crop-flip")


class Usual(Objective):
    """The mean cross-entropy, asked for."""

    def loss(self, batch):
        return nn.functional.cross_entropy(batch.forward(batch.images), batch.labels)


class Apart(Objective):
    """With a weight that is trained with the model, a figure that it keeps by itself, and a second view."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("steps", torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def loss(self, batch):
        self.seen += [batch.images, batch.again(1), batch.again(2), batch.again(1)]
        one, other = batch.forward(batch.images), batch.forward(batch.again(1))
        told = nn.functional.cross_entropy(one * self.scale, batch.labels)
        return told + 0.1 * (one - other).square().mean() / (1 + self.steps)

    def stepped(self, model):
        self.steps += 1


@pytest.mark.parametrize(
    "recipe", [AUGMENTED, replace(AUGMENTED, optimizer="muon"), replace(RECIPE, optimizer="adamw")]
)
def test_the_cross_entropy_as_an_objective_trains_the_same_weights(tmp_path, recipe):
    one = fit(pictures(), recipe, tmp_path / "a", seed=0).state_dict()
    other = fit(pictures(), recipe, tmp_path / "b", seed=0, objective=Usual()).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("after", [1, 3, 5, 9])
def test_interrupted_it_ends_with_the_same_bits_and_its_own_weights_are_not_the_models(tmp_path, optimizer, after):
    recipe = replace(AUGMENTED, optimizer=optimizer)
    watch = Watch(rows=np.arange(60))
    whole = Apart()
    fit(pictures(), recipe, tmp_path / "whole", seed=1, watch=watch, objective=whole)
    with pytest.raises(KeyboardInterrupt):
        fit(pictures(), recipe, tmp_path / "parts", seed=1, watch=watch, objective=Apart(), progress=Stopping(after))
    fit(pictures(), recipe, tmp_path / "parts", seed=1, watch=watch, objective=Apart())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert float(whole.steps) == 3 * 4
    assert not torch.equal(whole.scale.detach(), torch.ones(3))


def test_again_shows_the_same_pictures_otherwise_and_the_same_way_each_time(tmp_path):
    objective = Apart()
    fit(pictures(), replace(AUGMENTED, epochs=1), tmp_path, seed=0, objective=objective)
    shown, first, second, repeated = objective.seen[:4]
    assert torch.equal(first, repeated)
    assert not torch.equal(first, second)
    assert not torch.equal(first, shown)
    assert first.shape == shown.shape


def test_steps_are_not_recorded(tmp_path):
    watch = Watch(rows=np.arange(60), when="train")
    with pytest.raises(SpecError, match="eval"):
        fit(pictures(), RECIPE, tmp_path, seed=0, watch=watch, objective=Usual())
