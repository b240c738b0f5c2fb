from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untaint import Examples, Recipe, run
from untaint.defenses import DEFENSES, Task
from untaint.defenses.badloss import BaDLoss
from untaint.errors import RunError
from untaint.progress import Silent
from untaint.recipe import preset
from untaint.scores import Fraction
from untaint.trajectories import Trajectories


def stored(folder, logits):
    """Logits float64 (rows, epochs, classes) as a watcher's files; the label is class 0 everywhere."""
    for epoch in range(logits.shape[1]):
        own, others = logits[:, epoch, 0], logits[:, epoch, 1:]
        name = f"epoch_{epoch:03d}.npy"
        run.save_array(folder / "scaled-logit" / name, (own - np.logaddexp.reduce(others, axis=1)).astype(np.float32))
        run.save_array(folder / "margin" / name, (own - others.max(axis=1)).astype(np.float32))
        run.save_array(folder / "predicted" / name, logits[:, epoch].argmax(axis=1).astype(np.int32))
    return Trajectories(folder)


def paper_score(logits, probes, k=50):
    """The BaDLoss paper's score from softmax probabilities, one example at a time."""
    shifted = np.exp(logits - logits.max(axis=2, keepdims=True))
    loss = -np.log(shifted[:, :, 0] / shifted.sum(axis=2))
    means, kept = loss.mean(axis=0), [0, 1, 2]
    for epoch in range(3, loss.shape[1]):
        if means[epoch] < 2 * np.mean([means[earlier] for earlier in kept[-3:]]):
            kept.append(epoch)
    result = []
    for row in range(len(loss)):
        to = [np.sqrt(((loss[row, kept] - loss[probe, kept]) ** 2).sum()) for probe in probes if probe != row]
        result.append(np.mean(sorted(to)[:k]))
    return np.array(result), kept


def random_logits(seed, rows=150, epochs=8, spike=True):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, epochs, 4)) * 2 + generator.normal(size=(rows, 1, 4))
    logits[:, :, 0] += np.linspace(0, 4, epochs)
    if spike:
        logits[:, 5, 0] -= 20
    return logits, generator


@pytest.mark.parametrize("probes", [np.arange(90), np.arange(20, 60)])
@pytest.mark.parametrize("spike", [True, False])
def test_the_defaults_are_the_papers_score(tmp_path, spike, probes):
    logits, _ = random_logits(0, spike=spike)
    expected, kept = paper_score(logits, probes, min(50, len(probes) - 1))
    assert (5 in kept) is not spike
    found = BaDLoss().compare(stored(tmp_path, logits), np.zeros(150, np.int64), probes)
    assert found.values == pytest.approx(expected, rel=1e-4)
    assert found.name == "badloss"
    assert np.array_equal(found.parts["distance"], found.values)


def test_options_change_what_is_compared(tmp_path):
    logits, generator = random_logits(1)
    trajectories, labels = stored(tmp_path, logits), generator.integers(0, 3, 150)
    found = [
        BaDLoss(**options).compare(trajectories, labels, np.arange(80)).values
        for options in (
            {},
            {"observable": "log-ce"},
            {"observable": "margin"},
            {"observable": "probability"},
            {"k": 10},
            {"centre": "class"},
            {"standardise": "probes"},
            {"epochs": "all"},
        )
    ]
    for index, one in enumerate(found):
        assert np.isfinite(one).all()
        assert not any(np.allclose(one, other) for other in found[:index])


@given(st.integers(0, 2**31), st.sampled_from(["ce", "margin"]), st.sampled_from(["none", "class"]))
@settings(max_examples=10, deadline=None)
def test_scores_move_with_their_rows(tmp_path_factory, seed, observable, centre):
    logits, generator = random_logits(seed, rows=60)
    labels, order = generator.integers(0, 3, 60), generator.permutation(60)
    probes, place = np.arange(25), np.argsort(order)
    judge = BaDLoss(observable=observable, centre=centre, k=9)
    before = judge.compare(stored(tmp_path_factory.mktemp("a"), logits), labels, probes).values
    moved = stored(tmp_path_factory.mktemp("b"), logits[order])
    after = judge.compare(moved, labels[order], np.sort(place[probes])).values
    assert after == pytest.approx(before[order], rel=1e-5)


def task(tmp_path, *, record="eval", train=True, probes=None):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = (generator.normal(100, 40, (60, 3, 8, 8)) + 40 * labels[:, None, None, None]).clip(0, 255)
    recipe = Recipe(epochs=4, batch=16, precision="float32")
    whole = replace(preset("paper"), watch=recipe, retrain=recipe, record=record)
    return Task(
        examples=Examples.of(images.astype(np.uint8), labels),
        probes=np.arange(0, 60, 3) if probes is None else probes,
        preset=whole,
        rule=Fraction(0.4),
        scratch=tmp_path,
        seed=0,
        progress=Silent(),
        train=train,
    )


@pytest.mark.parametrize("record", ["eval", "train"])
def test_one_watcher_trained_on_everything_is_compared(tmp_path, record):
    here = task(tmp_path, record=record)
    judge = BaDLoss(k=5)
    scores = judge.score(here)
    again = judge.compare(Trajectories(tmp_path / "watcher-a" / "trajectories"), here.examples.labels, here.probes)
    assert np.array_equal(scores.values, again.values)
    assert judge.work(here) == [("watcher-a", 240, 240 if record == "eval" else 0)]
    assert [path.name for path in tmp_path.iterdir()] == list(judge.stages)


def test_a_defence_scores_decides_and_retrains(tmp_path):
    here = task(tmp_path)
    outcome = BaDLoss(k=5).defend(here)
    rejected = np.flatnonzero(outcome.verdict.rejected)
    assert len(rejected) == 24  # 0.4 of all 60
    assert not np.isin(rejected, here.probes).any()
    assert outcome.model == tmp_path / "model"
    assert run.read_json(tmp_path / "model" / "model.json")["rows"] == 36
    reasons = BaDLoss().explain(outcome.scores, rejected)
    assert len(reasons) == 24
    assert all(reason.startswith("more suspicious than") for reason in reasons)


def test_nothing_is_trained_where_that_is_forbidden(tmp_path):
    with pytest.raises(RunError, match="no finished watcher-a"):
        BaDLoss().score(task(tmp_path, train=False))
    assert list(tmp_path.iterdir()) == []


def test_it_is_registered_under_its_file_name():
    assert DEFENSES.build("badloss:k=20,observable=log-ce") == BaDLoss(k=20, observable="log-ce")
    assert {"badloss", "cross-examination"} <= set(DEFENSES.names())
