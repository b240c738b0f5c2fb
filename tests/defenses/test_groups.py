from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untaint.defenses._groups import FEWEST, Answers, grouped
from untaint.scores import Trigger

ROWS, CLASSES = 300, 3


def data(tmp_path, seed=0):
    """Three classes of 100 rows each; the first 20 of class 0 lie together, far from the others."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), ROWS // CLASSES)
    features = generator.normal(size=(ROWS, 8)).astype(np.float32)
    features[:20] = 9 + 0.1 * features[:20]
    features[20:100] -= 9
    path = tmp_path / "features.npy"
    np.save(path, features.astype(np.float16))
    return labels, [[path]]


def answers(labels, watchers=None, witness=None, trusted=()) -> Answers:
    mask = np.zeros(len(labels), dtype=bool)
    mask[list(trusted)] = True
    own = labels.astype(np.int32)
    return Answers([own if watchers is None else watchers], own if witness is None else witness, mask)


def others_of(rejected):
    return np.setdiff1d(np.arange(ROWS), rejected)


def shown(label, rows):
    return Trigger(label=label, rows=np.array(rows), picture=np.zeros((1, 2, 2)), seen=0.9, unseen=0, works=True)


def test_rows_whose_label_only_models_know_that_saw_others_of_them_are_one_trigger(tmp_path):
    labels, views = data(tmp_path)
    rejected = np.r_[np.arange(20), 150]
    witness = labels.astype(np.int32)
    witness[:20] = np.tile([1, 2], 10)
    group, *left = grouped(rejected, others_of(rejected), labels, (), views, answers(labels, witness=witness), 5)
    assert (group.kind, group.label, group.trigger) == ("trigger", 0, None)
    assert group.rows.tolist() == list(range(20))
    assert (group.seen, group.unseen, group.usual) == (1, 0, 0)
    assert group.taken_for == ((1, 10), (2, 10))
    assert [(one.kind, one.rows.tolist(), one.label) for one in left] == [("odd", [150], None)]


def test_rows_that_clean_pictures_of_the_class_are_like_are_merely_alike(tmp_path):
    labels, views = data(tmp_path)
    witness = labels.astype(np.int32)
    witness[:100] = 1  # of the clean ones too
    group, *_ = grouped(np.arange(20), others_of(np.arange(20)), labels, (), views, answers(labels, witness=witness), 5)
    assert (group.kind, group.seen, group.unseen, group.usual) == ("alike", 1, 0, 1)
    known = answers(labels)
    group, *_ = grouped(np.arange(20), others_of(np.arange(20)), labels, (), views, known, 5)
    assert (group.kind, group.seen, group.unseen, group.usual) == ("alike", 1, 1, 0)


@pytest.mark.parametrize(("many", "kind"), [(10, "trigger"), (9, "alike")])
def test_a_group_of_which_half_has_a_learned_trigger_is_one(tmp_path, many, kind):
    labels, views = data(tmp_path)
    learned = np.arange(ROWS) < many
    group, *_ = grouped(np.arange(20), others_of(np.arange(20)), labels, (), views, answers(labels), 5, learned)
    assert (group.kind, group.trigger, group.rows.tolist()) == (kind, None, list(range(20)))


def test_what_the_witness_was_trained_on_says_nothing(tmp_path):
    labels, views = data(tmp_path)
    witness = np.full(ROWS, 2, np.int32)
    half = answers(labels, witness=witness, trusted=range(10))
    group, *_ = grouped(np.arange(20), others_of(np.arange(20)), labels, (), views, half, 5)
    assert half.of(np.arange(20), 0) == half.of(np.arange(10, 20), 0) == (1, 0)
    whole = answers(labels, witness=witness, trusted=range(ROWS))
    group, *_ = grouped(np.arange(20), others_of(np.arange(20)), labels, (), views, whole, 5)
    assert group.kind == "alike"
    assert np.isnan([group.seen, group.unseen, group.usual]).all()


def test_where_no_clean_pictures_of_the_class_are_left_the_difference_alone_decides(tmp_path):
    labels, views = data(tmp_path)
    witness = labels.astype(np.int32)
    witness[:20] = 1
    rejected = np.arange(100 - FEWEST)
    told = answers(labels, witness=witness)
    kinds = {len(one.rows): one for one in grouped(rejected, others_of(rejected), labels, (), views, told, 5)}
    assert kinds[20].kind == "trigger"
    assert np.isnan(kinds[20].usual)


def test_a_recovered_trigger_binds_those_who_have_it_and_those_who_keep_company_with_them(tmp_path):
    labels, views = data(tmp_path)
    rejected = np.r_[np.arange(20), 60, 61, 62]
    one, two = shown(0, range(12)), shown(0, [60, 61, 5])
    group, other, *_ = grouped(rejected, others_of(rejected), labels, (one, two), views, answers(labels), 5)
    assert (group.kind, group.trigger, group.rows.tolist()) == ("trigger", 0, list(range(20)))
    assert (other.kind, other.trigger, other.rows.tolist()[:2]) == ("trigger", 1, [60, 61])
    elsewhere = shown(1, range(12))
    assert grouped(rejected, others_of(rejected), labels, (elsewhere,), views, answers(labels), 5)[0].trigger is None


def test_rows_in_no_group_are_mislabelled_where_all_models_agree_on_another_class(tmp_path):
    labels, views = data(tmp_path)
    said = labels.astype(np.int32)
    said[[30, 130]] = 2
    watchers = said.copy()
    watchers[50] = 1
    rejected = np.array([30, 50, 130, 230])
    told = answers(labels, watchers, said)
    found = grouped(rejected, others_of(rejected), labels, (), views, told, 5)
    assert [(one.kind, one.rows.tolist(), one.taken_for) for one in found] == [
        ("mislabelled", [30, 130], ((2, 2),)),
        ("odd", [50, 230], ((0, 1), (2, 1))),
    ]


@given(seed=st.integers(0, 2**31), many=st.integers(0, 200), neighbours=st.integers(1, 12), seen=st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_row_set_aside_is_in_one_group_of_its_label(tmp_path_factory, seed, many, neighbours, seen):
    labels, views = data(tmp_path_factory.mktemp("groups"), seed)
    generator = np.random.default_rng(seed)
    rejected = np.sort(generator.choice(ROWS, many, replace=False))
    told = answers(labels, *(generator.integers(0, CLASSES, (2, ROWS)).astype(np.int32)), generator.choice(ROWS, 99))
    triggers = [shown(label, generator.choice(ROWS, 30, replace=False)) for label in (0, 0, 2)]
    found = grouped(rejected, others_of(rejected), labels, triggers, views if seen else [[]], told, neighbours)
    assert sorted(row for group in found for row in group.rows.tolist()) == rejected.tolist()
    for group in found:
        assert sum(many for _, many in group.taken_for) == len(group.rows) > 0
        if group.label is not None:
            assert (labels[group.rows] == group.label).all()
            assert group.trigger is not None or len(group.rows) >= FEWEST
        if group.trigger is not None:
            assert triggers[group.trigger].label == group.label
            assert np.isin(group.rows, triggers[group.trigger].rows).any()


@pytest.mark.parametrize("count", [3, 10])
def test_links_are_those_of_a_slow_oracle(tmp_path, count):
    labels, views = data(tmp_path, 3)
    rejected = np.random.default_rng(0).choice(100, 60, replace=False)
    rejected.sort()
    features = np.load(views[0][0])[:100].astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    near = [
        [other for other in np.argsort(np.square(features - features[row]).sum(1), kind="stable") if other != row][
            :count
        ]
        for row in range(100)
    ]
    parts = {row: {row} for row in rejected.tolist()}
    for row in rejected.tolist():
        for other in near[row]:
            if row in near[other] and other in parts and parts[row] is not parts[other]:
                joined = parts[row] | parts[other]
                for member in joined:
                    parts[member] = joined
    expected = {tuple(sorted(part)) for part in map(tuple, parts.values()) if len(part) >= FEWEST}
    found = grouped(rejected, others_of(rejected), labels, (), views, answers(labels), count)
    assert {tuple(group.rows.tolist()) for group in found if group.label == 0} == expected
    assert expected
