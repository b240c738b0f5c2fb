"""Confusion training: the loss and the evidence as their formulas are written, the trigger that outlives wrong labels, and what it does with little."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

import known
import small
from untaint.defenses import Task
from untaint.defenses.confusion_training import (
    SHARES,
    ConfusionTraining,
    confusion_loss,
    distilled,
    evidence,
    log_odds,
    plane,
    sizes,
    wrong_labels,
)
from untaint.errors import InputError, SpecError, TrainingError
from untaint.progress import Silent
from untaint.scores import parse_rule

POISONED = np.arange(1, 720, 16)
PROBES = np.setdiff1d(np.arange(0, 720, 9), POISONED)
QUICK = {"steps": 120, "base_steps": 20, "batch": 16, "learning_rate": 0.02}


def trained(scratch, examples, probes=PROBES, **changes) -> Task:
    """A task whose undefended model is the small recipe's own."""
    return Task(
        examples=examples,
        probes=np.array(probes, dtype=np.int64),
        preset=small.preset(**{"epochs": 6, **changes}),
        rule=parse_rule("above:score=0"),
        scratch=scratch,
        seed=0,
        progress=Silent(),
        where=torch.device("cpu"),
    )


def test_a_trigger_outlives_the_confusion_and_what_clean_pictures_show_does_not(tmp_path):
    judge = ConfusionTraining(**QUICK)
    here = trained(tmp_path, known.pictures(720, POISONED))
    scores = judge.score(here)
    clean = np.setdiff1d(np.arange(720), np.union1d(POISONED, PROBES))
    rejected = judge.decide(scores, here).rejected
    assert rejected[POISONED].mean() > 0.9
    assert rejected[clean].mean() < 0.02
    against = [scores.parts["evidence"][here.examples.labels == label].max() for label in range(known.CLASSES)]
    assert against[0] > 10
    assert max(against[1:]) < 0.4
    assert (scores.values[PROBES] < 0).all()
    assert "nats" in judge.explain(scores, POISONED[:1])[0]


def test_in_classes_without_evidence_nobody_is_above_even_odds(tmp_path):
    here = trained(tmp_path, known.pictures(240), np.arange(0, 240, 6), epochs=2)
    judge = ConfusionTraining(steps=2, base_steps=1, batch=8)
    scores = judge.score(here)
    odds = scores.parts["odds"]
    assert (odds > 0).any(), "it was hardly confused"
    stricter = dataclasses.replace(judge, nats=1e9).score(here)
    assert (stricter.values < 0).all()
    assert stricter.values == pytest.approx(-np.log1p(np.exp(-odds.astype(np.float64))), rel=1e-4)
    assert np.array_equal(np.argsort(stricter.values), np.argsort(odds))
    easier = dataclasses.replace(judge, nats=1e-9).score(here)
    suspected = easier.parts["evidence"] > 1e-9
    assert np.array_equal(easier.values[suspected], odds[suspected])


def test_the_class_with_the_most_evidence_needs_less(tmp_path):
    here = known.task(tmp_path, known.pictures(400), np.arange(20))
    odds = np.full(400, -3.0)
    odds[40:120] = 1.0
    labels = here.examples.labels
    points = np.random.default_rng(0).normal(size=(400, 2))
    points[40:120] += np.where(labels[40:120, None] == 2, 5.0, 4.0)

    class Fixed(ConfusionTraining):
        def _last_round(self, task, others):
            return np.column_stack([odds, points]).astype(np.float32)

    own = [np.flatnonzero(labels[20:] == label) + 20 for label in range(4)]  # without the probes
    found = [evidence(points[rows].astype(np.float32), odds[rows].astype(np.float32)) for rows in own]
    first, second = np.sort(found)[::-1][:2]
    asked = Fixed(nats=first * 2).score(here)
    above = np.flatnonzero(asked.values > 0)
    assert np.unique(labels[above]).tolist() == [int(np.argmax(found))], "0.405 times as much is enough for the largest"
    assert not (Fixed(nats=first * 2.6).score(here).values > 0).any()
    assert len(np.unique(labels[Fixed(nats=second * 0.9).score(here).values > 0])) >= 2


def test_the_loss_is_that_of_the_formula():
    generator = np.random.default_rng(0)
    told = generator.normal(size=(7, 3))
    wrong, given, weights = np.array([1, 2, 0]), np.array([0, 0, 2, 1]), np.array([0.5, 1.0, 3.0])
    losses = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(told, [*wrong, *given], strict=True)]
    own = sum(weights[given[i]] * losses[3 + i] for i in range(4)) / sum(weights[given])
    expected = (19 * np.mean(losses[:3]) + own) / 20
    tensors = [torch.tensor(value) for value in (told, wrong, given, weights)]
    assert float(confusion_loss(*tensors, 20.0)) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 3, 43])
def test_wrong_labels_are_never_right_and_each_other_as_often(classes):
    labels = torch.arange(classes).repeat(3000 // classes)
    lots = torch.from_numpy(np.random.default_rng(1).uniform(size=len(labels)).astype(np.float32))
    drawn = wrong_labels(labels, lots, classes)
    assert not (drawn == labels).any()
    apart = torch.bincount((drawn - labels) % classes, minlength=classes)[1:].double()
    assert drawn.min() == 0
    assert drawn.max() == classes - 1
    assert float(apart.max() - apart.mean()) < 5 * float(apart.mean()) ** 0.5
    assert not (wrong_labels(labels, torch.ones(len(labels)) - 2**-24, classes) == labels).any()


def test_log_odds_are_those_of_the_formula(tmp_path):
    here = known.task(tmp_path, known.pictures(40).take(np.arange(30)), np.arange(10))
    found = log_odds(here.network, here)
    for row in (0, 7, 29):
        picture = torch.from_numpy(here.examples.images[row].astype(np.float32) / 255)[None]
        logits = here.network.eval()(picture)[0].detach().double().numpy()
        label = here.examples.labels[row]
        rest = np.log(np.exp(np.delete(logits, label)).sum())
        assert found[row] == pytest.approx(logits[label] - rest, abs=1e-4)
    assert np.isnan(found[30:]).all()


@pytest.mark.parametrize("said", [2, 30, 100])
def test_evidence_is_that_of_the_formula(said):
    generator = np.random.default_rng(said)
    points = generator.normal(size=(200, 2)) * [3, 1]
    odds = generator.normal(size=200) - 3
    odds[:said], points[:said] = generator.uniform(0.1, 2, said), points[:said] + 8
    clean = np.argsort(odds)[90:110]
    floor = 1e-3 * points.var(axis=0).mean() * np.eye(2)
    own, other = (
        multivariate_normal(points[rows].mean(axis=0), np.cov(points[rows].T, bias=True) + floor)
        for rows in (np.flatnonzero(odds > 0), clean)
    )
    one, two = 0.0, 0.0
    for row in range(200):
        one += other.logpdf(points[row])
        two += own.logpdf(points[row]) if odds[row] > 0 else other.logpdf(points[row])
    assert evidence(points, odds) == pytest.approx((two - one) / 200, rel=1e-6)


def test_without_rows_that_say_their_label_or_with_few_rows_there_is_no_evidence():
    points = np.random.default_rng(0).normal(size=(100, 2))
    assert evidence(points, np.full(100, -1.0)) == 0
    assert evidence(points, np.r_[1.0, np.full(99, -1.0)]) == 0
    assert evidence(points[:19], np.ones(19)) == 0
    assert evidence(np.ones((100, 2)), np.ones(100)) == 0


def test_the_plane_is_that_of_the_two_main_directions():
    seen = np.random.default_rng(3).normal(size=(60, 5)) * [1, 9, 2, 5, 1]
    found = plane(seen.astype(np.float32))
    left, strengths, _ = np.linalg.svd(seen - seen.mean(axis=0), full_matrices=False)
    assert np.abs(found) == pytest.approx(np.abs(left * strengths)[:, :2], rel=1e-3, abs=1e-3)
    assert plane(np.ones((4, 1), np.float32)).shape == (4, 2)


def test_rounds_train_on_ever_fewer_rows_and_never_on_too_few():
    assert sizes(50_000) == [50_000, *(int(share * 50_000) for share in SHARES)]
    assert sizes(4_750) == [4_750, 2_375, 950, 200]
    assert sizes(300) == [300, 200]
    assert sizes(90) == [90]


def test_the_rows_of_the_largest_odds_are_distilled_and_some_of_each_class():
    labels = np.repeat([0, 1], 200)
    odds = np.arange(400.0).astype(np.float32)  # all of class 0 are below
    rows = np.setdiff1d(np.arange(400), [399, 198])
    found = distilled(odds, labels, rows, 10)
    assert np.array_equal(found, np.sort(np.r_[[196, 197, 199], np.arange(389, 399)]))


def test_a_second_score_asks_nobody_and_is_the_same_and_other_probes_are_another_matter(tmp_path):
    here = known.task(tmp_path, known.pictures(120), np.arange(20))
    judge = ConfusionTraining(steps=2, base_steps=1, batch=8)
    first = judge.score(here)
    asked = here.loaded
    second = dataclasses.replace(judge, nats=2.0).score(here)
    assert here.loaded == asked
    assert np.array_equal(second.parts["odds"], first.parts["odds"])
    others = judge.score(known.task(here.scratch, here.examples, np.arange(20, 40)))
    assert not np.array_equal(others.parts["odds"], first.parts["odds"])


def test_what_was_interrupted_goes_on_after_the_last_round_that_is_whole(tmp_path):
    judge, examples = ConfusionTraining(steps=3, base_steps=2, batch=8), known.pictures(480)
    probes = np.arange(0, 480, 12)  # of 440 others all, 220 and 200 are trained on
    whole = judge.score(known.task(tmp_path / "whole", examples, probes))
    halted = known.task(tmp_path / "halted", examples, probes, progress=small.Stopping(9))
    with pytest.raises(KeyboardInterrupt):
        judge.score(halted)
    again = known.task(tmp_path / "halted", examples, probes)
    assert np.array_equal(judge.score(again).values, whole.values)
    assert 0 < again.loaded < 3


@pytest.mark.parametrize("count", [0, 9])
def test_without_probes_it_says_how_many_it_needs_before_anything_is_trained(tmp_path, count):
    here = known.task(tmp_path, known.pictures(40), np.arange(count))
    with pytest.raises(SpecError, match=f"at least 10 pictures .* has {count}.*--probes"):
        ConfusionTraining().score(here)
    assert here.loaded == 0


def test_probes_alone_and_one_class_alone(tmp_path):
    here = known.task(tmp_path, known.pictures(20), np.arange(20))
    with pytest.raises(SpecError, match="20 of 20 pictures are probes"):
        ConfusionTraining().score(here)
    one = known.Examples.of(known.pictures(20).images, np.zeros(20, int))
    with pytest.raises(SpecError, match="there is 1 class"):
        ConfusionTraining().score(known.task(tmp_path, one, np.arange(10)))


def test_grey_pictures_of_another_shape_a_class_of_five_and_probes_of_one_class(tmp_path):
    labels = np.r_[np.arange(55) % 2, np.full(5, 2)]
    grey = known.Examples.of(known.pictures(60).images[:, :1, :5], labels)
    network = nn.Sequential(nn.Flatten(), nn.Linear(40, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    here = known.task(tmp_path, grey, np.arange(0, 20, 2), network)
    scores = ConfusionTraining(steps=3, base_steps=2, batch=4).score(here)
    assert np.isfinite(scores.values).all()
    assert not scores.parts["evidence"][55:].any()


def test_a_model_whose_answers_are_no_numbers_and_a_rate_that_is_too_high(tmp_path):
    network = known.Backdoored()
    network.head.bias.data[0] = float("nan")
    with pytest.raises((InputError, TrainingError), match=r"not finite|is nan"):
        ConfusionTraining(steps=1, base_steps=0).score(
            known.task(tmp_path / "a", known.pictures(40), np.arange(10), network)
        )
    with pytest.raises(TrainingError, match="learning rate 1e\\+30"):
        ConfusionTraining(steps=3, base_steps=0, learning_rate=1e30).score(
            known.task(tmp_path / "b", known.pictures(40), np.arange(10))
        )


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"base_steps": -1}, {"batch": 3}, {"learning_rate": 0.0}, {"learning_rate": np.inf}, {"nats": 0.0}],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        ConfusionTraining(**options)
