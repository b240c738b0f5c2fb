"""ASSET: the whisker and the limit as their formulas are written, the poison whose loss runs away, and what it does with little."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

import known
import small
from untaint.defenses.asset import Asset, _opposed, beside_label, losses, medcouple, on_scale, outlying, suspects
from untaint.errors import InputError, SpecError, TrainingError
from untaint.scores import parse_rule

POISONED = np.arange(1, 720, 16)
PROBES = np.setdiff1d(np.arange(0, 720, 9), POISONED)


def test_the_loss_of_poison_runs_away_and_that_of_clean_pictures_does_not(tmp_path):
    here = known.task(tmp_path, known.pictures(720, POISONED), PROBES)
    judge = Asset(steps=60, batch=64)
    scores = judge.score(here)
    clean = np.setdiff1d(np.arange(720), np.union1d(POISONED, PROBES))
    assert scores.values[POISONED].min() > scores.values[clean].max()
    assert np.median(scores.parts["loss"][POISONED]) > 3
    assert np.abs(np.median(scores.parts["loss"][clean])) < 0.1
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert verdict.rejected[POISONED].all()
    assert verdict.rejected[clean].mean() < 0.2
    assert "rose by" in judge.explain(scores, POISONED[:1])[0]


def test_the_small_network_suspects_what_no_probe_is_like():
    generator = np.random.default_rng(0)
    seen = generator.normal(size=(600, 10)).astype(np.float32)
    poisoned = np.arange(200, 600, 20)
    seen[poisoned, 3] += 8
    mixed = [np.sort(generator.choice(np.arange(200, 600), 100, replace=False)) for _ in range(40)]
    vouched = [generator.choice(200, 64, replace=False) for _ in range(40)]
    found = suspects(seen, mixed, vouched, 5, 1.0, seed=0)
    assert all(np.isin(some, rows).all() for some, rows in zip(found, mixed, strict=True))
    late = np.concatenate(found[20:])
    there = sum(np.isin(rows, poisoned).sum() for rows in mixed[20:])
    assert np.isin(late, poisoned).sum() > 0.7 * there
    assert np.isin(late, poisoned).mean() > 0.9
    again = suspects(seen, mixed, vouched, 5, 1.0, seed=0)
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("count", [3, 10, 41, 128])
def test_the_medcouple_is_that_of_the_formula(count):
    values = np.random.default_rng(count).exponential(size=count)
    middle = np.median(values)
    pairs = []
    for above in values[values >= middle]:
        for below in values[values <= middle]:
            apart = above - below
            pairs.append(((above - middle) - (middle - below)) / apart if apart > 0 else 0.0)
    assert medcouple(values) == pytest.approx(np.median(pairs))
    assert medcouple(-values) == pytest.approx(-medcouple(values))
    assert -1 <= medcouple(values) <= 1


def test_values_are_measured_by_the_whisker():
    symmetric = np.arange(101.0)
    found = outlying(symmetric)
    assert found[50] == 0
    assert found[100] == pytest.approx(50 / (25 + 1.5 * 50)), "without skewness it is the usual boxplot"
    skewed = np.random.default_rng(0).exponential(size=2001)
    assert (outlying(skewed) > 1).mean() < (outlying(np.sqrt(skewed)) > 1).mean() + 0.02 < 0.04
    assert np.argmax(outlying(-skewed)) == np.argmin(skewed)
    assert not outlying(np.ones(7)).any()
    assert not outlying(np.array([2.0])).any()


def test_the_limit_is_where_the_density_is_a_millionth():
    generator = np.random.default_rng(0)
    loss = generator.normal(2.3, 0.2, 4001).astype(np.float32)
    known_half = np.sort(loss)[:2001].astype(np.float64)
    scale = on_scale(loss, np.arange(4001))
    order = np.argsort(scale)
    assert np.array_equal(order, np.argsort(loss))
    zero, one = np.interp([0.0, 1.0], scale[order], loss[order], right=np.nan)
    assert zero == pytest.approx(known_half.mean(), abs=1e-3)
    limit = known_half.mean() + (loss[0] - known_half.mean()) / scale[0] if np.isnan(one) else one
    assert norm(known_half.mean(), known_half.std()).pdf(limit) == pytest.approx(1e-6, rel=0.05)
    assert (scale > 1).mean() < 0.02
    assert not on_scale(np.ones(5, np.float32), np.arange(5)).any()
    assert np.isnan(on_scale(np.array([1, 2, np.nan], np.float32), np.arange(2))[2])


def test_losses_are_compared_with_probes_of_the_label_if_there_are_enough():
    labels = np.repeat([0, 1, 2], 10)
    loss = np.arange(30.0).astype(np.float32)
    found = beside_label(loss, labels, np.arange(29), np.array([0, 1, 5, 10, 11]))
    assert found[:10] == pytest.approx(loss[:10] - 1)
    assert found[10:20] == pytest.approx(loss[10:20] - 14.5)
    assert found[20:29] == pytest.approx(loss[20:29] - 24)
    assert loss[0] == 0, "what was given is left alone"


def test_each_optimizer_goes_down_its_own_loss():
    weight, unused = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.ones(1))
    first, second = (torch.optim.SGD([weight, unused], lr=rate) for rate in (0.1, 0.01))
    squared = weight.square()
    _opposed([(first, squared.sum()), (second, -3 * squared[0])], [weight, unused])
    assert weight.tolist() == pytest.approx([1 - 0.1 * 2 + 0.01 * 6, 2 - 0.1 * 4])
    assert unused.tolist() == [1.0]


def test_rows_that_are_no_members_have_no_loss_and_do_not_matter(tmp_path):
    whole = known.task(tmp_path / "a", known.pictures(120), np.arange(20))
    part = known.task(tmp_path / "b", whole.examples.take(np.arange(100)), np.arange(20))
    loss = losses(part, Asset(steps=4, batch=16))
    assert np.isfinite(loss[:100]).all()
    assert np.isnan(loss[100:]).all()
    scores = Asset(steps=4, batch=16).score(part)
    assert np.isnan(scores.values[100:]).all()


def test_a_second_score_asks_nobody_and_is_the_same_and_other_probes_are_another_matter(tmp_path):
    here = known.task(tmp_path, known.pictures(120), np.arange(20))
    judge = Asset(steps=4, batch=16)
    first = judge.score(here)
    asked = here.loaded
    assert np.array_equal(judge.score(here).values, first.values)
    assert here.loaded == asked
    others = judge.score(known.task(here.scratch, here.examples, np.arange(20, 40)))
    assert not np.array_equal(others.values, first.values)
    elsewhere = judge.score(known.task(tmp_path / "b", here.examples, np.arange(20)))
    assert np.array_equal(elsewhere.values, first.values)


@pytest.mark.parametrize("count", [0, 9])
def test_without_probes_it_says_how_many_it_needs_before_anything_is_trained(tmp_path, count):
    here = known.task(tmp_path, known.pictures(40), np.arange(count))
    with pytest.raises(SpecError, match=f"at least 10 pictures .* has {count}.*--probes"):
        Asset().score(here)
    assert here.loaded == 0


def test_probes_alone(tmp_path):
    with pytest.raises(SpecError, match="all 20 pictures are probes"):
        Asset().score(known.task(tmp_path, known.pictures(20), np.arange(20)))


def test_grey_pictures_a_class_of_five_probes_of_one_class_and_a_network_of_ones_own(tmp_path):
    labels = np.r_[np.arange(55) % 2, np.full(5, 2)]
    grey = known.Examples.of(known.pictures(60).images[:, :1, :5], labels)

    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(40, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))

    here = known.task(tmp_path, grey, np.arange(0, 20, 2), network())
    object.__setattr__(here, "model", network)
    scores = Asset(steps=6, batch=8).score(here)
    assert np.isfinite(scores.values).all()


def test_features_that_are_no_numbers_and_a_rate_that_is_too_high(tmp_path):
    network = known.Backdoored()
    network.seen.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        Asset(steps=1).score(known.task(tmp_path / "a", known.pictures(40), np.arange(10), network))
    with pytest.raises(TrainingError, match="after 4 steps with learning rate"):
        Asset(steps=4, learning_rate=1e30).score(known.task(tmp_path / "b", known.pictures(40), np.arange(10)))


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"inner": 0}, {"batch": 7}, {"learning_rate": 0.0}, {"outlying": 0.0}, {"outlying": np.inf}],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        Asset(**options)


def test_it_is_left_off_and_gone_on_with_torch_as_it_was(tmp_path):
    here = known.task(tmp_path, known.pictures(60), np.arange(12), progress=small.Stopping(3))
    before = torch.random.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        Asset(steps=8, batch=8).score(here)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.isfinite(
        Asset(steps=8, batch=8).score(known.task(tmp_path, known.pictures(60), np.arange(12))).values
    ).all()
