from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from untaint import _modes, _null
from untaint.errors import InputError, SpecError
from untaint.scores import (
    Above,
    FalseDiscovery,
    Fraction,
    Gap,
    KeepPerClass,
    Scores,
    Verdict,
    in_turns,
    parse_rule,
    rule_text,
)

NOBODY = np.empty(0, dtype=np.int64)


def scores_of(values) -> Scores:
    return Scores(values=np.asarray(values, dtype=np.float32), name="test")


def decide(rule, values, labels=None, probes=NOBODY) -> Verdict:
    scores = scores_of(values)
    labels = np.zeros(len(scores.values), dtype=np.int64) if labels is None else np.asarray(labels)
    return rule.decide(scores, labels=labels, probes=np.asarray(probes, dtype=np.int64))


def mixture(seed, clean, count, share, distance):
    generator = np.random.default_rng(seed)
    poisoned = int(count * share)
    values = np.concatenate([clean(generator, count - poisoned), generator.normal(distance, 1, poisoned)])
    return values, np.arange(count) >= count - poisoned


CLEAN = {
    "normal": lambda generator, count: generator.normal(size=count),
    "heavy tails": lambda generator, count: generator.standard_t(5, count),
    "very heavy tails": lambda generator, count: generator.standard_t(3, count),
    "left-skewed": lambda generator, count: 2 - generator.gamma(4, 0.5, count),
    "rounded": lambda generator, count: np.round(generator.standard_t(5, count) * 2) / 2,
}


# --- things


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((3, 1), np.float32), np.array([0, np.inf], np.float32)])
def test_scores_refuse_what_is_no_float32_column(values):
    with pytest.raises(InputError, match=r"give (float32|finite)"):
        Scores(values=values, name="x")


def test_scores_refuse_parts_of_another_length():
    with pytest.raises(InputError, match=r"'a' has the shape \(2,\) for 3"):
        Scores(values=np.zeros(3, np.float32), name="x", parts={"a": np.zeros(2, np.float32)})


# --- rules


def test_fraction_takes_the_top_share_of_all_scored_rows_by_rank():
    verdict = decide(Fraction(0.4), [0.1, 5, 0.3, np.nan, 4, 0.2, 0.0])  # 6 scored rows: 2.4, so 2
    assert verdict.rows.tolist() == [1, 4]
    assert verdict.threshold == 4
    assert verdict.rule == "fraction"
    assert np.isnan(verdict.p_values).all()


def test_fraction_breaks_ties_by_row_and_is_not_fooled_by_rounding():
    assert decide(Fraction(0.4), [1, 1, 1, 1, 1]).rows.tolist() == [0, 1]
    assert decide(Fraction(0.3), np.ones(10)).rows.tolist() == [0, 1, 2]


def test_fraction_counts_probes_but_keeps_them():
    assert decide(Fraction(0.5), [9, 8, 3, 2], probes=[0, 1]).rows.tolist() == [2, 3]
    assert decide(Fraction(1.0), [9, 8, 3, 2], probes=[0]).rows.tolist() == [1, 2, 3]


def test_above_is_strict_and_spares_unscored_rows_and_probes():
    verdict = decide(Above(3.5), [3.5, 3.6, np.nan, 9, 1], probes=[3])
    assert verdict.rows.tolist() == [1]
    assert decide(Above(100), [1, 2]).threshold is None


RULES = [Fraction(0.3), Above(0.5), Gap(), FalseDiscovery(0.2), KeepPerClass(Fraction(0.9), 0.3)]


@pytest.mark.parametrize("rule", RULES, ids=rule_text)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(0, 8))
@settings(max_examples=30, deadline=None)
def test_every_rule_spares_probes_and_the_unscored_and_rejects_from_the_top(rule, seed, count, probes):
    generator = np.random.default_rng(seed)
    values = generator.standard_t(2, count).astype(np.float32)
    values[generator.random(count) < 0.1] = np.nan
    labels = generator.integers(0, 3, count)
    trusted = generator.permutation(count)[:probes]
    before = values.copy(), labels.copy(), trusted.copy()
    verdict = decide(rule, values, labels, trusted)
    for array, copy in zip((values, labels, trusted), before, strict=True):
        assert np.array_equal(array, copy, equal_nan=True)
    assert not verdict.rejected[trusted].any()
    assert not verdict.rejected[np.isnan(values)].any()
    assert np.isnan(verdict.p_values[np.isnan(values)]).all()
    assert len(verdict.rule) > 2
    assert verdict.note.endswith(".")
    if verdict.rejected.any() and not isinstance(rule, KeepPerClass):
        still = ~verdict.rejected & ~np.isnan(values)
        still[trusted] = False
        assert values[verdict.rejected].min() == verdict.threshold
        assert not still.any() or values[still].max() <= verdict.threshold


@pytest.mark.parametrize("rule", RULES[:4], ids=rule_text)
def test_decisions_move_with_their_rows(rule):
    values, _ = mixture(0, CLEAN["heavy tails"], 2_000, 0.1, 8)
    order = np.random.default_rng(1).permutation(len(values))
    assert np.array_equal(decide(rule, values).rejected[order], decide(rule, values[order]).rejected)


def test_keep_per_class_reinstates_the_least_suspicious():
    values = [9, 8, 7, 6, 5, 1, 1, 1, 1, 1]
    labels = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    verdict = decide(KeepPerClass(Fraction(0.5), 0.4), values, labels)
    assert verdict.rows.tolist() == [0, 1, 2]
    assert "2 of them were reinstated" in verdict.note
    untouched = decide(KeepPerClass(Fraction(0.2), 0.4), values, labels)
    assert untouched.rows.tolist() == [0, 1]
    assert "reinstated" not in untouched.note


@given(st.integers(0, 2**31), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_keep_per_class_keeps_its_promise_and_no_more(seed, at_least):
    generator = np.random.default_rng(seed)
    values, labels = generator.normal(size=40), generator.integers(0, 4, 40)
    values[generator.random(40) < 0.1] = np.nan
    inner = decide(Fraction(0.7), values, labels)
    verdict = decide(KeepPerClass(Fraction(0.7), at_least), values, labels)
    assert not (verdict.rejected & ~inner.rejected).any()
    for label in np.unique(labels):
        mine = (labels == label) & ~np.isnan(values)
        kept, needed = (mine & ~verdict.rejected).sum(), at_least * mine.sum()
        assert kept >= needed - 1e-6
        if (mine & inner.rejected & ~verdict.rejected).any():
            assert kept < needed + 1


# --- the texts of rules


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("fraction", Fraction(0.4)),
        ("fraction:share=0.25", Fraction(0.25)),
        ("above:score=3.5", Above(3.5)),
        ("gap", Gap()),
        ("false-discovery:q=0.05", FalseDiscovery(0.05)),
        ("false-discovery:keep=0.2", KeepPerClass(FalseDiscovery(), 0.2)),
        ("fraction:share=0.25,keep=0.1", KeepPerClass(Fraction(0.25), 0.1)),
    ],
)
def test_rules_are_read_and_written_alike(text, rule):
    assert parse_rule(text) == rule
    assert rule_text(rule) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("false-discover", "no rule 'false-discover'. Did you mean 'false-discovery'?"),
        ("fraction:shar=1", "Did you mean 'share'?"),
        ("fraction:share=2", "share is 2.0"),
        ("false-discovery:q=0", "q is 0.0"),
        ("false-discovery:q=few", "give a number"),
        ("above", "needs score"),
        ("gap:keep=2", "at_least is 2.0"),
        ("gap:level=3", "level is 3.0"),
    ],
)
def test_wrong_rules_are_refused_in_one_sentence(text, message):
    with pytest.raises(SpecError) as caught:
        parse_rule(text)
    assert message in str(caught.value)


# --- false discovery


@pytest.mark.parametrize("clean", CLEAN, ids=str)
@pytest.mark.parametrize("count", [1_000, 20_000])
@pytest.mark.parametrize("probes", [0, 50, 250])
def test_almost_nothing_is_set_aside_where_nothing_is_poisoned(clean, count, probes):
    alarms = 0
    for seed in range(10):
        values, _ = mixture(seed, CLEAN[clean], count, 0, 0)
        verdict = decide(FalseDiscovery(), values, probes=np.arange(probes))
        alarms += verdict.rejected.any()
        assert verdict.rejected.mean() < 0.02
    assert alarms <= 1


@pytest.mark.parametrize("clean", CLEAN, ids=str)
@pytest.mark.parametrize("share", [0.07, 0.2, 0.3])
@pytest.mark.parametrize("probes", [0, 250])
def test_false_discoveries_stay_near_q_and_far_poison_is_found(clean, share, probes):
    false, found = [], []
    for seed in range(10):
        values, poisoned = mixture(seed, CLEAN[clean], 10_000, share, 15)
        rejected = decide(FalseDiscovery(0.1), values, probes=np.arange(probes)).rejected
        false.append((rejected & ~poisoned).sum() / max(rejected.sum(), 1))
        found.append((rejected & poisoned).sum() / poisoned.sum())
    assert np.mean(false) < 0.12
    assert np.mean(found) > 0.99


def test_little_poison_is_found_where_clean_tails_are_light():
    values, poisoned = mixture(0, CLEAN["normal"], 50_000, 0.001, 8)
    rejected = decide(FalseDiscovery(), values, probes=np.arange(250)).rejected
    assert rejected[poisoned].all()
    assert rejected[~poisoned].sum() <= 10


def test_scores_that_reach_further_right_than_left_are_no_poison():
    def skewed(generator, count):
        values = generator.normal(size=count)
        return np.where(values > 0, 3 * values, values)

    clean, _ = mixture(0, skewed, 10_000, 0, 0)
    assert not decide(FalseDiscovery(), clean).rejected.any()
    values, poisoned = mixture(0, skewed, 10_000, 0.07, 25)
    verdict = decide(FalseDiscovery(), values)
    assert (verdict.rejected & ~poisoned).sum() < 70
    assert verdict.rejected[poisoned].mean() > 0.99


def test_poison_that_hides_among_clean_rows_is_left_and_they_are_kept():
    values, _ = mixture(0, CLEAN["normal"], 10_000, 0.07, 1.5)
    rejected = decide(FalseDiscovery(), values).rejected
    assert rejected.sum() < 20


def test_probes_that_lie_where_nobody_should_raise_the_bound_and_the_note_says_so():
    generator = np.random.default_rng(0)
    clean, clump = generator.normal(size=9_500), generator.normal(8, 0.3, 500)  # clean too, but a kind of its own
    values = np.concatenate([clean, clump])
    common = np.arange(250)
    assert decide(FalseDiscovery(), values).rejected[9_500:].mean() > 0.99
    alone, checked = (
        decide(FalseDiscovery(), values, probes=probes) for probes in (common, np.append(common, range(9_500, 9_513)))
    )
    assert alone.rejected[9_500:].mean() > 0.99
    assert "250 probes agree" in alone.note
    assert not checked.rejected.any()
    assert re.search(
        r"of 263 probes more lie there than that allows, so that \S+ times as many are expected", checked.note
    )
    assert "could not be checked (there are no scored probes)" in decide(FalseDiscovery(), values).note
    assert "too few" in decide(FalseDiscovery(), values, probes=np.arange(5)).note


def slow_bounds(values):
    """For each value, the lowest bound of any pair of windows to its left, one by one."""
    drawn = np.arcsinh((values - np.median(values)) / np.median(np.abs(values - np.median(values))))
    lower, middle = np.quantile(drawn, (0.25, 0.5))
    ordered = np.sort(drawn)
    coarse = 2 * np.diff(ordered[len(ordered) // 10 : len(ordered) // 2]).max()
    found = np.array([(drawn >= value).sum() for value in drawn], dtype=float)
    for parts in (1, 2, 4, 8):
        width = max((middle - lower) / parts, coarse)
        end = 2 * middle - lower + 2 * width
        while end < drawn.max() + 2 * width:
            before = ((drawn >= end - 2 * width) & (drawn < end - width)).sum()
            after = ((drawn >= end - width) & (drawn < end)).sum()
            ratio = (after + 0.5) / (before + 0.5) * np.exp(2.2 * np.sqrt(1 / (before + 0.5) + 1 / (after + 0.5)))
            if before >= 5 and ratio < 1:
                to_come = (after + 1) * sum(ratio**k for k in range(1, 5_000))
                beyond = np.where(drawn >= end, to_come * ratio ** ((drawn - end) / width), np.inf)
                found = np.minimum(found, beyond)
            end += width / 2
    return np.array([found[drawn <= value].min() for value in drawn])


@given(st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_p_values_are_the_lowest_bound_that_any_fall_to_the_left_gives(seed):
    values, _ = mixture(seed, CLEAN["normal"], 600, 0.1, 6)
    values = values.astype(np.float32).astype(np.float64)
    p_values = decide(FalseDiscovery(), values).p_values
    assert p_values == pytest.approx((1 + slow_bounds(values)) / 601, rel=1e-6)


def test_p_values_fall_with_suspicion_and_are_nan_where_nothing_was_scored():
    values = np.append(mixture(0, CLEAN["heavy tails"], 2_000, 0.05, 20)[0], np.nan)
    p_values = decide(FalseDiscovery(), values).p_values
    assert np.isnan(p_values[-1])
    assert (np.diff(p_values[np.argsort(values[:-1])]) <= 0).all()
    assert 1 / 2_001 <= p_values[:-1].min() < 0.001
    assert p_values[:-1].max() == 1


@given(st.lists(st.floats(0.001, 1), max_size=30), st.floats(0.01, 0.9))
def test_benjamini_hochberg_is_the_textbook_procedure(p_values, q):
    best = 0
    for k in range(1, len(p_values) + 1):
        if sorted(p_values)[k - 1] <= q * k / len(p_values):
            best = k
    limit = sorted(p_values)[best - 1] if best else -1
    assert _null.benjamini_hochberg(np.array(p_values), q).tolist() == [p <= limit for p in p_values]


@pytest.mark.parametrize("values", [[], [1.0], [np.nan, np.nan], [2.0] * 50])
@pytest.mark.parametrize("rule", [FalseDiscovery(), Gap()], ids=rule_text)
def test_degenerate_scores_give_an_empty_verdict(values, rule):
    verdict = decide(rule, values)
    assert not verdict.rejected.any()
    assert verdict.threshold is None


# --- modes


def slow_dip(values):
    """Minimise the distance over all distributions with one mode, by linear programming for each mode."""
    x, counts = np.unique(values, return_counts=True)
    upto = np.cumsum(counts) / len(values)
    below = upto - counts / len(values)
    size, best = len(x), 1.0
    for mode in range(size):  # variables: G at x before the mode, G just left of it, G at it and after, distance
        matrix, bounds = [], []

        def at_most(terms, bound, matrix=matrix, bounds=bounds):
            row = np.zeros(size + 2)
            for index, weight in terms:
                row[index] += weight
            matrix.append(row)
            bounds.append(bound)

        for i in range(size):
            place = i if i < mode else i + 1
            at_most([(place, -1), (-1, -1)], -upto[i])
            at_most([(place, 1), (-1, -1)], upto[i] if i == mode else below[i])
        at_most([(mode, 1), (-1, -1)], below[mode])
        at_most([(mode, -1), (-1, -1)], -below[mode])
        at_most([(mode, 1), (mode + 1, -1)], 0)
        left = [(x[i], i) for i in range(mode + 1)]
        right = [(x[i], i + 1) for i in range(mode, size)]
        for points, sign in ((left, 1), (right, -1)):
            for (_, i), (_, j) in itertools.pairwise(points):
                at_most([(i, 1), (j, -1)], 0)
            for (a, i), (b, j), (c, k) in zip(points, points[1:], points[2:], strict=False):
                first, second = sign / (b - a), sign / (c - b)
                at_most([(j, first + second), (i, -first), (k, -second)], 0)
        cost = [0] * (size + 1) + [1]
        solved = linprog(cost, A_ub=np.array(matrix), b_ub=bounds, bounds=[(0, 1)] * (size + 2))
        if solved.success:
            best = min(best, solved.fun)
    return best


@pytest.mark.parametrize("seed", range(16))
def test_the_dip_is_the_distance_to_the_nearest_distribution_with_one_mode(seed):
    generator = np.random.default_rng(seed)
    values = generator.random(generator.integers(4, 20))
    if seed % 2:
        values = np.round(values * 8)
    assert _modes.dip(values) == pytest.approx(slow_dip(values), abs=1e-7)


def test_the_dip_of_evenly_spaced_numbers_is_the_smallest_possible():
    assert _modes.dip(np.arange(50.0)) == pytest.approx(1 / 100)


def test_dip_p_values_are_right_for_uniform_numbers():
    generator = np.random.default_rng(5)
    p_values = np.array([_modes.dip_p_value(_modes.dip(generator.random(300)), 300) for _ in range(200)])
    assert 0.005 <= np.mean(p_values <= 0.05) <= 0.1
    assert 0.3 <= np.mean(p_values <= 0.5) <= 0.6


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_gap_splits_two_modes_and_nothing_else(share):
    values, poisoned = mixture(0, CLEAN["normal"], 10_000, share, 10)
    verdict = decide(Gap(), values)
    assert (verdict.rejected == poisoned).mean() > 0.9995
    assert "two modes" in verdict.note


@pytest.mark.parametrize("clean", ["normal", "heavy tails", "very heavy tails", "left-skewed"])
def test_gap_finds_nothing_in_one_mode(clean):
    values, _ = mixture(1, CLEAN[clean], 5_000, 0, 0)
    verdict = decide(Gap(), values)
    assert not verdict.rejected.any()
    assert "one mode" in verdict.note


def test_gap_sets_nothing_aside_where_the_lesser_mode_is_the_less_suspicious():
    values, _ = mixture(0, CLEAN["normal"], 5_000, 0.2, -10)
    assert not decide(Gap(), values).rejected.any()


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 80))
def test_turns_go_round_the_classes(labels, count):
    found = in_turns(np.array(labels, dtype=np.int64), count).tolist()
    queues = {label: [i for i, own in enumerate(labels) if own == label] for label in labels}
    expected: list[int] = []
    while any(queues.values()):
        expected += sorted(queue.pop(0) for queue in queues.values() if queue)
    assert found == sorted(expected[:count])
