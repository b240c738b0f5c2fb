"""NAB: the stamp says that a picture is what it shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import small
from untaint import accuracy, load_model
from untaint.defenses import nab
from untaint.defenses.nab import NAB, Stamping
from untaint.errors import RunError, SpecError
from untaint.models.stamp import Stamp, Stamped
from untaint.scores import Scores
from untaint.training.loop import fit
from untaint.training.objective import Batch

from .test_cbd import poisoned, task
from .test_unlearning import stamped

POISONED = np.flatnonzero(np.arange(360) % 3)[::6]


@pytest.fixture
def isolated(monkeypatch):
    """Isolation that has found three quarters of the poison and some clean pictures first, and then the rest of it."""

    class Found(nab.Isolation):
        def score(self, task):
            values = np.zeros(task.examples.total, dtype=np.float32)
            values[POISONED] = 0.5
            values[POISONED[np.arange(len(POISONED)) % 4 > 0]] = 1
            values[np.setdiff1d(task.examples.rows, POISONED)[:24]] = 1
            return Scores(values=values, name="isolation")

    monkeypatch.setattr(nab, "Isolation", Found)


def test_stamped_pictures_are_what_they_show_and_the_saved_model_stamps(tmp_path, isolated):
    here = replace(task(tmp_path, epochs=12), examples=poisoned(), probes=np.array([], dtype=np.int64))
    outcome = NAB(share=54 / 360, value=1.0).defend(here)
    model = load_model(outcome.model)
    assert isinstance(model, Stamped)
    assert model.stamp == Stamp(value=1.0)
    fresh, triggered = small.pictures(150, seed=9), stamped(150, 9)
    without = nn.Sequential(*model.children()).eval()
    assert accuracy(model, triggered) < 0.2
    assert accuracy(without, triggered) > accuracy(model, triggered) + 0.1
    assert accuracy(model, fresh) > 0.95
    images = torch.from_numpy(triggered.images[triggered.rows]).float() / 255
    clean = torch.from_numpy(fresh.images).float() / 255
    assert model.doubtful(images).float().mean() > model.doubtful(clean).float().mean() + 0.1


def test_who_is_suspected_who_is_trusted_and_who_gets_which_label(tmp_path):
    here = task(tmp_path)
    easy = np.random.default_rng(0).normal(size=120).astype(np.float32)
    judge = NAB(share=0.1, trusted=0.4)
    suspected = judge.suspected(easy, here)
    assert suspected.sum() == 12
    assert not suspected[here.probes].any()
    others = np.setdiff1d(np.flatnonzero(~suspected), here.probes)
    assert easy[suspected].min() > easy[others].max()
    trusted = judge.trusted_rows(easy, suspected, here)
    assert set(here.probes) <= set(trusted)
    assert not suspected[trusted].any()
    for label in range(3):
        own = np.flatnonzero((here.examples.labels == label) & ~suspected)
        hardest = own[np.argsort(easy[own])[:16]]
        assert set(trusted[here.examples.labels[trusted] == label]) == set(hardest) | set(own[own % 4 == 0])
    given = judge.relabelled(easy, suspected, here)
    told = load_model(tmp_path / "relabelling")(torch.from_numpy(here.examples.images).float() / 255).argmax(1).numpy()
    assert np.array_equal(given, np.where(suspected, told, here.examples.labels))


def test_in_training_only_those_suspected_have_the_stamp_and_the_label_given():
    examples = small.pictures(9)
    seen = []

    def forward(images):
        seen.append(images)
        return logits

    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    images = torch.rand(3, 3, 8, 8)
    rows = np.array([7, 2, 4])
    suspected, given = np.arange(9) == 2, np.where(np.arange(9) == 2, 0, examples.labels)
    shown = Batch(
        rows=rows,
        images=images,
        labels=torch.from_numpy(examples.labels[rows]),
        epoch=0,
        epochs=1,
        model=nn.Identity(),
        forward=forward,
        again=lambda number: images,
    )
    stamp = Stamp(value=1.0, side=3)
    found = Stamping(stamp, suspected, given, torch.device("cpu")).loss(shown)
    assert torch.equal(seen[0], torch.stack([images[0], stamp.on(images[1:2])[0], images[2]]))
    expected = np.mean([-float(logits[place].log_softmax(0)[label]) for place, label in enumerate((1, 0, 1))])
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("after", [3, 9])
def test_interrupted_it_ends_with_the_same_bits(tmp_path, after):
    def run(out, **how):
        objective = Stamping(Stamp(), np.arange(60) < 5, np.zeros(60, dtype=np.int64), torch.device("cpu"))
        fit(small.pictures(), recipe, tmp_path / out, seed=1, objective=objective, **how)

    recipe = replace(small.RECIPE, augment="crop-flip", model="proxy+stamp")
    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", progress=small.Stopping(after))
    run("parts")
    assert small.contents(tmp_path / "parts") == small.contents(tmp_path / "whole")


def test_a_network_of_ones_own_is_stamped_too(tmp_path):
    here = replace(task(tmp_path), model=small.WithDropout)
    folder = NAB(epochs=1, side=1).defend(here).model
    model = load_model(folder, Stamp(side=1).put_into(small.WithDropout()))
    assert isinstance(model, Stamped)


def test_one_channel_a_class_of_five_and_pictures_of_other_sizes(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (65, 1, 16, 24), dtype=np.uint8)
    examples = small.pictures().of(images, np.repeat([0, 1, 2], [30, 30, 5]))
    for probes in ([], [0, 1, 2]):  # of one class only
        here = replace(
            task(tmp_path / str(len(probes)), epochs=1), examples=examples, probes=np.array(probes, dtype=np.int64)
        )
        model = load_model(NAB(epochs=1).defend(here).model)
        assert model(torch.rand(2, 1, 16, 24)).shape == (2, 3)


def test_nothing_is_trained_where_that_is_forbidden(tmp_path):
    with pytest.raises(RunError, match="has no finished isolating"):
        NAB().defend(task(tmp_path, train=False))
    assert not list(tmp_path.glob("*/model.safetensors"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"share": 0.0}, "share is 0"),
        ({"trusted": 1.0}, "trusted is 1"),
        ({"share": 0.6, "trusted": 0.5}, "more than all"),
        ({"floor": 0.0}, "floor 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"side": -1}, "side is -1"),
        ({"value": 1.5}, "value is 1.5"),
        ({"corner": "middle"}, "corner is 'middle'"),
    ],
)
def test_options_that_make_no_sense(options, what):
    with pytest.raises(SpecError, match=what):
        NAB(**options)
