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


@pytest.mark.parametrize(("poison", "known"), [(7, False), (8, True)])
def test_few_make_no_trigger(poison, known):
    labels, features, witness = made(many, poison=poison)
    found = learned([view(labels, features, count=5)], witness, nobody(labels), labels)
    assert np.array_equal(np.flatnonzero(found), np.arange(poison if known else 0))


def drawn(company, answers, classes=CLASSES):
    """What is found in class 0 of 100 rows: ``answers`` of the witness to rows that are taught, ``company`` of rows; the others keep that of the last 10."""
    labels = np.repeat(np.arange(classes), EACH)
    witness = labels.astype(np.int32)
    for row, answer in answers.items():
        witness[row] = answer
    near = np.tile(np.arange(EACH - 10, EACH), (EACH, 1))
    for row, others in company.items():
        near[row] = others
    seen = SimpleNamespace(predicted=lambda: labels.astype(np.int32))
    one = SimpleNamespace(out_of_fold=seen, near=[(np.arange(EACH), near)])
    return learned([one], witness, nobody(labels), labels)[:EACH]


TRIGGER = {row: 1 + row % 9 for row in range(11)}  # eleven rows that are taught, each in the company of the ten others
TOGETHER = {row: [other for other in TRIGGER if other != row] for row in TRIGGER}
UNTAUGHT = list(range(90, 100))


@pytest.mark.parametrize(("between", "known"), [(22, True), (23, False)])
def test_more_than_twice_as_many_between_are_hard_pictures_by_degrees(between, known):
    company = TOGETHER | {row: list(range(5)) + UNTAUGHT[:5] for row in range(20, 20 + between)}
    assert np.array_equal(np.flatnonzero(drawn(company, TRIGGER) == 1), list(TRIGGER) if known else [])


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ([1, 1, 1, 1, 2, 2, 3, 3, 4, 4], False),  # 3.6 classes in effect: enough around a row, and not for all of them
        ([1, 1, 1, 2, 2, 2, 3, 3, 4, 4], False),  # 3.8
        ([1, 1, 2, 2, 3, 3, 4, 4, 5, 5], True),
    ],
)
def test_where_there_are_six_classes_four_of_them_must_be_said(said, known):
    answers = dict(enumerate([*said, *said]))
    company = {row: list(range(10, 20)) if row < 10 else list(range(10)) for row in range(20)}
    assert np.array_equal(np.flatnonzero(drawn(company, answers, classes=6)), np.arange(20 if known else 0))


def test_those_two_steps_from_the_core_have_it_and_no_further():
    hard = dict.fromkeys(range(30, 40), 3)  # taught, and all taken for one class
    chain = {
        20: [*range(30, 37), 0, 90, 91],
        21: [*range(30, 38), 20, 90],
        22: [*range(30, 38), 21, 90],
    }
    found = drawn(TOGETHER | chain, TRIGGER | hard)
    assert np.array_equal(np.flatnonzero(found == 1), [*TRIGGER, 20, 21])
    assert found[22] == 0


def test_a_class_that_the_witness_does_not_know_by_degrees_has_none():
    """Everywhere in the class some are hard: most of them lie between, and few reach seven of ten by chance, of which none keep together."""
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
