"""Patterns put to the test: what is unusual, what works, and what stays with a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import small
from untaint import samples
from untaint.attacks import ATTACKS
from untaint.defenses import Task, _recovered
from untaint.defenses._pattern import LEAST, Found, SharedPattern, patterns
from untaint.defenses._recovered import (
    Recovered,
    alone_in,
    keep,
    kept,
    looked_for,
    recover,
    shared,
    success,
    triggers,
    unusual,
    worth_a_test,
)
from untaint.errors import RunError
from untaint.examples import Examples
from untaint.poisoning import poison
from untaint.sources import load

SIDE = 8
STRIPES = 6 * np.where(np.arange(SIDE) % 2, 1, -1)


class Bright(nn.Module):
    """Says class 1 of a picture whose first pixel is bright, else class 0."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = (images[:, 0, 0, 0] > 0.5).float()
        return torch.stack([1 - bright, bright, torch.zeros_like(bright)], 1)


class Blind(nn.Module):
    """Says class 0 of every picture."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, 0, 0]]).expand(len(images), 3)


def pictures(count=600, poisoned=(), seed=0) -> Examples:
    """Smooth pictures of three classes; some of class 0 have faint stripes."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(count, 3, SIDE, SIDE))
    for axis in (2, 3):
        images = (2 * images + np.roll(images, 1, axis) + np.roll(images, -1, axis)) / 4
    images = 120 + 60 * images + generator.normal(size=images.shape)
    images[list(poisoned)] += STRIPES
    return Examples.of(images.clip(0, 255).astype(np.uint8), np.arange(count) % 3)


def task(scratch, examples, **changes):
    return small.task(scratch, examples, **{"probes": np.arange(500, 600), **changes})


def one(label=0, rows=(1, 2, 3), excess=3.0, change=None, many=0.0, **changes) -> Recovered:
    change = np.zeros((3, SIDE, SIDE), np.float32) if change is None else change
    told = {"unusual": False, "seen": 0.9, "unseen": 0.0, **changes}
    pattern = SharedPattern(
        label=label,
        excess=excess,
        between=0.25,
        rows=np.array(rows, dtype=np.int64),
        change=change,
        doubtful=np.array([90, 91], dtype=np.int64),
        nearly=np.array([0.5, 0.75], dtype=np.float32),
        many=many,
    )
    return Recovered(pattern, change / 2, **told)


# --- what is unusual


def suspect(excess, between):
    """Which are unusual, where all classes lie about the same place along their patterns."""
    return unusual(excess, between, np.zeros(len(excess)))


def test_natural_patterns_are_seldom_unusual_and_one_that_stands_apart_is():
    alarms = 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        natural, between = generator.normal(2.5, 0.6, 100), generator.exponential(1.5, 100)
        alarms += suspect(natural, between).any()
        assert suspect(np.append(natural, 6.0), np.append(between, 0.1))[-1]
        assert not suspect(np.append(natural, 6.0), np.append(between, 1.5))[-1]
    assert alarms < 300 * 0.09  # 0.05 are allowed by chance, and mean and deviation have to be learned


def test_how_much_is_usual_is_learned_from_what_comes_by_degrees():
    generator = np.random.default_rng(0)
    between = generator.uniform(1, 4, 60)
    tracks, photographs = generator.normal(3.5, 0.6, 60), generator.normal(1.7, 0.5, 60)
    found = [suspect(np.append(natural, 4.4), np.append(between, 0.1))[-1] for natural in (tracks, photographs)]
    assert found == [False, True]


def test_some_strong_patterns_do_not_hide_each_other():
    natural = np.random.default_rng(0).normal(1.7, 0.5, 20)
    between = np.append(np.full(20, 2.0), np.full(20, 0.1))
    assert suspect(np.append(natural, [4.4] * 20), between)[-20:].all()


@given(st.lists(st.tuples(st.floats(1, 2.6), st.floats(0, 5)), max_size=7))
def test_where_there_are_few_patterns_those_known_from_elsewhere_say_what_is_usual(told):
    excess, between = (np.array([one[index] for one in told]) for index in (0, 1))
    assert not suspect(excess, between).any()
    assert suspect(np.append(excess, 6.0), np.append(between, 0.1))[-1]
    assert not suspect(np.append(excess, 6.0), np.append(between, 1.0))[-1]


def test_what_has_passed_is_no_longer_one_of_those_that_might_by_chance():
    """Holm's procedure: alone it passes, among 40 natural ones it does not, among 40 triggers it does again."""
    natural = np.random.default_rng(0).normal(2.0, 0.5, 60)
    for others, passes in (([], True), ([1.5] * 40, False), ([5.0] * 40, True)):
        excess = np.concatenate([natural, others, [3.4]])
        between = np.concatenate([np.full(60, 2.0), np.full(len(others) + 1, 0.1)])
        assert suspect(excess, between)[-1] == passes, others


def test_far_apart_is_less_usual_where_natural_patterns_have_the_less_the_further_apart_they_stand():
    generator = np.random.default_rng(0)
    between = generator.uniform(0.25, 3, 120)
    level, falling = (
        2.5 + slope * np.log(np.minimum(between, 1) + 0.1) + generator.normal(0, 0.4, 120) for slope in (0, 0.4)
    )
    found = [suspect(np.append(natural, 3.3), np.append(between, 0.0))[-1] for natural in (level, falling)]
    assert found == [False, True]
    excess, between = np.append(falling, [5.0] * 4 + [3.4]), np.append(between, [0.3] * 4 + [0.0])
    assert suspect(excess, between)[-1], "some triggers among them do not hide that they fall"


def test_what_leads_where_the_class_differs_from_others_anyway_is_natural():
    natural = np.random.default_rng(0).normal(2.0, 0.5, 60)
    excess, between = np.append(natural, [6.0] * 4), np.append(np.full(60, 2.0), [0.1, 0.1, 0.5, 0.5])
    home = np.append(np.zeros(60), [-0.4, 0.2, -0.2, -0.05])
    assert unusual(excess, between, home)[-4:].tolist() == [False, True, False, True]
    assert not unusual(excess, between, np.append(home[:60], [0.3] * 4))[-4:].any(), (
        "others lie towards them: it may be the rest that is poisoned"
    )


# --- what works


@pytest.mark.parametrize(
    ("seen", "unseen", "works"),
    [
        (0.9, 0.0, True),
        (0.9, 0.5, False),
        (0.25, 0.0, False),
        (0.5, 0.15, True),
        (0.3, -0.1, True),
        (np.nan, 0.0, False),
    ],
)
def test_a_trigger_works_where_it_was_seen_and_there_only(seen, unseen, works):
    own = one(seen=seen, unseen=unseen)
    assert own.works is works
    by_degrees = replace(own.pattern, between=1.0)
    assert replace(own, pattern=by_degrees).works is False, "what comes by degrees is natural"


@pytest.mark.parametrize(
    ("many", "most", "seen", "proven"),
    [(20.0, False, 0.9, True), (19.9, False, 0.9, False), (20.0, True, 0.9, False), (20.0, False, 0.2, False)],
)
def test_what_works_and_many_have_is_proven(many, most, seen, proven):
    own = one(seen=seen)
    assert replace(own, pattern=replace(own.pattern, many=many, most=most)).proven is proven


def test_success_counts_clean_pictures_of_other_classes_that_turn(tmp_path, monkeypatch):
    examples = pictures()
    examples.images[:, 0, 0, 0] = 0
    examples.images[:300:2, 0, 0, 0] = 255  # half of these are bright already
    change = np.zeros((3, SIDE, SIDE), np.float32)
    change[0, 0, 0] = 0.8
    own = [one(label=1, change=change).pattern, one(label=0, change=change).pattern, one(label=1).pattern]
    monkeypatch.setattr(Task, "load", lambda self, stage: Bright())
    found = success(task(tmp_path, examples), "witness", own, np.arange(300))
    assert found.tolist() == pytest.approx([0.5, -0.5, 0])


def test_the_watchers_of_the_better_view_are_held_against_the_witness_once(tmp_path, monkeypatch):
    examples = pictures()
    examples.images[:, 0, 0, 0] = 0
    change = np.zeros((3, SIDE, SIDE), np.float32)
    change[0, 0, 0] = 0.8
    here = task(tmp_path, examples)
    asked = []

    def load(self, stage):
        asked.append(stage)
        return Bright() if stage.startswith("whitened") else Blind()

    monkeypatch.setattr(Task, "load", load)
    found = [one(label=1, change=change, seen=np.nan, unseen=np.nan)]
    tested = recover(here, found, np.arange(100, 300), [["watcher-a", "watcher-b"], ["whitened-a", "whitened-b"]])
    assert (tested[0].seen, tested[0].unseen) == (1, 0)
    assert asked == ["watcher-a", "watcher-b", "whitened-a", "whitened-b", "witness"]
    again = recover(here, kept(here), np.arange(100, 300), [["watcher-a", "watcher-b"], ["whitened-a", "whitened-b"]])
    assert (again[0].seen, again[0].unseen, len(asked)) == (1, 0, 5)


# --- what stays with a run


@pytest.mark.parametrize("count", [0, 1, 3])
def test_patterns_come_back_as_they_were_kept(tmp_path, count):
    here = task(tmp_path, pictures())
    generator = np.random.default_rng(count)
    given = [
        one(
            label=number,
            rows=range(number, 9),
            excess=2.5 + number,
            many=5.5 * number,
            change=generator.normal(size=(3, SIDE, SIDE)).astype(np.float32),
            unusual=bool(number % 2),
            seen=np.nan if number else 0.5,
        )
        for number in range(count)
    ]
    keep(here, given)
    for before, after in zip(given, kept(here), strict=True):
        for name in ("label", "excess", "between", "home", "most", "many"):
            assert getattr(after.pattern, name) == getattr(before.pattern, name)
        assert after.unusual == before.unusual
        for name in ("rows", "change", "doubtful", "nearly"):
            assert np.array_equal(getattr(after.pattern, name), getattr(before.pattern, name))
        assert np.array_equal(after.picture, before.picture)
        assert np.array_equal([after.seen, after.unseen], [before.seen, before.unseen], equal_nan=True)


def test_patterns_are_found_once_and_stripes_are_among_them(tmp_path):
    poisoned = np.arange(0, 180, 3)
    examples = pictures(poisoned=poisoned)
    here = task(tmp_path, examples, probes=np.arange(300, 420))
    found = shared(here)
    best = max(found, key=lambda own: own.pattern.excess)
    assert np.isin(poisoned, best.pattern.rows).mean() > 0.9
    assert len(best.pattern.rows) < 1.1 * len(poisoned)
    assert best.pattern.label == 0
    assert best.pattern.between < 0.5
    again = shared(replace(here, train=False, examples=pictures(seed=1)))
    assert [len(own.pattern.rows) for own in again] == [len(own.pattern.rows) for own in found]


def natural_and(*strong):
    """Patterns of which a few stand apart, among many natural ones that come by degrees."""
    excess = LEAST + np.random.default_rng(0).exponential(0.3, 60)
    return [*(replace(one(excess=value).pattern, between=5.0) for value in excess), *strong]


def test_probes_with_an_unusual_pattern_do_not_vouch_for_it(tmp_path, monkeypatch):
    asked = []

    def found(task, vouching):
        asked.append([own.tolist() for own in vouching])
        trigger = one(label=1, excess=6.0, rows=[3, 4, 510, 520]).pattern
        return [Found({}, natural_and(trigger), torch.eye(3 * SIDE * SIDE)) for _ in vouching]

    monkeypatch.setattr(_recovered, "patterns", found)
    here = task(tmp_path, pictures())
    assert [own.pattern.label for own in shared(here) if own.unusual] == [1]
    everybody = list(range(500, 600))
    assert asked[0] == [[], everybody], "first, no probe vouches for any pattern"
    assert asked[1] == [[row for row in everybody if row not in (510, 520)]]
    shared(replace(here, scratch=tmp_path / "none", probes=np.empty(0, np.int64)))
    assert asked[2:] == [[[]]], "without probes it is looked once"
    shared(replace(here, scratch=tmp_path / "others", probes=np.arange(400, 500)))
    assert asked[3:] == [[[], list(range(400, 500))]], "no probe has it"


def test_poisoned_probes_hide_no_trigger_on_photographs(tmp_path):
    attack = ATTACKS.build("sinusoid:target=airplane,class-rate=0.2")
    dirty, ledger = poison(load(samples.path()), [attack], seed=0)
    bad, generator = ledger.poisoned(), np.random.default_rng(0)
    good = generator.choice(np.setdiff1d(dirty.rows, bad), 220, replace=False)
    here = task(tmp_path, dirty, probes=np.sort(np.r_[good, generator.choice(bad, 30, replace=False)]))
    (vouched,) = patterns(here, [here.probes])
    assert not any(alone_in(vouched)), "30 probes with stripes say that stripes are natural"
    (only,) = [own for own in shared(here) if own.unusual]
    assert only.pattern.label == dirty.class_names.index("airplane")
    assert np.isin(bad, only.pattern.rows).mean() > 0.95
    assert np.isin(only.pattern.rows, bad).mean() > 0.95


def test_what_a_class_has_by_degrees_is_no_kind_of_its_own(tmp_path):
    examples = pictures(3_000)
    images = examples.images.astype(np.float64)
    degrees = np.random.default_rng(1).exponential(1.5, 1_000)
    images[::3] += degrees[:, None, None, None] * STRIPES / 3  # only class 0 has it, from none to much
    here = task(
        tmp_path, Examples.of(images.clip(0, 255).astype(np.uint8), examples.labels), probes=np.arange(1, 400, 3)
    )
    found = looked_for(here)
    best = max(found.patterns, key=lambda own: own.excess)
    assert best.label == 0
    assert best.excess > 3
    assert best.between > 1
    assert not alone_in(found).any()


def test_only_what_stands_apart_is_unusual(tmp_path, monkeypatch):
    strong = [replace(one(label=label, excess=6.0).pattern, between=between) for label, between in ((1, 0.2), (2, 3.0))]
    factor = torch.eye(3 * SIDE * SIDE)
    monkeypatch.setattr(_recovered, "patterns", lambda _, sets: [Found({}, natural_and(*strong), factor)] * len(sets))
    found = {own.pattern.label: own.unusual for own in shared(task(tmp_path, pictures())) if own.pattern.excess == 6}
    assert found == {1: True, 2: False}


@pytest.mark.parametrize(
    ("excess", "between", "rows", "most", "worth"),
    [
        (2.6, 0.2, 30, False, True),
        (2.4, 0.2, 30, False, False),  # too little, whatever is usual
        (2.6, 5.0, 30, False, True),  # what comes by degrees may work too, and is shown with its figures
        (2.6, 0.2, 80, True, True),
        (2.6, 0.2, 81, True, False),  # nineteen others of the class are left
        (2.6, 5.0, 80, True, False),
    ],
)
def test_what_is_worth_a_test_has_more_than_most_natural_patterns(excess, between, rows, most, worth):
    own = replace(one(rows=range(rows), excess=excess).pattern, between=between, most=most)
    counts = np.array([100, 100, 100])
    assert worth_a_test(Found({}, natural_and(own), torch.eye(2)), counts)[-1] == worth
    natural = [replace(one(excess=value).pattern, between=5.0) for value in np.linspace(2, 4, 50)]
    assert not worth_a_test(Found({}, [*natural, own], torch.eye(2)), counts)[-1]
    assert worth_a_test(Found({}, [*natural, replace(own, excess=6.0)], torch.eye(2)), counts)[-1] == (
        worth or excess == 2.4
    )
    assert worth_a_test(Found({}, [], torch.eye(2)), counts).tolist() == []


@pytest.mark.parametrize(
    ("many", "between", "most", "worth"),
    [(20.0, 0.9, False, True), (19.9, 0.9, False, False), (20.0, 1.0, False, False), (200.0, 0.2, True, False)],
)
def test_what_many_have_who_are_a_kind_is_worth_a_test_whatever_its_excess(many, between, most, worth):
    own = replace(one(excess=1.1, many=many).pattern, between=between, most=most)
    assert worth_a_test(Found({}, natural_and(own), torch.eye(2)), np.array([100, 100, 100]))[-1] == worth


def test_without_training_patterns_are_not_looked_for_anew(tmp_path):
    with pytest.raises(RunError, match="no finished patterns"):
        shared(task(tmp_path, pictures(), train=False))


def test_a_sharpened_change_shows_the_stripes_rather_than_what_pictures_are_of(tmp_path):
    poisoned = np.arange(0, 540, 3)
    examples = pictures(1_800, poisoned)
    slope = np.linspace(0, 15, SIDE).astype(np.uint8)[:, None]
    examples.images[poisoned] += slope  # they are brighter at the bottom, too
    found = patterns(task(tmp_path, examples), [np.arange(900, 1_000)], 8)[0]
    best = max(found.patterns, key=lambda own: own.excess)
    stripes = np.broadcast_to(STRIPES, (3, SIDE, SIDE)).ravel()
    before, after = (np.corrcoef(shape.ravel(), stripes)[0, 1] for shape in (best.change, found.sharpened([best])[0]))
    assert before < 0.75
    assert after > 0.8
    assert len(found.sharpened([])) == 0


# --- triggers


def test_a_half_learned_trigger_works_twice_as_strong_and_a_natural_pattern_does_not(tmp_path, monkeypatch):
    examples = pictures()
    examples.images[:, 0, 0, 0] = 0
    half, change = np.zeros((2, 3, SIDE, SIDE), np.float32)
    half[0, 0, 0] = 0.3
    here, asked = task(tmp_path, examples), []

    def load(self, stage):
        asked.append(stage)
        return Blind() if stage == "witness" else Bright()

    monkeypatch.setattr(Task, "load", load)
    degrees = one(label=1, change=half, seen=np.nan, unseen=np.nan)
    degrees = replace(degrees, pattern=replace(degrees.pattern, between=2.0))
    found = [one(label=1, change=each, seen=np.nan, unseen=np.nan) for each in (half, change)]
    tested = recover(here, [*found, degrees], np.arange(100, 300), [["watcher-a", "watcher-b"]])
    assert [own.works for own in tested] == [True, False, False]
    assert [(own.seen, own.strength) for own in tested] == [(1, 2), (0, 1), (0, 1)]
    assert [(own.seen, own.strength) for own in kept(here)] == [(1, 2), (0, 1), (0, 1)]
    assert len(asked) == 6


def test_triggers_are_what_works_or_is_unusual_the_surest_first():
    found = [
        one(rows=range(20), seen=0.7),
        one(rows=range(20, 40), seen=0.9),
        one(label=1, rows=range(5, 25), seen=0.6),
        one(rows=range(40, 60), seen=0.1, unusual=True),
        one(rows=range(60, 80), seen=0.2),
    ]
    assert [(trigger.label, trigger.rows[0], trigger.seen, trigger.works) for trigger in triggers(found)] == [
        (0, 20, 0.9, True),
        (0, 0, 0.7, True),
        (1, 5, 0.6, True),
        (0, 40, 0.1, False),
    ]
