from __future__ import annotations

import numpy as np
import pytest

from untaint.defenses._figures import PRIOR, beside_class, beside_probes, scaled


def classes(count=600, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    values = (generator.normal(size=count) + 4 * (labels == 2)).astype(np.float32)
    return values, labels, np.sort(generator.choice(count, 240, replace=False))


def test_what_a_whole_class_has_is_taken_away_but_for_what_its_probes_may_owe_to_chance():
    values, labels, probes = classes()
    before, after = scaled(values), beside_probes(values, labels, probes)
    apart = [float(np.median(x[labels == 2]) - np.median(x[labels != 2])) for x in (before, after)]
    left = PRIOR / (np.count_nonzero(labels[probes] == 2) + PRIOR)  # of the offset
    assert apart[1] == pytest.approx(left * apart[0], abs=0.15 * apart[0])
    for label in range(3):  # within a class nothing changes
        moved = (after - before)[labels == label]
        assert moved == pytest.approx(np.full(len(moved), moved[0]), abs=1e-5)


def test_poison_moves_its_class_no_further_than_it_moves_the_scale():
    values, labels, probes = classes()
    others = np.setdiff1d(np.flatnonzero(labels == 0), probes)
    poisoned = values.copy()
    poisoned[others[:100]] += 50  # most of the class that is no probe
    assert np.quantile(beside_probes(poisoned, labels, probes)[others[:100]], 0.1) > 20


def test_a_class_without_probes_is_left_as_it_is():
    values, labels, _ = classes()
    probes = np.flatnonzero(labels != 1)[:50]
    assert np.array_equal(beside_probes(values, labels, probes)[labels == 1], scaled(values)[labels == 1])


def test_beside_its_class_a_row_is_as_far_as_from_the_median_and_poison_that_is_most_of_it_hides():
    values, labels, _ = classes()
    own = np.flatnonzero(labels == 0)
    values[own[:140]] += 50  # of 200
    after = beside_class(values, labels)
    assert [float(np.median(after[labels == label])) for label in range(3)] == pytest.approx([0, 0, 0], abs=1e-6)
    assert abs(np.median(after[own[:140]])) < np.abs(np.median(after[own[140:]]))
