"""Triggers that models have learned: made-up watchers and witnesses, of which everything is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untaint.defenses import _learned
from untaint.defenses._company import neighbours
from untaint.defenses._learned import learned

CLASSES, EACH, POISON = 10, 100, 30


def made(taken_for, poison=POISON, classes=CLASSES, seed=0):
    """Classes of 100; the first rows of class 0 lie together, are taught their label, and ``taken_for(n)`` is what the witness says of them."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), EACH)
    features = generator.normal(size=(len(labels), 6)).astype(np.float32)
    features[:poison] += 9
    witness = labels.astype(np.int32)
    witness[:poison] = taken_for(np.arange(poison))
    return labels, features, witness


def view(labels, features, said=None, count=10):
    near = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        near.append((rows, neighbours(features[rows], rows, count)))
    answers = labels.astype(np.int32) if said is None else said
    return SimpleNamespace(out_of_fold=SimpleNamespace(predicted=lambda: answers), near=near)


def many(numbers):
    return 1 + numbers % (CLASSES - 1)


def nobody(labels):
    return np.zeros(len(labels), dtype=bool)


def test_those_whose_company_is_taught_and_taken_for_many_classes_have_a_trigger():
    labels, features, witness = made(many)
    found = learned([view(labels, features)], witness, nobody(labels), labels)
    assert found.dtype == np.float32
    assert np.array_equal(np.flatnonzero(found), np.arange(POISON))
    assert (found[:POISON] == 1).all()


@pytest.mark.parametrize("classes_taken_for", [1, 2, 3])
def test_hard_pictures_that_are_taken_for_a_few_classes_have_none(classes_taken_for):
    labels, features, witness = made(lambda numbers: 1 + numbers % classes_taken_for)
    assert not learned([view(labels, features)], witness, nobody(labels), labels).any()


def test_those_that_a_watcher_is_not_taught_either_have_none():
    labels, features, witness = made(many)
    said = labels.astype(np.int32)
    said[:POISON] = witness[:POISON]
    assert not learned([view(labels, features, said)], witness, nobody(labels), labels).any()
    both = learned([view(labels, features, said), view(labels, features)], witness, nobody(labels), labels)
    assert (both[:POISON] == 1).all()  # one view is enough


def test_what_the_witness_was_trained_on_or_did_not_see_says_nothing():
    labels, features, witness = made(many)
    assert not learned([view(labels, features)], witness, labels == 0, labels).any()
    unseen = np.where(labels == 0, -1, witness).astype(np.int32)
    assert not learned([view(labels, features)], unseen, nobody(labels), labels).any()


def test_few_make_no_trigger():
    labels, features, witness = made(many, poison=_learned.FEWEST - 1)
    assert not learned([view(labels, features, count=5)], witness, nobody(labels), labels).any()


def test_a_class_that_the_witness_does_not_know_by_degrees_has_none():
    """Everywhere in the class some are hard: most of them lie between, and few reach seven of ten by chance."""
    labels, features, witness = made(many, poison=0)
    hard = np.random.default_rng(1).permutation(EACH)[:45]
    witness[hard] = many(np.arange(45))
    near = view(labels, features)
    share = np.isin(near.near[0][1], hard).mean(1)
    assert np.count_nonzero(share >= 0.7) < np.count_nonzero((share >= 0.25) & (share < 0.65)) / 2
    assert np.count_nonzero(share >= 0.6) >= _learned.FEWEST
    assert not learned([near], witness, nobody(labels), labels).any()


def test_where_the_witness_knows_forty_classes_four_are_few():
    """Signs for speed are taken for each other; what is taken for four of forty classes is of a kind."""
    labels, features, witness = made(lambda numbers: 1 + numbers % 5, classes=40)
    assert not learned([view(labels, features)], witness, nobody(labels), labels).any()
    labels, features, witness = made(lambda numbers: 1 + numbers, classes=40)
    assert learned([view(labels, features)], witness, nobody(labels), labels)[:POISON].all()


def test_another_kind_of_hard_picture_in_the_class_of_a_trigger_is_left_out():
    labels, features, witness = made(many)
    features[50:70] -= 9
    witness[50:70] = 3  # known to watchers alone as well, but all for one reason
    found = learned([view(labels, features)], witness, nobody(labels), labels)
    assert np.array_equal(np.flatnonzero(found), np.arange(POISON))


def test_members_that_models_miss_are_found_by_their_company_and_strangers_beside_it_count_in_part():
    labels, features, witness = made(many)
    missed = witness.copy()
    missed[:2] = 0  # the witness says their label by chance
    found = learned([view(labels, features)], missed, nobody(labels), labels)
    assert (found[:POISON] == 1).all()
    said = labels.astype(np.int32)
    said[3:14] = 5  # a third of the trigger is not taught
    found = learned([view(labels, features, said)], witness, nobody(labels), labels)
    assert ((found > 0) & (found < 1)).any()
    assert not found[POISON:].any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), answers=st.integers(1, 9), share=st.floats(0, 1))
def test_the_core_is_that_of_a_slow_oracle(seed, answers, share):
    generator = np.random.default_rng(seed)
    members = np.sort(generator.choice(500, 60, replace=False))
    near = np.array([generator.choice(np.setdiff1d(members, row), 10, replace=False) for row in members])
    taught = generator.random(500) < share
    witness = generator.integers(0, answers, 500).astype(np.int32)
    core = []
    for company in near:
        said = [int(witness[other]) for other in company if taught[other]]
        squares = sum(said.count(one) ** 2 for one in set(said))
        core.append(len(said) >= 6 and len(said) ** 2 / squares >= _learned.MANY)
    different = _learned._different(np.where(taught[near], witness[near], -1))
    assert np.array_equal((taught[near].mean(1) >= _learned.HALF) & (different >= _learned.MANY), core)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_what_is_found_moves_with_its_rows(seed):
    labels, features, witness = made(many, seed=seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    before = learned([view(labels, features)], witness, nobody(labels), labels)
    after = learned([view(labels[order], features[order])], witness[order], nobody(labels), labels[order])
    assert np.array_equal(after, before[order])


def test_classes_without_neighbours_are_left_alone():
    labels = np.array([0, 0, 1, 1])
    rows = np.arange(2)
    alone = SimpleNamespace(
        out_of_fold=SimpleNamespace(predicted=lambda: labels.astype(np.int32)),
        near=[(rows, np.empty((2, 0), np.int64))],
    )
    assert not learned([alone], 1 - labels.astype(np.int32), nobody(labels), labels).any()
