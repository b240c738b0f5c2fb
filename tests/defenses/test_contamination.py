"""SCAn: the ratio against likelihoods written out, what it finds that Euclidean clusters miss, and whom it distrusts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation, multivariate_normal

import small
from untaint import Examples
from untaint.defenses import Task
from untaint.defenses.clustering import two_clusters
from untaint.defenses.contamination import Contamination, beyond_others, likelihood_ratio, within_classes
from untaint.scores import parse_rule

LABELS = np.arange(900) % 6
POISONED = np.flatnonzero(LABELS == 2)[::8]


class Known(Task):
    """A task whose undefended model sees what the test says."""

    seen: np.ndarray

    def features(self) -> np.ndarray:
        return self.seen


def task(scratch, seen, probes=(), labels=LABELS) -> Task:
    examples = Examples.of(np.zeros((len(labels), 3, 2, 2), np.uint8), labels)
    here = small.task(scratch, examples, probes, kind=Known)
    object.__setattr__(here, "seen", seen.astype(np.float32))
    return here


def seen(poisoned=POISONED, labels=LABELS, width=8):
    """Features of classes that vary much in one direction and hardly in the last, in which poison lies apart."""
    generator = np.random.default_rng(1)
    found = generator.normal(size=(len(labels), width)) * np.geomspace(30, 0.1, width)
    found += 10 * generator.normal(size=(6, width))[labels]
    found[poisoned, -1] += 1.0
    return found


@given(st.integers(4, 30), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_the_ratio_is_that_of_the_likelihoods(rows, width, seed):
    generator = np.random.default_rng(seed)
    points, second = generator.normal(size=(rows, width)), generator.random(rows) < 0.4
    second[:2] = [True, False]

    def log(part):
        return multivariate_normal(part.mean(axis=0), np.eye(width)).logpdf(part).sum()

    exact = 2 * (log(points[second]) + log(points[~second]) - log(points))
    assert likelihood_ratio(points, second) == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_rows_vary_by_one_about_their_class_in_every_direction():
    points = within_classes(seen().astype(np.float32), LABELS)
    about = np.concatenate([points[label == LABELS] - points[label == LABELS].mean(axis=0) for label in range(6)])
    assert about.T @ about / 900 == pytest.approx(np.eye(8), abs=1e-4)
    flat = np.concatenate([seen(), np.full((900, 2), 3.0)], axis=1)  # neurons that are dead
    assert within_classes(flat.astype(np.float32), LABELS).shape == (900, 8)
    assert within_classes(np.ones((900, 4), np.float32), LABELS).shape == (900, 0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=30))
def test_deviations_above_the_median(values):
    ratios = np.array(values)
    found = beyond_others(ratios)
    assert (found >= 0).all()
    assert (found[ratios <= np.median(ratios)] == 0).all()
    deviation = median_abs_deviation(ratios, scale="normal")
    if deviation > 1e-3 * np.abs(ratios).max():
        assert found == pytest.approx(np.maximum(ratios - np.median(ratios), 0) / deviation, rel=1e-3)


def test_it_finds_what_lies_apart_in_a_direction_in_which_nothing_else_varies(tmp_path):
    here = task(tmp_path, seen())
    judge = Contamination()
    scores = judge.score(here)
    own = LABELS == 2
    assert scores.values[POISONED].min() > 7.389
    assert (scores.values[np.setdiff1d(np.flatnonzero(own), POISONED)] < 0).mean() > 0.99
    assert scores.values[~own].max() < 7.389
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert set(POISONED) <= set(verdict.rows)
    assert len(verdict.rows) <= len(POISONED) + 2
    assert "deviations above the median class's" in judge.explain(scores, POISONED[:1])[0]
    euclidean = two_clusters(seen()[own], 0)
    assert 0.3 < euclidean[np.isin(np.flatnonzero(own), POISONED)].mean() < 0.7


def test_the_scale_and_the_axes_of_the_features_do_not_matter(tmp_path):
    mixed = np.random.default_rng(3).normal(size=(8, 8))
    one = Contamination().score(task(tmp_path, seen())).values
    other = Contamination().score(task(tmp_path, seen() @ mixed + 5)).values
    assert other[POISONED] == pytest.approx(one[POISONED], rel=0.05)


def test_nothing_is_found_where_nothing_is(tmp_path):
    values = Contamination().score(task(tmp_path, seen(poisoned=[]))).values
    assert values.max() < 7.389


def test_whoever_is_vouched_for_is_not_the_poison_even_as_the_smaller_group(tmp_path):
    own = np.flatnonzero(LABELS == 2)
    many = own[: int(0.7 * len(own))]
    vouched = np.setdiff1d(own, many)[::3]
    values = Contamination().score(task(tmp_path, seen(poisoned=many), probes=vouched)).values
    assert (values[many] > 7.389).mean() > 0.99
    assert (values[np.setdiff1d(own, many)] < 0).mean() > 0.99
    values = Contamination().score(task(tmp_path, seen(poisoned=many))).values
    assert (values[many] < 0).mean() > 0.99, "the smaller group, where nobody is vouched for"


def test_a_class_too_small_or_all_alike_is_not_parted(tmp_path):
    labels = np.repeat(np.arange(6), [400, 9, 121, 120, 120, 130])
    found = seen(poisoned=[], labels=labels)
    found[labels == 3] = found[labels == 3][0]
    values = Contamination().score(task(tmp_path, found, labels=labels)).values
    assert (values[np.isin(labels, [1, 3])] == 0).all()
    assert np.isfinite(values).all()
