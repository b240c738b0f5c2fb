"""Activation clustering's own arithmetic: the silhouette beside scikit-learn's, and the function by which components are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import FastICA
from sklearn.metrics import silhouette_score

from untaint.defenses import clustering
from untaint.defenses.clustering import reduced, silhouette, two_clusters


@given(st.integers(3, 700), st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_silhouette_is_scikit_learns(rows, width, few, seed):
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(rows, width)) * 10 ** generator.uniform(-3, 3)
    second = np.zeros(rows, bool)
    second[generator.choice(rows, min(few, rows - 1), replace=False)] = True
    points[second] += generator.uniform(0, 5)
    assert silhouette(points, second, 0) == pytest.approx(silhouette_score(points, second), abs=1e-6)


def test_rows_that_are_all_alike_count_nothing():
    second = np.arange(20) < 7
    assert silhouette(np.ones((20, 3)), second, 0) == pytest.approx(0, abs=1e-6)
    points = np.where(second[:, None], 0.0, 1.0) * np.ones((20, 3))
    assert silhouette(points, second, 0) == pytest.approx(1)


def test_of_many_rows_some_are_looked_at_those_that_scikit_learn_draws(monkeypatch):
    generator = np.random.default_rng(0)
    monkeypatch.setattr(clustering, "LOOKED_AT", 500)
    points = generator.normal(size=(900, 4))
    second = points[:, 0] > 1
    exact = silhouette_score(points, second, sample_size=500, random_state=3)
    assert silhouette(points, second, 3) == pytest.approx(exact, abs=1e-9)


def test_a_cluster_of_one_among_many_is_looked_at_though_it_is_not_drawn(monkeypatch):
    monkeypatch.setattr(clustering, "LOOKED_AT", 100)
    points = np.random.default_rng(0).normal(size=(1000, 2))
    seed = 0
    assert 7 not in np.random.RandomState(seed).permutation(1000)[:100]
    points[7] = 100
    second = np.arange(len(points)) == 7
    with pytest.raises(ValueError, match="Number of labels is 1"):
        silhouette_score(points, second, sample_size=100, random_state=seed)
    assert silhouette(points, second, seed) > 0.9


@pytest.mark.parametrize(("rows", "seed"), [(40, 2), (1000, 1)])
@pytest.mark.filterwarnings("ignore:FastICA did not converge")
def test_components_are_scikit_learns_to_the_bit(rows, seed):
    """Where none are found for long, another last bit ends in another place."""
    features = np.random.default_rng(seed).normal(size=(rows, 12)).astype(np.float32)
    tool = FastICA(max_iter=1000, tol=0.005, whiten_solver="eigh", random_state=0)
    exact = tool.fit_transform(reduced(features, 5, "pca", 0))
    assert tool.n_iter_ > 50, "else nothing is shown"  # how many differs from processor to processor
    assert np.array_equal(reduced(features, 5, "ica", 0), exact)


def test_two_clusters_are_the_best_of_their_starts():
    points = np.concatenate([np.random.default_rng(0).normal(size=(60, 2)), np.full((20, 2), 9.0)])
    assert np.array_equal(two_clusters(points, 0), np.arange(80) >= 60)
