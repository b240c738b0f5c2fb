"""Beatrix: Gram matrices, bounds and discrepancies as their formulas are written, the trigger that leaves the bounds, and what it does with few probes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import known
from untaint.defenses.beatrix import Beatrix, Bounds, anomalies, deviations, gram, mean_discrepancy
from untaint.errors import InputError, SpecError
from untaint.models.build import build
from untaint.scores import parse_rule

POISONED = np.arange(1, 240, 16)
PROBES = np.setdiff1d(np.arange(0, 240, 5), POISONED)
RULE = parse_rule(Beatrix.usual_rule)


def median(values) -> float:
    ordered, count = sorted(values), len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def slow_gram(features: np.ndarray, order: int) -> list[float]:
    """The upper triangle for one picture, (channels, places)."""
    found = []
    for one in range(len(features)):
        for other in range(one, len(features)):
            total = sum(float(x) ** order * float(y) ** order for x, y in zip(features[one], features[other], strict=True))  # fmt: skip
            found.append(math.copysign(abs(total) ** (1 / order), total))
    return found


def slow_beyond(clean: list[list[float]], entries: list[float], within: float) -> float:
    usual = np.mean([abs(entry) for picture in clean for entry in picture])
    total = 0.0
    for place, entry in enumerate(entries):
        middle = median([picture[place] for picture in clean])
        apart = within * median([abs(picture[place] - middle) for picture in clean])
        low, high = middle - apart, middle + apart
        total += max(low - entry, 0) / (abs(low) + usual) + max(entry - high, 0) / (abs(high) + usual)
    return total / len(entries)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 8), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_gram_matrices_are_those_of_the_formula(channels, places, order, seed):
    features = np.random.default_rng(seed).normal(size=(3, channels, places)).astype(np.float32)
    found = gram(torch.tensor(features), order).numpy()
    for one, row in zip(features, found, strict=True):
        expected = np.array(slow_gram(one, order))
        large = np.abs(expected) > 0.05 * np.abs(expected).max()  # the root of what nearly cancels is all rounding
        assert row[large] == pytest.approx(expected[large], rel=0.02)


def test_gram_matrices_grow_with_the_square_and_are_never_too_large():
    features = torch.rand(4, 6, 9)
    assert gram(features * 1e6, 8).numpy() == pytest.approx(gram(features, 8).numpy() * 1e12, rel=1e-4)
    assert not gram(torch.zeros(2, 3, 4), 5).any()
    assert torch.isfinite(gram(torch.full((1, 2, 3), 1e15), 16)).all()


@given(st.integers(2, 9), st.integers(1, 6), st.floats(0.5, 10), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_what_is_beyond_the_bounds_is_that_of_the_formula(pictures, entries, within, seed):
    generator = np.random.default_rng(seed)
    clean, others = generator.normal(2, 1, (pictures, entries)), generator.normal(2, 4, (5, entries))
    bounds = Bounds.of(torch.tensor(clean, dtype=torch.float32), within)
    found = bounds.beyond(torch.tensor(others, dtype=torch.float32)).numpy()
    for value, row in zip(found, others, strict=True):
        assert value == pytest.approx(slow_beyond(clean.tolist(), row.tolist(), within), rel=1e-3, abs=1e-5)


@given(st.integers(2, 9), st.integers(1, 6), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_bounds_without_a_picture_are_those_of_the_others(pictures, entries, ties, seed):
    clean = torch.tensor(np.random.default_rng(seed).normal(2, 2, (pictures, entries)), dtype=torch.float32)
    clean = clean.round() if ties else clean
    bounds = Bounds.without(clean, 3.0)
    for place in range(pictures):
        others = Bounds.of(torch.cat([clean[:place], clean[place + 1 :]]), 3.0)
        assert bounds.low[place].numpy() == pytest.approx(others.low.numpy(), abs=1e-5)
        assert bounds.high[place].numpy() == pytest.approx(others.high.numpy(), abs=1e-5)
        assert bounds.usual[place].item() == pytest.approx(others.usual.item(), rel=1e-5)
        assert bounds.beyond(clean)[place].item() == pytest.approx(others.beyond(clean[place : place + 1]).item(), rel=1e-3, abs=1e-5)  # fmt: skip


def test_deviations_are_mean_over_orders_and_clean_pictures_are_measured_by_others(tmp_path):
    network = build("proxy-narrow", 4, (3, 8, 8), seed=2).eval()
    here = known.task(tmp_path, known.pictures(60), np.arange(44), network)
    options = Beatrix(orders=3, within=2.0, depth=1.0, channels=8)
    found = deviations(here, options)
    features = network[1].body(network[0](torch.tensor(here.examples.images / 255, dtype=torch.float32)))
    features = features.detach().mean(dim=(2, 3)).numpy()
    widest = np.sort(np.argsort(-np.abs(features[here.probes]).var(axis=0), kind="stable")[:8])
    matrices = [[slow_gram(row[widest, None], order) for row in features] for order in (1, 2, 3)]
    for label in range(4):
        own = np.flatnonzero(here.examples.labels == label)
        clean = np.intersect1d(own, here.probes)
        for row in own:
            by = [other for other in clean if other != row]
            expected = np.mean([slow_beyond([each[other] for other in by], each[row], 2.0) for each in matrices])
            assert found[row] == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_the_discrepancy_is_that_of_the_formula():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(5, 3)), generator.normal(0.5, 1, (4, 3))
    points = np.concatenate([one, other])
    typical = np.median([((a - b) ** 2).sum() for i, a in enumerate(points) for b in points[i + 1 :]])

    def kernel(a, b):
        return np.mean([math.exp(-((a - b) ** 2).sum() / (width * typical)) for width in (0.25, 0.5, 1, 2, 4)])

    def within(group):
        return np.mean([kernel(a, b) for i, a in enumerate(group) for j, b in enumerate(group) if i != j])

    cross = np.mean([kernel(a, b) for a in one for b in other])
    assert mean_discrepancy(one, other) == pytest.approx(0.99 * (within(one) + within(other)) - 2 * cross)
    far, near = mean_discrepancy(one, one + 9), mean_discrepancy(one, one + 0.01)
    assert far > mean_discrepancy(one, other) > near
    assert math.isfinite(mean_discrepancy(np.zeros((2, 3)), np.zeros((2, 3))))


def test_features_that_a_trigger_brings_out_are_found(tmp_path):
    here = known.task(tmp_path, known.pictures(poisoned=POISONED), PROBES)
    scores = Beatrix().score(here)
    clean = np.setdiff1d(np.arange(240), POISONED)
    assert scores.values[POISONED].min() > scores.values[clean].max()
    rejected = Beatrix().decide(scores, dataclasses.replace(here, rule=RULE)).rejected
    assert rejected[POISONED].all()
    assert rejected[clean].mean() < 0.12
    assert "deviation" in Beatrix().explain(scores, POISONED[:1])[0]


def test_only_classes_that_hold_a_group_apart_may_be_asked_for(tmp_path):
    here = known.task(tmp_path, known.pictures(poisoned=POISONED), PROBES)
    every, some = Beatrix().score(here), Beatrix(classes="infected").score(here)
    index = some.parts["index"]
    infected = index > math.e**2
    assert np.array_equal(some.values[infected], every.values[infected])
    assert some.values[~infected].max() < 1
    for label in range(4):
        own = np.flatnonzero(here.examples.labels == label)
        assert np.unique(index[own]).size == 1
        order = np.argsort(every.values[own], kind="stable")
        assert (np.diff(some.values[own][order]) >= 0).all()


def test_a_group_apart_stands_out_among_classes(tmp_path):
    generator = np.random.default_rng(0)
    here = known.task(tmp_path, known.Examples.of(known.pictures(400).images, np.arange(400) % 8), np.arange(16))
    features = generator.normal(size=(400, 6)).astype(np.float32)
    suspicious = np.zeros(400, dtype=bool)
    suspicious[16::7] = True
    apart = suspicious & (here.examples.labels == 3)
    features[apart] += 3
    (tmp_path / "undefended").mkdir()
    object.__setattr__(here, "features", lambda: features)
    index = anomalies(suspicious, here)
    assert index[here.examples.labels == 3].min() > math.e**2
    assert np.delete(index, np.flatnonzero(here.examples.labels == 3)).max() < math.e**2
    assert not anomalies(np.zeros(400, dtype=bool), here).any()


def test_classes_with_few_probes_and_with_few_rows(tmp_path):
    whole = known.pictures(poisoned=POISONED)
    few = whole.take(np.r_[np.flatnonzero(whole.labels != 3), np.flatnonzero(whole.labels == 3)[:4]])
    probes = np.setdiff1d(np.flatnonzero(whole.labels == 1), POISONED)[:20]  # of another class than the target
    scores = Beatrix().score(known.task(tmp_path, few, probes))
    assert np.isfinite(scores.values[few.rows]).all()
    assert np.isnan(np.delete(scores.values, few.rows)).all()
    assert not scores.values[few.rows[few.labels[few.rows] == 3]].any()
    clean = np.setdiff1d(few.rows[few.labels[few.rows] == 0], POISONED)
    assert np.median(scores.values[POISONED]) > scores.values[clean].max()


def test_where_no_probe_is_beyond_the_bounds_all_who_are_score_above_one(tmp_path):
    here = known.task(tmp_path, known.pictures(poisoned=POISONED), PROBES)
    scores = Beatrix(within=1e6).score(here)
    assert np.array_equal(scores.values > 1, scores.parts["deviation"] > 0)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_one_channel_and_five_pixels(tmp_path, depth):
    grey = known.Examples.of(known.pictures(90).images[:, :1, :5, :5], np.arange(90) % 3)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3))
    scores = Beatrix(depth=depth, channels=3).score(known.task(tmp_path, grey, np.arange(0, 90, 5), network))
    assert np.isfinite(scores.values).all()
    assert scores.values.any()


def test_a_second_score_asks_nobody_and_judges_by_other_options_at_once(tmp_path):
    here = known.task(tmp_path, known.pictures(120), np.arange(0, 120, 4))
    first = Beatrix().score(here)
    asked = here.loaded
    assert np.array_equal(Beatrix().score(here).values, first.values)
    stricter = Beatrix(false_positives=0.01).score(here)
    assert here.loaded == asked
    assert (stricter.values > 1).sum() <= (first.values > 1).sum()
    Beatrix(orders=2).score(here)
    assert here.loaded > asked


@pytest.mark.parametrize("count", [0, 9])
def test_without_probes_it_says_how_many_it_needs_before_anything_is_trained(tmp_path, count):
    here = known.task(tmp_path, known.pictures(40), np.arange(count))
    with pytest.raises(SpecError, match=f"at least 10 pictures .* has {count}.*--probes"):
        Beatrix().score(here)
    assert here.loaded == 0


def test_features_that_are_no_numbers(tmp_path):
    network = known.Backdoored()
    network.seen.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        Beatrix().score(known.task(tmp_path, known.pictures(60), np.arange(12), network))


@pytest.mark.parametrize(
    "options",
    [
        {"orders": 0},
        {"orders": 17},
        {"within": 0.0},
        {"depth": 1.1},
        {"channels": 1},
        {"false_positives": 0.5},
        {"classes": "some"},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        Beatrix(**options)
