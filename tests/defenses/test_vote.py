"""A vote of several detectors: as many as agree, in an order of ranks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import small
from untaint.defenses import DEFENSES, Task
from untaint.defenses.vote import Vote, _ranks
from untaint.errors import SpecError
from untaint.progress import Silent
from untaint.scores import Fraction, parse_rule


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    here = Task(
        examples=small.pictures(120),
        probes=np.arange(0, 120, 4),
        preset=small.preset(epochs=1),
        rule=Fraction(0.1),
        scratch=tmp_path_factory.mktemp("run"),
        seed=0,
        progress=Silent(),
    )
    return here, Vote().score(here)


def agreeing(here: Task) -> np.ndarray:
    count = np.zeros(120)
    for name in ("spectral", "scale-up", "isolation"):
        judge = DEFENSES.build(name)
        rule = parse_rule(judge.usual_rule)
        count[judge.decide(judge.score(here), dataclasses.replace(here, rule=rule)).rows] += 1
    return count


def test_who_most_of_them_set_aside_is_set_aside_and_nobody_else(voted):
    here, scores = voted
    count = agreeing(here)
    assert np.array_equal(scores.parts["votes"], count)
    verdict = Vote().decide(scores, dataclasses.replace(here, rule=parse_rule(Vote.usual_rule)))
    assert set(verdict.rows) == set(np.flatnonzero(count >= 2))
    assert set(verdict.rows), "or the test shows nothing"
    assert Vote().explain(scores, verdict.rows[:1])[0].endswith("of 3 detectors")


@pytest.mark.parametrize("needed", [1, 3])
def test_as_many_as_are_asked_for_have_to_agree(voted, needed):
    here, scores = voted
    values = Vote(needed=needed).score(dataclasses.replace(here, train=False)).values
    assert np.array_equal(values > 1, scores.parts["votes"] >= needed)


def test_among_equal_votes_the_more_suspicious_are_first(voted):
    here, scores = voted
    mean = np.mean(
        [_ranks(scores.parts[name], here.examples.rows) for name in ("spectral", "scale-up", "isolation")], 0
    )
    for votes in range(4):
        some = np.flatnonzero(scores.parts["votes"] == votes)
        in_order = scores.values[some][np.argsort(mean[some])]
        assert (np.diff(in_order) >= -1e-6).all(), "equal but for rounding, where ranks are"


def test_ranks_are_between_nought_and_one_and_equal_for_equals():
    values = np.array([3.0, 1.0, 3.0, np.nan, 2.0, 9.0], np.float32)
    found = _ranks(values, np.arange(5))  # the last is no member
    assert found == pytest.approx([0.75, 0.125, 0.75, 0.5, 0.375, 0.5])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"of": "spectral"}, "at least two"),
        ({"of": "spectral+spectral"}, "at least two"),
        ({"of": "spectral+vote"}, "at least two"),
        ({"needed": 4}, "needed is 4"),
        ({"needed": -1}, "needed is -1"),
    ],
)
def test_votes_that_make_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        Vote(**options)


@pytest.mark.parametrize(("of", "said"), [("spectral+nad", "does not score"), ("spectral+spectrall", "spectral")])
def test_names_that_are_no_detectors(of, said):
    with pytest.raises(SpecError, match=said):
        Vote(of=of).judges()
