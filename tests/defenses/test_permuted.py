"""The order of the rows says nothing: for every detector that judges from one model that is given, the scores of permuted rows are the permuted scores.

Where a row's own draws (by its number) decide, permuted rows have others; there it is the scores of the rows that stay which must stay, too, when others are left out.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import known
import small
from untaint import Examples
from untaint.defenses import DEFENSES, Detector, Task
from untaint.defenses.base import UNDEFENDED
from untaint.training.loop import fit

COUNT = 300
POISONED = np.flatnonzero(np.arange(COUNT) % 3)[::7]
WRONG = np.arange(0, COUNT, 10)  # rows with another's label
PROBES = np.setdiff1d(np.arange(0, COUNT, 4), POISONED)
STAYING = np.setdiff1d(np.arange(COUNT), np.arange(5, COUNT, 10))
assert np.isin(PROBES, STAYING).all()
FIXED = [
    name
    for name in DEFENSES.names()
    if issubclass(kind := DEFENSES.kind(name), Detector) and kind.stages == (UNDEFENDED,)
]
SMALL = {
    "cognitive-distillation": "cognitive-distillation:steps=10,beta=1,gamma=0.0005",  # enough to tell rows apart
    "ibd-psc": "ibd-psc:error=0.02",  # else nothing is found in pictures as easy as these
    "clustering": "clustering:dimensions=2",
    "strip": "strip:overlays=16",
}
# parted by 2-means from rows drawn by their place: in a class that does not fall in two, another order ends elsewhere
CLEAR = {"clustering", "contamination"}


class Parted(Task):
    """A task whose model sees each class in two parts."""

    def features(self):
        pixels = self.examples.images.reshape(COUNT, -1) / np.float32(40)
        second = self.examples.images[:, 0, 0, 0] % 4 == 0
        return pixels[:, 1:3] + 30 * second[:, None] * np.array([1, 0], np.float32)


def pictures() -> Examples:
    """Pictures of three classes, with a patch for class 0 on some and wrong labels on others."""
    examples = small.pictures(COUNT)
    images, labels = examples.images.copy(), examples.labels.copy()
    images[POISONED, :, 6:8, 6:8] = np.array([[255, 0], [0, 255]], np.uint8)
    labels[WRONG] = (labels[WRONG] + 1) % 3
    labels[POISONED] = 0
    return Examples.of(images, labels)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fit(pictures(), small.preset(epochs=4).retrain, tmp_path_factory.mktemp("run") / "model", seed=0)


@pytest.fixture
def scores(request, tmp_path, trained):
    """Give the scores of the rows when they stand in another order, by their old numbers; with a seed, and perhaps of some only."""
    name = request.node.callspec.params["name"]

    def give(order, seed=0, staying=None):
        examples, place = pictures(), np.argsort(order)
        examples = Examples.of(examples.images[order], examples.labels[order])
        if staying is not None:
            examples = examples.take(np.sort(place[staying]))
        scratch = tmp_path / str(len(list(tmp_path.iterdir())))
        here = known.task(scratch, examples, np.sort(place[PROBES]), trained, seed=seed)
        if name in CLEAR:
            here = Parted(**{field.name: getattr(here, field.name) for field in dataclasses.fields(Task)})
        return DEFENSES.build(SMALL.get(name, name)).score(here).values[place]

    return give


@pytest.fixture
def tuned(monkeypatch):
    """Give the weights of models that an optimiser was told to change since."""
    weights = []

    def told(self, group):
        original(self, group)
        weights.extend(one for one in self.param_groups[-1]["params"] if isinstance(one, nn.Parameter))

    original = torch.optim.Optimizer.add_param_group
    monkeypatch.setattr(torch.optim.Optimizer, "add_param_group", told)
    return weights


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.allclose(one, other, rtol=1e-3, atol=1e-3 * one.std())


@pytest.mark.parametrize("name", FIXED)
def test_permuting_the_rows_permutes_the_scores(name, scores, tuned):
    as_they_are = np.arange(COUNT)
    first = scores(as_they_are)
    if tuned:
        pytest.skip("it goes on to train a model")
    assert np.ptp(first) > 0, "else nothing is shown"
    if same(first, scores(np.random.default_rng(0).permutation(COUNT))):
        return
    assert not same(first, scores(as_they_are, seed=1)), "nothing is drawn, yet the order matters"
    assert same(first[STAYING], scores(as_they_are, staying=STAYING)[STAYING]), "rows depend on others' draws"


def test_there_are_such_detectors():
    assert {"spectral", "clustering", "spectre", "contamination", "strip", "cognitive-distillation"} <= set(FIXED)
