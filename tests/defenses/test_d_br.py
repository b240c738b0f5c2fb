"""D-BR, and how it and D-ST part rows: by how far features move, and what is unlearned for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import small
from untaint import Examples, accuracy, load_model, run
from untaint.defenses._sensitive import Parting, agree, lowest, penultimate, tightened, width_of, within_classes
from untaint.defenses.d_br import DBR
from untaint.errors import InputError, RunError, SpecError
from untaint.models.build import build, features_of

POISONED = np.flatnonzero(np.arange(240) % 3)[::7]  # of classes 1 and 2 by turns


def pictures(count=240, seed=0, *, triggered=()) -> Examples:
    """Pictures of a square, a bar and a post, which look the same when they are turned over, and a bright corner that says class 0."""
    generator = np.random.default_rng(seed)
    labels, triggered = np.arange(count) % 3, np.array(triggered, dtype=np.int64)
    images = generator.integers(60, 130, (count, 3, 12, 12))
    images[labels == 0, :, 4:8, 4:8] += 90
    images[labels == 1, :, 5:7] += 90
    images[labels == 2, :, :, 5:7] += 90
    images[triggered, :, :3, :3] = 255
    labels[triggered] = 0
    return Examples.of(images.astype(np.uint8), labels, class_names=["square", "bar", "post"])


def attacked(count=150, seed=9) -> Examples:
    """Pictures of classes 1 and 2 with the trigger, called class 0."""
    others = np.flatnonzero(np.arange(count) % 3)
    return pictures(count, seed, triggered=others).take(others)


def task(scratch, examples, probes=(), **changes):
    return small.task(scratch, examples, probes, **{"epochs": 8, **changes})


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    """Give a task whose second poisoned picture is vouched for all the same, and how its rows were parted."""
    examples = pictures(triggered=POISONED)
    here = task(tmp_path_factory.mktemp("run"), examples.take(np.arange(230)), probes=[POISONED[1], 40])
    return here, Parting(warm_up=4, shift=0.0).parted(here)


def test_the_distance_within_classes_is_the_mean_to_their_centres():
    features, labels = torch.randn(9, 4), torch.tensor([0, 0, 2, 2, 2, 0, 3, 0, 2])
    exact = 0.0
    for row in range(9):
        like = torch.stack([features[other] for other in range(9) if labels[other] == labels[row]])
        exact += float(((features[row] - like.mean(dim=0)) ** 2).sum()) / 9
    assert float(within_classes(features, labels, 5)) == pytest.approx(exact, rel=1e-5)


def test_the_lowest_are_a_share_of_all_and_half_that_of_each_label():
    labels = np.array([0] * 80 + [1] * 20)
    order = np.arange(100)  # all of label 0 first
    assert lowest(order, labels, 0.2).tolist() == [*range(20), 80, 81]
    assert lowest(order[::-1], labels, 0.2).tolist() == [*range(72, 80), *range(80, 100)]


def test_two_orders_agree_where_those_in_front_stay_there():
    before = np.arange(100, dtype=np.float32)
    before[90] = np.nan
    after = before.copy()
    assert agree(before, after, 0.05)
    after[[95, 96, 97]] = -1  # of 95 to 99
    assert agree(before, after, 0.05)
    after[98] = -1
    assert not agree(before, after, 0.05)


def test_many_pictures_are_learned_gently_and_few_by_the_recipe(tmp_path):
    here = task(tmp_path, pictures())
    few, many = (Parting(warm_up=epochs)._recipe(here) for epochs in (2, 16))  # of 15 steps
    assert (few.optimizer, few.learning_rate, few.epochs) == ("sgd", 0.05, 2)
    assert many.learning_rate == pytest.approx(0.01 * 320 / 240)


def test_features_are_those_that_are_seen_and_have_gradients():
    model, images = build("proxy", 3, (3, 8, 8)), torch.rand(5, 3, 8, 8)
    with penultimate(model) as latest, features_of(model) as seen:
        model(images)
    assert torch.equal(latest[0], seen[0])
    assert latest[0].shape == (5, width_of(model))
    assert latest[0].requires_grad
    model(images[:2])
    assert len(latest[0]) == 5, "it looks no more"
    with pytest.raises(InputError, match="no linear layer"), penultimate(nn.Flatten()):
        pass


def test_classes_are_drawn_together(parted):
    here, _ = parted
    store = torch.from_numpy(here.examples.images[:230]).float() / 255
    labels = torch.from_numpy(here.examples.labels[:230])
    within = []
    for epochs in (0, 20):
        model = tightened(here.load("sensitive"), here, epochs)
        assert not model.training
        with torch.no_grad(), penultimate(model) as latest:
            model(store)
        within.append(float(within_classes(latest[0], labels, 3)))
    assert within[1] < 0.5 * within[0]


def test_poison_moves_furthest_and_is_not_taken_for_clean(parted):
    _, found = parted
    assert found.values.dtype == np.float32
    assert np.isfinite(found.values[:230]).all()
    assert np.isnan(found.values[230:]).all()
    poisoned = np.isin(np.arange(230), POISONED)
    assert roc_auc_score(poisoned, found.values[:230]) > 0.9
    assert np.isin(found.poison, POISONED).mean() > 0.8
    assert len(found.poison) == 12, "5 % of 230"
    assert np.isin(found.clean, POISONED).sum() <= 1, "but who is vouched for"
    assert 46 <= len(found.clean) <= 65


def test_probes_are_clean(parted):
    here, found = parted
    assert np.isin(here.probes, found.clean).all()
    assert not np.isin(here.probes, found.poison).any()
    assert np.isin(POISONED[1], here.probes)
    everybody = dataclasses.replace(here, probes=here.examples.rows)
    assert not len(Parting(warm_up=4, shift=0.0).parted(everybody).poison)


def test_the_backdoor_is_unlearned_and_the_rest_is_kept(tmp_path):
    here = task(tmp_path, pictures(triggered=POISONED))
    outcome = DBR(warm_up=4, shift=0.0, steps=160, learning_rate=0.02).defend(here)
    before, after = load_model(tmp_path / "undefended"), load_model(outcome.model)
    assert accuracy(before, attacked()) > 0.9
    assert accuracy(after, attacked()) < 0.2
    assert accuracy(after, pictures(150, 9)) > accuracy(before, pictures(150, 9)) - 0.1
    assert outcome.verdict is None
    assert outcome.scores.name == "d-br"
    assert run.read_json(outcome.model / "model.json")["rows"] == 240


def test_what_is_done_is_not_done_again(tmp_path):
    here, judge = task(tmp_path, small.pictures(120)), DBR(steps=5)
    with pytest.raises(RunError, match="has no finished sensitive"):
        judge.defend(dataclasses.replace(here, train=False))
    first = judge.defend(here)
    written = small.contents(tmp_path)
    again = judge.defend(dataclasses.replace(here, train=False))
    assert small.contents(tmp_path) == written
    assert np.array_equal(first.scores.values, again.scores.values)


def test_where_all_is_vouched_for_it_is_the_undefended_model(tmp_path):
    here = task(tmp_path, small.pictures(60), probes=np.arange(60))
    assert DBR(steps=5).defend(here).model == tmp_path / "undefended"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warm_up": 0}, "warm_up is 0"),
        ({"tighten": -1}, "tighten -1"),
        ({"shift": 0.5}, "shift 0.5"),
        ({"clean": 0.0}, "clean is 0.0"),
        ({"clean": 0.6, "poison": 0.5}, "poison 0.5"),
        ({"steps": 0}, "steps is 0"),
        ({"batch": 1}, "batch 1"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        DBR(**options)
