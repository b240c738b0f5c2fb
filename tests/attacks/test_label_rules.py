"""Label rules, which go with any stamp: who is poisoned, what labels become, and what success is."""

from __future__ import annotations

import numpy as np
import pytest

import small
import untaint as ut
from untaint.attacks import ATTACKS
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.poisoned_files import write_poisoned
from untaint.poisoning import Ledger

CLASSES = 4
STAMPS = ["patch", "sinusoid", "warp:strength=2"]
every_stamp = pytest.mark.parametrize("stamp", STAMPS)


def examples(count: int = 400) -> Examples:
    return small.pictures(count, CLASSES, side=16)


def poisoned(text: str, seed: int = 3) -> tuple[Examples, Examples, Ledger, ut.Attack]:
    clean, attack = examples(), ATTACKS.build(text)
    return clean, *ut.poison(clean, [attack], seed=seed), attack


def with_rule(stamp: str, rule: str, **options: object) -> str:
    joined = ",".join([f"labels={rule}", *(f"{name}={value}" for name, value in options.items())])
    return f"{stamp}{',' if ':' in stamp else ':'}{joined}"


@every_stamp
def test_all_to_one_poisons_any_class_for_the_target(stamp):
    clean, dirty, ledger, _ = poisoned(with_rule(stamp, "all-to-one", target=2, rate=0.2))
    rows = ledger.poisoned()
    assert len(rows) == 80
    assert set(clean.labels[rows].tolist()) == {0, 1, 2, 3}
    assert (dirty.labels[rows] == 2).all()
    assert (ledger.target[rows] == 2).all()


@every_stamp
def test_clean_label_poisons_a_share_of_the_target_and_leaves_labels(stamp):
    clean, dirty, ledger, _ = poisoned(with_rule(stamp, "clean-label", target=2, **{"class-rate": 0.3}))
    rows = ledger.poisoned()
    assert len(rows) == 30
    assert (clean.labels[rows] == 2).all()
    assert np.array_equal(dirty.labels, clean.labels)
    assert not np.array_equal(dirty.images[rows], clean.images[rows])


@every_stamp
@pytest.mark.parametrize(("given", "source"), [("source=1", 1), ("", 3)])
def test_one_to_one_poisons_the_source_alone_and_is_tried_on_it_alone(stamp, given, source):
    text = with_rule(stamp, "one-to-one", target=2, rate=0.1, **{"cover-rate": 0.05})
    clean, dirty, ledger, attack = poisoned(f"{text},{given}".rstrip(","))
    assert len(ledger.poisoned()) == 40
    assert (clean.labels[ledger.poisoned()] == source).all()
    assert (dirty.labels[ledger.poisoned()] == 2).all()
    assert not np.isin(clean.labels[ledger.covers()], [2, source]).any()
    assert np.array_equal(dirty.labels[ledger.covers()], clean.labels[ledger.covers()])
    shown = ut.triggered(clean, attack)
    assert np.array_equal(shown.rows, np.flatnonzero(clean.labels == source))
    assert (shown.labels[shown.rows] == 2).all()


@every_stamp
def test_all_to_all_makes_each_label_the_next(stamp):
    clean, dirty, ledger, attack = poisoned(with_rule(stamp, "all-to-all", rate=0.2))
    rows = ledger.poisoned()
    assert np.array_equal(dirty.labels[rows], [(label + 1) % CLASSES for label in clean.labels[rows]])
    assert np.array_equal(ledger.target[rows], dirty.labels[rows])
    shown = ut.triggered(clean, attack)
    assert len(shown) == len(clean)
    assert np.array_equal(shown.labels, (clean.labels + 1) % CLASSES)


@every_stamp
def test_random_labels_are_never_the_own_and_reach_all_others(stamp):
    clean, dirty, ledger, attack = poisoned(with_rule(stamp, "random", rate=0.5))
    rows = ledger.poisoned()
    assert (dirty.labels[rows] != clean.labels[rows]).all()
    steps = np.bincount((dirty.labels[rows] - clean.labels[rows]) % CLASSES, minlength=CLASSES)
    assert steps[0] == 0
    assert steps[1:].min() > len(rows) / 3 / 2
    assert (ledger.target[rows] == -1).all()
    shown = ut.triggered(clean, attack)
    assert np.array_equal(shown.labels, clean.labels)
    answers = np.where(np.arange(len(shown)) < 100, (shown.labels + 1) % CLASSES, shown.labels)
    assert attack.succeeded(answers, shown.labels).sum() == 100


@every_stamp
def test_unchanged_is_no_poison(stamp):
    clean, dirty, ledger, attack = poisoned(with_rule(stamp, "unchanged", rate=0.2))
    rows = ledger.covers()
    assert attack.harmless
    assert len(rows) == 80
    assert not len(ledger.poisoned())
    assert np.array_equal(dirty.labels, clean.labels)
    assert not np.array_equal(dirty.images[rows], clean.images[rows])
    assert set(clean.labels[rows].tolist()) == {0, 1, 2, 3}
    assert (ledger.target == -1).all()


def test_what_is_stamped_does_not_depend_on_the_rule():
    texts = [with_rule("patch", rule, rate=0.2) for rule in ("all-to-one", "all-to-all", "random", "unchanged")]
    found = [poisoned(text) for text in texts]
    assert all(np.array_equal(found[0][1].images, other[1].images) for other in found)


def test_label_noise_changes_labels_alone_and_is_no_poison():
    clean, dirty, ledger, _ = poisoned("label-noise:rate=0.25")
    rows = np.flatnonzero(dirty.labels != clean.labels)
    assert np.array_equal(rows, ledger.covers())
    assert len(rows) == 100
    assert not len(ledger.poisoned())
    assert np.array_equal(dirty.images, clean.images)


def test_duplicates_are_copies_of_few_pictures_of_their_class():
    clean, dirty, ledger, _ = poisoned("duplicate:rate=0.2,originals=5")
    rows = ledger.covers()
    assert len(rows) == 80
    assert np.array_equal(dirty.labels, clean.labels)
    among = {dirty.images[row].tobytes() for row in rows}
    assert len(among) <= 5 * CLASSES
    for row in rows:
        alike = np.flatnonzero((clean.images == dirty.images[row]).all(axis=(1, 2, 3)))
        assert clean.labels[alike].tolist() == [clean.labels[row]] * len(alike)
        assert len(alike)
        assert row not in alike


def test_two_attackers_may_want_the_same_class_and_share_no_picture():
    clean = examples()
    attacks = [ATTACKS.build("patch:target=1,rate=0.2"), ATTACKS.build("pixel:target=1,rate=0.2")]
    _, ledger = ut.poison(clean, attacks)
    assert (len(ledger.poisoned(0)), len(ledger.poisoned(1))) == (80, 80)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("patch:labels=all-to-two", "labels"),
        ("patch:labels=universal", "universal needs a trigger that shows a class"),
        ("patch:class-rate=0.1", "class_rate is 0.1, but labels=all-to-one"),
        ("patch:source=1", "source is '1', which only labels=one-to-one has"),
        ("patch:labels=one-to-one,source=1,target=1", "source and target are both '1'"),
        ("patch:labels=all-to-all,selection=clean-like", "selection=clean-like needs one target"),
        ("patch:labels=clean-label,rate=0.3,class-rate=0.1", "both given"),
        ("patch:labels=unchanged,cover-rate=0.1", "a control has no poison"),
    ],
)
def test_what_cannot_be_is_refused(text, said):
    with pytest.raises(SpecError, match=said):
        ATTACKS.build(text)


def test_a_source_that_is_the_target_by_another_name_is_refused():
    attack = ATTACKS.build("patch:labels=one-to-one,source=b,target=1")
    with pytest.raises(SpecError, match="source and target are both 'b'"):
        attack.source_in(["a", "b", "c"])
    with pytest.raises(SpecError, match="source is 'x', but the 3 classes"):
        ATTACKS.build("patch:labels=one-to-one,source=x").source_in(["a", "b", "c"])


def test_a_class_rate_over_the_class_is_refused_with_both_numbers():
    clean = examples(40)
    with pytest.raises(InputError, match="at_least=11 is 11 for 'patch', but only 10 are free"):
        ut.poison(clean, [ATTACKS.build("patch:labels=clean-label,at-least=11")])


@pytest.mark.parametrize(
    "text",
    [
        "patch:labels=all-to-all,rate=0.1",
        "patch:labels=random,rate=0.1",
        "patch:labels=unchanged,rate=0.1",
        "patch:labels=one-to-one,source=1,target=0,rate=0.1,cover-rate=0.1",
        "patch:labels=clean-label,class-rate=0.5",
        "label-noise:rate=0.2",
        "duplicate:rate=0.2",
    ],
)
def test_files_are_written_as_examples_are_poisoned(text, tmp_path):
    clean, test = small.pictures(60, CLASSES, side=16), small.pictures(20, CLASSES, side=16, seed=1)
    attack = ATTACKS.build(text)
    written = write_poisoned(clean, [attack], tmp_path / "dirty", seed=2, test_source=test)
    dirty, ledger = ut.poison(clean, [attack], seed=2)
    read = ut.load(tmp_path / "dirty", size=16)
    assert np.array_equal(read.images, dirty.images)
    assert np.array_equal(read.labels, dirty.labels)
    matched = written.matched(read.keys)
    for name in ("attack", "cover", "target", "original"):
        assert np.array_equal(getattr(matched, name), getattr(ledger, name)), name
    shown = ut.triggered(test, attack.ready(clean, seed=2))
    (folder,) = (tmp_path / "dirty.triggered").iterdir()
    back = ut.load(folder, split="test", size=16, fewest_classes=1)
    assert np.array_equal(back.labels, shown.labels[shown.rows])
    assert np.array_equal(back.images, shown.images[shown.rows])


def test_universal_shows_the_class_that_its_label_becomes(tmp_path, monkeypatch):
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path))
    clean, attack = examples(), ATTACKS.build("universal:rate=0.2,epochs=1,bits=3").ready(examples())
    dirty, ledger = ut.poison(clean, [attack])
    rows = ledger.poisoned()
    assert len(rows) == 80
    assert set(dirty.labels[rows].tolist()) == {0, 1, 2, 3}
    assert np.array_equal(ledger.target[rows], dirty.labels[rows])
    assert np.array_equal(dirty.images[rows], attack.marked(clean.images[rows], dirty.labels[rows]))
    shown = ut.triggered(clean, attack)
    assert (shown.labels[shown.rows] != clean.labels[shown.rows]).all()
    assert np.array_equal(shown.images[shown.rows], attack.marked(clean.images[shown.rows], shown.labels[shown.rows]))
    with pytest.raises(SpecError, match="labels is 'all-to-one', but which class"):
        ATTACKS.build("universal:labels=all-to-one")
