"""Poisoning in memory: who, what, and what the ledger says of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untaint.attacks import ATTACKS, Attack
from untaint.errors import InputError, RunError, SpecError
from untaint.examples import Examples
from untaint.poisoning import Ledger, attack_names, poison, triggered

TEXTS = [
    "patch:target=0,rate=0.05",
    "pixel:target=1",
    "blend:target=1,rate=0.03",
    "blend:pattern=lattice",
    "sinusoid:target=4",
]


def examples_of(count: int = 500, side: int = 32) -> Examples:
    images = np.random.default_rng(0).integers(0, 250, (count, 3, side, side), dtype=np.uint8)
    return Examples.of(images, np.arange(count) % 5, class_names=["ant", "bee", "cat", "dog", "eel"])


def build(*texts: str) -> list[Attack]:
    return [ATTACKS.build(text) for text in texts]


def test_poisoned_rows_are_stamped_and_relabelled_and_all_others_left_alone():
    examples = examples_of()
    images, labels = examples.images.copy(), examples.labels.copy()
    poisoned, ledger = poison(examples, build(*TEXTS), seed=3)
    assert [len(ledger.poisoned(i)) for i in range(5)] == [25, 5, 15, 5, 10]
    for number, text in enumerate(TEXTS):
        rows, attack = ledger.poisoned(number), ATTACKS.build(text)
        assert np.array_equal(poisoned.images[rows], attack.stamp(images[rows], rows))
        assert (poisoned.labels[rows] == attack.target_in(examples.class_names)).all()
        assert (ledger.target[rows] == poisoned.labels[rows]).all()
    touched = (poisoned.images != images).any(axis=(1, 2, 3))
    assert np.array_equal(np.flatnonzero(touched), ledger.poisoned())
    assert np.array_equal(poisoned.labels[ledger.clean()], labels[ledger.clean()])
    assert np.array_equal(ledger.original, labels)
    assert (ledger.target[ledger.clean()] == -1).all()
    assert (ledger.original[ledger.poisoned(4)] == 4).all(), "clean-label poison keeps its label"
    assert np.array_equal(examples.images, images)
    assert np.array_equal(examples.labels, labels)
    assert poisoned.keys == examples.keys
    assert repr(poisoned) == repr(examples), "a defence is not told what was done"


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**40))
def test_no_picture_is_attacked_twice_and_spared_and_foreign_rows_never(data, seed):
    examples = examples_of(400, side=8)
    members = np.array(sorted(data.draw(st.sets(st.integers(0, 399), min_size=250))))
    spare = np.array(data.draw(st.lists(st.integers(0, 399), max_size=60, unique=True)), dtype=np.int64)
    attacks = build("patch:rate=0.2", "pixel:target=1,rate=0.1,cover-rate=0.1", "sinusoid:target=2,class-rate=0.1")
    subset = examples.take(members)
    poisoned, ledger = poison(subset, attacks, seed=seed, spare=spare)
    share = [int(np.floor(round(rate * len(members), 6) + 0.5)) for rate in (0.2, 0.1)]
    assert [len(ledger.poisoned(0)), len(ledger.poisoned(1)), len(ledger.covers(1))] == [*share, share[1]]
    touched = np.flatnonzero(ledger.attack >= 0)
    assert np.isin(touched, members).all()
    assert not np.isin(touched, spare).any()
    assert len(touched) + len(ledger.clean()) == 400
    assert np.array_equal(poisoned.rows, members)
    assert np.array_equal(poisoned.images[ledger.clean()], examples.images[ledger.clean()])


def test_the_same_rows_for_the_same_seed_whatever_comes_later():
    examples = examples_of()
    alone = poison(examples, build(TEXTS[0]), seed=1)[1]
    with_others = poison(examples, build(TEXTS[0], "pixel", "patch:target=2"), seed=1)[1]
    with_covers = poison(examples, build(TEXTS[0] + ",cover-rate=0.1"), seed=1)[1]
    for other in (with_others, with_covers):
        assert np.array_equal(alone.poisoned(0), other.poisoned(0))
    assert not np.array_equal(alone.poisoned(0), poison(examples, build(TEXTS[0]), seed=2)[1].poisoned(0))


def test_covers_are_stamped_and_keep_their_labels():
    examples = examples_of()
    poisoned, ledger = poison(examples, build("patch:target=bee,cover-rate=0.1"))
    covers = ledger.covers(0)
    assert len(covers) == 50
    assert (poisoned.images[covers] != examples.images[covers]).any(axis=(1, 2, 3)).all()
    assert np.array_equal(poisoned.labels[covers], examples.labels[covers])
    assert not np.isin(covers, np.concatenate([ledger.poisoned(), ledger.clean()])).any()
    assert (ledger.target[covers] == 1).all()


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_share_of_each_attacks_pictures_gets_the_next_ones_trigger_too(share):
    examples = examples_of()
    alone, before = poison(examples, build(*TEXTS), seed=3)
    found, ledger = poison(examples, build(*TEXTS), seed=3, overlap=share)
    assert np.array_equal(ledger.attack, before.attack)
    assert np.array_equal(found.labels, alone.labels)
    for number in range(5):
        rows, following = ledger.poisoned(number), ATTACKS.build(TEXTS[(number + 1) % 5])
        both = rows[(found.images[rows] != alone.images[rows]).any(axis=(1, 2, 3))]
        hidden = number == 0  # the pixel lies under the patch
        assert len(both) == (0 if hidden else round(share * len(rows)))
        assert np.array_equal(found.images[both], following.stamp(alone.images[both], both))
    assert np.array_equal(found.images[ledger.clean()], examples.images[ledger.clean()])


def test_one_attack_alone_overlaps_with_none_and_other_shares_are_refused():
    examples = examples_of()
    for overlap in (0.0, 1.0):
        found, _ = poison(examples, build(TEXTS[0]), overlap=overlap)
        assert np.array_equal(found.images, poison(examples, build(TEXTS[0]))[0].images)
    with pytest.raises(SpecError, match="overlap is"):
        poison(examples, build(*TEXTS), overlap=1.5)


def test_no_attack_changes_nothing():
    examples = examples_of(20)
    poisoned, ledger = poison(examples, [])
    assert poisoned.fingerprint == examples.fingerprint
    assert repr(ledger) == "<ledger of 20 rows: none poisoned>"


def test_the_same_attack_twice_is_refused():
    with pytest.raises(SpecError, match="'pixel:target=1' is given twice"):
        poison(examples_of(), build("pixel:target=1", "pixel:target=bee", "pixel:target=1"))


def test_triggered_is_the_test_set_outside_the_target_class():
    examples, attack = examples_of(50).take(np.arange(10, 50)), ATTACKS.build("patch:target=dog")
    shown = triggered(examples, attack)
    assert np.array_equal(shown.rows, examples.rows[examples.labels[examples.rows] != 3])
    assert (shown.labels[shown.rows] == 3).all()
    assert np.array_equal(shown.images[shown.rows], attack.trigger(examples.images[shown.rows], shown.rows))
    assert (examples.labels[:5] == np.arange(5)).all()
    with pytest.raises(InputError, match="all 8 test pictures are of the target class 'dog'"):
        triggered(examples.take(examples.rows[examples.labels[examples.rows] == 3]), attack)


def test_the_ledger_survives_its_file(tmp_path):
    _, ledger = poison(examples_of(), build(*TEXTS, "patch:target=2,cover-rate=0.02"))
    ledger.save(tmp_path / "ledger.parquet")
    loaded = Ledger.load(tmp_path / "ledger.parquet")
    assert loaded.attacks == ledger.attacks
    assert [ATTACKS.build(text) for text in loaded.attacks[:5]] == build(*TEXTS)
    assert list(loaded.keys) == list(ledger.keys)
    for field in ("attack", "cover", "target", "original"):
        before, after = getattr(ledger, field), getattr(loaded, field)
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)
    assert repr(loaded) == repr(ledger)


def test_a_ledger_finds_its_rows_by_key_in_another_order():
    _, ledger = poison(examples_of(100), build("patch:rate=0.1"))
    turned = ledger.matched(ledger.keys[::-1])
    assert np.array_equal(turned.attack, ledger.attack[::-1])
    assert np.array_equal(turned.original, ledger.original[::-1])
    with pytest.raises(InputError, match=r"1 of 2 pictures are not in the ledger, first 'nobody'"):
        ledger.matched(["001" if "001" in ledger.keys else ledger.keys[1], "nobody"])


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "text").write_text("nothing")
    for name in ("text", "missing"):
        with pytest.raises(RunError, match="cannot be read as a ledger"):
            Ledger.load(tmp_path / name)


def test_names_for_folders_are_short_and_unique():
    assert attack_names(build("patch", "pixel", "patch:target=2", "patch:target=3")) == [
        "patch",
        "pixel",
        "patch-2",
        "patch-3",
    ]


@dataclass(frozen=True, kw_only=True)
class Broken(Attack):
    """Gives what it is told to."""

    what: str = "nothing"

    def stamp(self, images, rows):
        images[:] = images if self.what == "nothing" else 0  # writing into what was given must reach nobody
        return {"nothing": images, "float": images / 255, "fewer": images[1:], "none": None}[self.what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "changed no pixel of 50"),
        ("float", "gave float64"),
        ("fewer", "gave uint8"),
        ("none", "gave NoneType"),
    ],
)
def test_a_broken_attack_is_refused_and_reaches_no_picture(what, message):
    examples = examples_of()
    before = examples.images.copy()
    with pytest.raises(InputError, match=message):
        poison(examples, [Broken(what=what, rate=0.1)])
    assert np.array_equal(examples.images, before)


@dataclass(frozen=True, kw_only=True)
class Learned(Attack):
    """Paints the mean colour of the data set, which it has to be shown first."""

    colour: float | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    def ready(self, examples, *, seed=0, progress=None):
        if self.colour is not None:
            return self
        copy = dataclasses.replace(self)
        object.__setattr__(copy, "colour", float(examples.images.mean()))
        return copy

    def stamp(self, images, rows):
        return np.full_like(images, round(self.colour))


def test_an_attack_computed_from_the_data_is_made_ready_first():
    examples = examples_of()
    poisoned, ledger = poison(examples, [Learned(rate=0.1)])
    assert (poisoned.images[ledger.poisoned()] == round(float(examples.images.mean()))).all()
