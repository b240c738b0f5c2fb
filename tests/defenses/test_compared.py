"""The detectors to compare with: what they find, and what they agree with."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import small
import untaint as ut
from untaint import run
from untaint.defenses import DEFENSES, Task
from untaint.defenses.clustering import Clustering, two_clusters
from untaint.defenses.label_errors import LabelErrors
from untaint.defenses.oracle import Oracle
from untaint.defenses.random import Random
from untaint.defenses.spectral import Spectral, spectral_scores
from untaint.errors import SpecError
from untaint.scanning import detector_of
from untaint.scores import parse_rule


class Known(Task):
    """A task whose undefended model sees what the test says."""

    seen: np.ndarray

    def features(self) -> np.ndarray:
        return self.seen


def task(scratch, examples=None, seen=None, seed=0) -> Task:
    examples = small.pictures(300) if examples is None else examples
    here = small.task(scratch, examples, examples.rows[:30], kind=Known, seed=seed)
    object.__setattr__(here, "seen", seen)
    return here


def clumps(labels, poisoned, width=12, apart=6.0):
    """Features of classes, in which the poisoned rows of each lie apart in a direction of their own."""
    generator = np.random.default_rng(0)
    seen = generator.normal(size=(len(labels), width)) + 20 * np.eye(width)[labels]
    seen[poisoned] += apart * np.eye(width)[labels[poisoned] + 5]
    return seen.astype(np.float32)


@given(st.integers(2, 40), st.integers(1, 30), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_spectral_scores_are_projections_on_the_first_singular_vector(rows, width, seed):
    features = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32) * np.arange(1, width + 1)
    features = features.astype(np.float32)
    centred = features - features.astype(float).mean(axis=0)
    _, strengths, right = np.linalg.svd(centred, full_matrices=False)
    exact = (centred @ right[0]) ** 2
    if len(strengths) < 2 or strengths[0] > 1.01 * strengths[1]:  # else the direction is anyone's guess
        assert spectral_scores(features) == pytest.approx(exact, rel=1e-3, abs=1e-3 * exact.max() + 1e-9)


def test_spectral_finds_the_minority_that_a_class_varies_by_class_by_class(tmp_path):
    examples = small.pictures(300)
    poisoned = np.arange(200, 236)
    here = task(tmp_path, examples, clumps(examples.labels, poisoned))
    judge = Spectral()
    scores = judge.score(here)
    for label in range(3):
        members = np.flatnonzero(examples.labels == label)
        worst = members[np.argsort(-scores.values[members])[:12]]
        assert set(worst) == set(members[np.isin(members, poisoned)])
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert [np.count_nonzero(examples.labels[verdict.rows] == label) for label in range(3)] == [15, 15, 15]


@pytest.mark.parametrize("reduce", ["ica", "pca"])
def test_clustering_sets_the_smaller_cluster_of_a_divided_class_aside_and_leaves_whole_ones(tmp_path, reduce):
    examples = small.pictures(300)
    poisoned = np.flatnonzero(examples.labels == 1)[70:]
    here = task(tmp_path, examples, clumps(examples.labels, poisoned, apart=12.0))
    judge = Clustering(reduce=reduce, dimensions=2)
    scores = judge.score(here)
    of_class = scores.values[examples.labels == 1]
    assert set(np.flatnonzero(scores.values > 0.15)) >= set(poisoned)
    assert len(np.unique(np.abs(of_class))) == 1, "one silhouette a class"
    assert (scores.values[poisoned] > scores.values[examples.labels != 1].max()).all()
    assert "silhouette" in judge.explain(scores, poisoned[:1])[0]


def test_a_class_too_small_or_all_alike_is_not_clustered(tmp_path):
    labels = np.repeat([0, 1, 2], [50, 9, 40])
    examples = ut.Examples.of(np.zeros((99, 3, 8, 8), np.uint8), labels)
    seen = np.random.default_rng(0).normal(size=(99, 6)).astype(np.float32)
    seen[labels == 2] = 1.5
    values = Clustering().score(task(tmp_path, examples, seen)).values
    assert (values[labels == 0] != 0).all()
    assert (values[labels != 0] == 0).all()


def test_the_smaller_of_two_clusters_is_true():
    points = np.concatenate([np.random.default_rng(0).normal(size=(30, 2)), np.full((70, 2), 9.0)])
    assert np.array_equal(two_clusters(points, 0), np.arange(100) < 30)
    assert np.array_equal(two_clusters(points[::-1], 0), np.arange(100) >= 70)


def test_label_errors_finds_wrong_labels_and_agrees_with_cleanlab(tmp_path):
    from cleanlab.filter import find_label_issues

    examples = small.pictures(300)
    wrong = np.arange(30, 60)
    labels = examples.labels.copy()
    labels[wrong] = (labels[wrong] + 1) % 3
    here = task(tmp_path, dataclasses.replace(examples, labels=labels))
    here = dataclasses.replace(here, preset=small.preset(epochs=6))
    scores = LabelErrors().score(here)
    likely = np.asarray(run.load_array(tmp_path / "out-of-fold" / "values.npy"), dtype=np.float64)
    assert likely.sum(axis=1) == pytest.approx(1, abs=1e-5)
    expected = find_label_issues(labels, likely, filter_by="prune_by_noise_rate", n_jobs=1)
    assert np.array_equal(scores.values > 1, expected)
    assert np.isin(np.argsort(-scores.values)[:30], wrong).mean() > 0.7
    halves = [run.read_json(tmp_path / stage / "model.json")["rows"] for stage in ("half-a", "half-b")]
    assert halves == [150, 150]


def test_each_row_is_asked_of_the_model_that_did_not_train_on_it(tmp_path, monkeypatch):
    here = task(tmp_path)
    asked = {}
    monkeypatch.setattr(
        "untaint.defenses.label_errors.predict",
        lambda model, examples, where: (
            asked.setdefault(len(asked), examples.rows) is None or np.zeros((len(examples), 3))
        ),
    )
    LabelErrors().score(here)
    first = here.first_half()
    assert np.array_equal(asked[0], np.flatnonzero(~first))
    assert np.array_equal(asked[1], np.flatnonzero(first))


def test_without_cleanlab_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"pip install 'untaint\[compare\]'"):
        LabelErrors().require(small.preset())


def test_the_oracle_knows_what_it_was_told_and_nothing_else(tmp_path):
    here = task(tmp_path)
    with pytest.raises(SpecError, match="must be told"):
        Oracle().score(here)
    with pytest.raises(SpecError, match="must be told"):
        ut.scan(here.examples, probes=here.probes, out=tmp_path / "run", preset=here.preset, detector="oracle")
    assert not (tmp_path / "run").exists()
    poisoned = np.array([70, 40, 41])
    knowing = Oracle().told(poisoned)
    assert np.array_equal(np.flatnonzero(knowing.score(here).values), np.sort(poisoned))
    assert knowing == Oracle()
    assert "70" not in repr(knowing)


def test_random_is_by_lot_and_another_draw_draws_others(tmp_path):
    here = task(tmp_path)
    one, same, other, seed = (
        judge.score(where).values
        for judge, where in (
            (Random(), here),
            (Random(), here),
            (Random(draw=1), here),
            (Random(), dataclasses.replace(here, seed=1)),
        )
    )
    assert np.array_equal(one, same)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2
    assert abs(np.corrcoef(one, seed)[0, 1]) < 0.2
    assert 0.4 < one.mean() < 0.6


def test_a_detector_named_by_hand_decides_by_the_rule_of_its_paper(tmp_path):
    result = ut.scan(
        small.pictures(300),
        probes=np.arange(30),
        out=tmp_path / "run",
        preset=small.preset(),
        detector="random",
        retrain=False,
    )
    assert result.verdict.rule == "fraction:share=0.1"
    assert len(result.rejected) == 30
    again = ut.score(tmp_path / "run", reject="fraction:share=0.2,per=class")
    assert len(again.rejected) == 60


def test_a_defence_that_scores_nothing_is_no_detector():
    with pytest.raises(SpecError, match="does not score examples"):
        detector_of("none")
    assert "none" in DEFENSES.names()
