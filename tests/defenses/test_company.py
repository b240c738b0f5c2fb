from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untaint import run
from untaint.defenses import _company
from untaint.defenses._company import company, neighbours, side_by_side


def slow_neighbours(features, rows, count):
    """Return for each row the set of its nearest others, one distance at a time."""
    found = []
    for index, point in enumerate(features):
        others = [(float(np.linalg.norm(point - other)), rows[i]) for i, other in enumerate(features) if i != index]
        found.append({int(row) for _, row in sorted(others)[:count]})
    return found


@given(st.integers(0, 2**31), st.integers(2, 60), st.integers(1, 12), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_neighbours_are_those_of_the_obvious_program(seed, members, count, block):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(members, 5)).astype(np.float32)
    rows = np.sort(generator.choice(1000, members, replace=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_company, "BLOCK", block)
        near = neighbours(features, rows, count)
    assert near.shape == (members, min(count, members - 1))
    assert [set(found) for found in near.tolist()] == slow_neighbours(features, rows, count)


def test_a_row_is_not_its_own_neighbour_even_among_duplicates():
    features = np.ones((6, 3), dtype=np.float32)
    rows = np.array([3, 5, 8, 9, 20, 21])
    near = neighbours(features, rows, 5)
    for row, found in zip(rows, near, strict=True):
        assert sorted(found) == sorted(set(rows) - {row})


def test_a_large_class_is_represented_by_a_sample_that_leaves_each_row_out(monkeypatch):
    monkeypatch.setattr(_company, "MOST", 50)
    generator = np.random.default_rng(0)
    features, rows = generator.normal(size=(200, 4)).astype(np.float32), np.arange(1000, 1200)
    near = neighbours(features, rows, 10)
    assert near.shape == (200, 10)
    assert len(np.unique(near)) <= 50
    assert not (near == rows[:, None]).any()
    assert np.array_equal(near, neighbours(features, rows, 10))


def test_company_is_the_median_of_the_others():
    values = np.array([0, 1, 10, 100, np.nan], dtype=np.float32)
    rows = np.array([0, 2, 3])
    near = np.array([[2, 3], [0, 3], [0, 4]])
    assert company(values, near, rows).tolist() == [55, 50, 0]
    assert company(values, np.empty((3, 0), dtype=np.int64), rows).tolist() == [0, 10, 100]


def test_epochs_stand_side_by_side_each_of_length_one(tmp_path):
    generator = np.random.default_rng(0)
    tables = [(generator.normal(size=(9, 4)) * scale).astype(np.float16) for scale in (1, 50)]
    tables[0][7] = 0
    paths = [tmp_path / "epoch_000.npy", tmp_path / "epoch_001.npy"]
    for path, table in zip(paths, tables, strict=True):
        run.save_array(path, table)
    rows = np.array([8, 2, 7])
    found = side_by_side(paths, rows)
    assert found.shape == (3, 8)
    for index, row in enumerate(rows):
        for part, table in ((found[index, :4], tables[0]), (found[index, 4:], tables[1])):
            exact = table[row].astype(np.float64)
            assert part == pytest.approx(exact / max(np.linalg.norm(exact), 1e-6), abs=1e-5)


@given(st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_company_moves_with_its_rows(seed):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(40, 6)).astype(np.float32)
    values, order = generator.normal(size=40).astype(np.float32), generator.permutation(40)
    rows = np.arange(40)
    before = company(values, neighbours(features, rows, 5), rows)
    after = company(values[order], neighbours(features[order], rows, 5), rows)
    assert np.array_equal(after, before[order])
