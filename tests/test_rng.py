from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from untaint import rng

SEEDS = st.integers(0, 2**63)
ROWS = st.lists(st.integers(0, 2**40), min_size=1, max_size=40, unique=True)


def slow_bits(seed, purpose, epoch, row, draw):
    """The same in plain integers."""
    mask = 2**64 - 1

    def mix(word):
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
        return word ^ (word >> 31)

    word = mix((rng.derive(seed, purpose, epoch) + (row + 1) * 0x9E3779B97F4A7C15) & mask)
    return mix((mix(word) + (draw + 1) * 0xD1B54A32D192ED03) & mask)


@given(SEEDS, st.integers(0, 1000), ROWS, st.integers(1, 4))
def test_bits_are_those_of_plain_integers_whatever_the_company(seed, epoch, rows, draws):
    found = rng.bits(seed, "flip", epoch, np.array(rows), draws)
    assert found.dtype == np.uint64
    assert found.tolist() == [[slow_bits(seed, "flip", epoch, row, draw) for draw in range(draws)] for row in rows]


@given(SEEDS, ROWS)
def test_a_row_gets_the_same_draw_in_any_batch_and_order(seed, rows):
    together = rng.uniform(seed, "crop", 3, np.array(rows), 2)
    for index, row in enumerate(rows):
        assert np.array_equal(rng.uniform(seed, "crop", 3, np.array([row]), 5)[0, :2], together[index])


def test_every_part_of_the_key_matters():
    rows = np.arange(1_000)
    base = rng.bits(0, "a", 0, rows)
    for other in (
        rng.bits(1, "a", 0, rows),
        rng.bits(0, "b", 0, rows),
        rng.bits(0, "a", 1, rows),
        rng.bits(0, "a", 0, rows + 1),
    ):
        assert not (base == other).any()
    assert len(np.unique(rng.bits(0, "a", 0, rows, 10))) == 10_000


def test_uniform_numbers_are_uniform_and_independent():
    numbers = rng.uniform(7, "test", 0, np.arange(50_000), 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < 0.02  # neighbouring rows
    off_diagonal = np.corrcoef(numbers.T)[np.triu_indices(3, 1)]
    assert np.abs(off_diagonal).max() < 0.02
    epochs = np.array([rng.uniform(7, "test", epoch, np.arange(20_000))[:, 0] for epoch in range(4)])
    assert np.abs(np.corrcoef(epochs)[np.triu_indices(4, 1)]).max() < 0.03


@given(SEEDS, ROWS, st.randoms())
def test_order_does_not_depend_on_how_the_rows_were_given(seed, rows, random):
    shuffled = random.sample(rows, len(rows))
    found = rng.order(seed, "batches", 2, np.array(shuffled))
    assert np.array_equal(found, rng.order(seed, "batches", 2, np.array(rows)))
    assert sorted(found.tolist()) == sorted(rows)


def test_orders_of_epochs_differ_and_are_not_sorted():
    rows = np.arange(100)
    first, second = (rng.order(0, "batches", epoch, rows) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, rows)


@given(SEEDS, ROWS, st.integers(0, 50))
def test_choose_draws_without_replacement(seed, rows, count):
    chosen = rng.choose(seed, "probes", np.array(rows), count)
    assert np.array_equal(chosen, np.unique(chosen))
    assert len(chosen) == min(count, len(rows))
    assert set(chosen.tolist()) <= set(rows)


def test_choose_is_fair():
    counts = np.zeros(10)
    for seed in range(2_000):
        counts[rng.choose(seed, "probes", np.arange(10), 3)] += 1
    assert stats.chisquare(counts).pvalue > 0.001


@given(SEEDS)
def test_derived_seeds_fit_in_63_bits_and_words_do_not_run_together(seed):
    assert 0 <= rng.derive(seed, "a", 1) < 2**63
    assert (
        len(
            {
                rng.derive(seed, "ab", "c"),
                rng.derive(seed, "a", "bc"),
                rng.derive(seed, "abc"),
                rng.derive(seed + 1, "abc"),
            }
        )
        == 4
    )


def test_draws_never_change_between_versions():
    """Results depend on these numbers: a change here is a change of every experiment."""
    assert rng.derive(0, "probes") == PINNED["derive"]
    assert rng.bits(1, "crop", 2, np.array([3]), 2)[0].tolist() == PINNED["bits"]
    assert rng.choose(0, "probes", np.arange(100), 3).tolist() == PINNED["choose"]


PINNED = {
    "derive": 275543327960663548,
    "bits": [16633260932799631204, 10664461803885932199],
    "choose": [13, 33, 88],
}
