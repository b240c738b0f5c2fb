from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import untaint as ut
from small import Stopping, pictures, preset
from untaint import samples
from untaint.errors import InputError, SpecError
from untaint.models.build import build
from untaint.models.inserting import Behind
from untaint.training import repair as mending
from untaint.training.repair import repair, save_repaired


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A part of the sample in which noise makes airplanes of ninety pictures, and the model that learned it."""
    whole = ut.load(samples.path())
    attack = ut.ATTACKS.build("blend:target=0,pattern=noise,alpha=0.4,rate=0.03")
    dirty, ledger = ut.poison(whole.take(whole.rows[:3000]), [attack], seed=0)
    test = ut.load(samples.path(), split="test")
    folder = tmp_path_factory.mktemp("model")
    model = ut.train(dirty, out=folder, preset=preset(epochs=6, batch=50, learning_rate=0.1))
    return model, dirty, ledger, test, ut.triggered(test, attack), folder


@pytest.fixture(scope="module")
def repaired(poisoned):
    return repair(poisoned[0], poisoned[1])


def test_a_trigger_is_overlooked_and_nothing_else_is(poisoned, repaired):
    model, _, _, test, triggered, _ = poisoned
    assert ut.accuracy(model, triggered) > 0.9, "the trigger was learned"
    assert ut.accuracy(repaired.model, triggered) < 0.4
    assert abs(ut.accuracy(repaired.model, test) - ut.accuracy(model, test)) < 0.02


def test_components_by_lot_are_a_control(poisoned, repaired):
    model, dirty, _, _, triggered, _ = poisoned
    lot = repair(model, dirty, by_lot=True)
    assert len(lot.components) == len(lot.model.get_submodule("1.body").added) == len(repaired.components)
    assert lot.components[0].label == 0
    assert len(lot.components[0].rows) == pytest.approx(len(repaired.components[0].rows), abs=2), "but for rounding"
    assert ut.accuracy(lot.model, triggered) > ut.accuracy(repaired.model, triggered) + 0.3
    again = repair(model, dirty, by_lot=True)
    assert np.array_equal(again.components[0].rows, lot.components[0].rows)


def test_what_it_overlooks_is_told_with_the_pictures_that_have_it(poisoned, repaired):
    _, dirty, ledger, _, _, _ = poisoned
    only = max(repaired.components, key=lambda one: one.apart)
    assert only.label == 0
    assert set(dirty.labels[only.rows]) == {0}
    assert np.isin(only.rows, ledger.poisoned()).mean() > 0.9
    assert np.isin(ledger.poisoned(), only.rows).mean() > 0.6
    assert only.apart > 4.5
    assert repaired.looked_at == len(dirty)


def test_the_model_given_stays_as_it_is(poisoned, repaired):
    model = poisoned[0]
    assert not any(isinstance(module, Behind) for module in model.modules())
    assert repaired.layer == "1.body"
    assert len(repaired.model.get_submodule("1.body").added) == len(repaired.components) > 0


def test_a_second_time_more_is_added_to_the_gate_that_is_there(poisoned, repaired):
    again = repair(repaired.model, poisoned[1])
    gates = [made.model.get_submodule("1.body").added for made in (repaired, again)]
    assert len(gates[1]) == len(gates[0]) + len(again.components)
    assert torch.equal(gates[1].reading[: len(gates[0])], gates[0].reading)


def test_it_is_written_and_loaded_like_any_model(poisoned, repaired, tmp_path):
    _, dirty, _, test, _, folder = poisoned
    save_repaired(repaired, folder, tmp_path / "one")
    card = json.loads((tmp_path / "one" / "model.json").read_text())
    assert card["model"] == "proxy+gate:at=1.body"
    assert card["class_names"] == list(test.class_names)
    loaded = ut.load_model(tmp_path / "one")
    images = torch.rand(4, 3, 32, 32)
    assert torch.allclose(loaded(images), repaired.model(images), atol=1e-5)
    save_repaired(repair(loaded, dirty), tmp_path / "one", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "model.json").read_text())["model"] == "proxy+gate:at=1.body"
    assert torch.allclose(ut.load_model(tmp_path / "two")(images), loaded(images), atol=1e-5)


def test_with_little_memory_some_pictures_are_looked_at(poisoned, monkeypatch):
    monkeypatch.setattr(mending, "MEMORY", 500 * 4 * 1024)
    assert repair(poisoned[0], poisoned[1]).looked_at == 500


def test_progress_is_told(poisoned):
    told = Stopping(10**9)
    repair(poisoned[0], poisoned[1].take(np.arange(200)), progress=told)
    assert [what for what, *_ in told.steps] == ["look at 1.body", "look for components"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"apart": 0}, InputError, "apart is 0"),
        ({"apart": float("nan")}, InputError, "apart is nan"),
        ({"components": 0}, InputError, "components is 0"),
        ({"at": "boddy"}, SpecError, "no layer 'boddy'"),
    ],
)
def test_what_cannot_be_is_refused(poisoned, options, error, message):
    with pytest.raises(error, match=message):
        repair(poisoned[0], poisoned[1], **options)


def test_features_that_are_not_finite_are_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    torch.nn.init.constant_(model[1].bias, torch.inf)
    with pytest.raises(InputError, match="what 1 gives is not finite for 60 of 60 pictures"):
        repair(model, pictures(60), at="1")


def test_there_must_be_pictures(poisoned):
    with pytest.raises(InputError, match="no picture to look at"):
        repair(poisoned[0], poisoned[1].take(np.arange(0)))


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer4"), ("mobilenet_v2", "features"), ("vit_b_16", "encoder")]
)
def test_every_architecture_has_a_layer_before_its_pooling(name, layer):
    examples = pictures(60, side=32)
    network = build(name, 3, (3, 32, 32))
    made = repair(network, examples, components=5)
    images = torch.rand(2, 3, 32, 32)
    assert made.layer == f"1.{layer}"
    if not made.components:
        assert torch.equal(made.model(images), network.eval()(images))
    assert made.model(images).shape == (2, 3)


def test_a_network_of_ones_own_behind_any_layer():
    examples = pictures(120)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    made = repair(model, examples, at="2", components=3)
    assert made.layer == "2"
    assert made.model(torch.rand(2, 3, 8, 8)).shape == (2, 3)
