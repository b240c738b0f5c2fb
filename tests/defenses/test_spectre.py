"""SPECTRE: the score as its formula is written, the poison that plain projections miss, and what it does with little."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from untaint.defenses.spectral import spectral_scores
from untaint.defenses.spectre import Spectre, que_scores, spectre_scores
from untaint.errors import SpecError

POISONED = np.arange(0, 1000, 20)


def seen(apart: float = 6.0, poisoned: np.ndarray = POISONED) -> np.ndarray:
    """Features of a class that varies much in a few directions, and of poison that lies apart in one in which it does not."""
    found = np.random.default_rng(2).normal(size=(1000, 40)) * np.geomspace(20, 0.5, 40)
    found[poisoned, 20] += apart * np.geomspace(20, 0.5, 40)[20]
    return found.astype(np.float32)


@given(st.integers(5, 40), st.integers(1, 6), st.floats(0, 8), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_scores_are_those_of_the_formula(rows, width, alpha, seed):
    points = np.random.default_rng(seed).normal(size=(rows, width)) * 3
    moments = points.T @ points / rows
    norm = np.linalg.norm(moments, 2)
    weight = scipy.linalg.expm(alpha * (moments - np.eye(width)) / (norm - 1)) if norm > 1 else None
    if weight is not None:
        exact = np.einsum("ij,jk,ik->i", points, weight, points) / np.trace(weight)
        assert que_scores(points, alpha) == pytest.approx(exact, rel=1e-6)


def test_poison_that_a_plain_projection_misses_is_furthest_out():
    scores = spectre_scores(seen(), 0.15, 4.0)
    found = np.argsort(-scores)[: len(POISONED)]
    assert np.isin(found, POISONED).mean() > 0.9
    plain = np.argsort(-spectral_scores(seen()))[: len(POISONED)]
    assert np.isin(plain, POISONED).mean() < 0.2
    assert scores.mean() > 1.2 * spectre_scores(seen(poisoned=POISONED[:0]), 0.15, 4.0).mean()


def test_the_covariance_is_not_moved_by_what_is_far_out():
    far = seen(apart=60.0)
    scores = spectre_scores(far, 0.15, 4.0)
    assert scores[POISONED].min() > 10 * np.median(scores[np.setdiff1d(np.arange(1000), POISONED)])
    assert scores[POISONED].min() > 100, "whitened by itself it could not be further than one in its own share"


def test_order_and_scale_of_the_rows_do_not_matter():
    order = np.random.default_rng(0).permutation(1000)
    scores = spectre_scores(seen(), 0.15, 4.0)
    assert spectre_scores(seen()[order], 0.15, 4.0) == pytest.approx(scores[order], rel=1e-4)
    assert spectre_scores(seen() * 50, 0.15, 4.0) == pytest.approx(scores, rel=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 19, 20, 41])
def test_few_rows_and_rows_that_are_all_alike(rows):
    scores = spectre_scores(seen()[:rows], 0.15, 4.0)
    assert np.isfinite(scores).all()
    assert scores.any() == (rows >= 20)
    assert not spectre_scores(np.ones((100, 5), np.float32), 0.15, 4.0).any()
    assert not spectre_scores(np.zeros((100, 0), np.float32), 0.15, 4.0).any()


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"alpha": float("nan")}, {"rate": 0.0}, {"rate": 0.7}])
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        Spectre(**options)
