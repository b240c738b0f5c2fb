from __future__ import annotations

import numpy as np
import pytest

from small import pictures
from untaint.training.likeness import Likeness, looks


def test_looks_are_means_over_a_grid_whatever_brightness_and_contrast():
    examples = pictures(6, side=16)
    found = looks(examples)
    assert found.shape == (6, 3 * 64)
    cells = examples.images.reshape(6, 3, 8, 2, 8, 2).mean(axis=(3, 5)).reshape(6, -1)
    cells = cells - cells.mean(axis=1, keepdims=True)
    assert found == pytest.approx(cells / cells.std(axis=1, ddof=1, keepdims=True), abs=1e-4)


def test_company_is_the_share_of_the_same_label_among_the_ten_nearest_others():
    examples = pictures(90).without(np.arange(80, 90))
    seen, labels, members = looks(examples), examples.labels[examples.rows], np.flatnonzero(examples.labels[:80] == 1)
    far = ((seen[:, None] - seen[None]) ** 2).sum(axis=2)
    np.fill_diagonal(far, np.inf)
    expected = [(labels[np.argsort(far[row])[:10]] == 1).mean() for row in members]
    assert Likeness(examples)(members) == pytest.approx(expected)


def test_pictures_that_are_all_alike_and_few_are_no_error():
    examples = pictures(4)
    examples.images[:] = 7
    assert looks(examples) == pytest.approx(np.zeros((4, 192)))
    assert ((Likeness(examples)(np.array([0, 3])) >= 0) & (Likeness(examples)(np.array([0, 3])) <= 1)).all()
