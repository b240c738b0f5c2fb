"""SCALE-UP: the share written out, what stays when all is white, and by which probes a class is measured."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import known
from untaint.defenses.scale_up import ScaleUp, consistencies
from untaint.errors import InputError, SpecError
from untaint.scores import parse_rule

POISONED = np.arange(1, 240, 16)
PROBES = np.setdiff1d(np.arange(0, 240, 3), POISONED)


def network() -> known.Backdoored:
    """One that says 3 of whatever is all white."""
    made = known.Backdoored()
    made.head.bias.data[3] = 0.5
    return made


def test_the_consistency_is_that_of_the_formula(tmp_path):
    here = known.task(tmp_path, known.pictures(40, np.array([5])), [], network())
    found = consistencies(here, range(3, 12, 2))
    pixels = here.examples.images.astype(np.float64) / 255
    asked = [3, 5, 7, 9, 11]
    for row in range(40):
        said = [
            int(here.network.eval()(torch.tensor(np.minimum(pixels[row] * n, 1), dtype=torch.float32)[None]).argmax())
            for n in asked
        ]
        assert found[row] == pytest.approx(np.mean([other == here.examples.labels[row] for other in said]))
    assert len(np.unique(found)) > 1


def test_what_stays_when_all_is_white_is_found_and_a_consistent_class_is_not(tmp_path):
    here = known.task(tmp_path, known.pictures(poisoned=POISONED), PROBES, network())
    judge = ScaleUp(by="class")
    scores = judge.score(here)
    assert (scores.parts["consistency"][POISONED] == 1).all()
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert set(POISONED) <= set(verdict.rows)
    white = np.flatnonzero(here.examples.labels == 3)
    assert scores.parts["consistency"][white].mean() > 0.95
    assert not np.isin(verdict.rows, white).any(), "its probes are as consistent"
    assert "100% of its brighter copies" in judge.explain(scores, POISONED[:1])[0]


def test_without_probes_the_consistency_is_the_score(tmp_path):
    here = known.task(tmp_path, known.pictures(poisoned=POISONED), [], network())
    judge = ScaleUp()
    scores = judge.score(here)
    assert np.array_equal(scores.values, scores.parts["consistency"])
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert set(POISONED) <= set(verdict.rows)


def test_a_class_with_few_probes_is_measured_by_all_of_them(tmp_path):
    examples = known.pictures(poisoned=POISONED)
    by_class = [np.flatnonzero(examples.labels == label) for label in range(4)]
    probes = np.sort(np.concatenate([by_class[1][-20:], by_class[2][-4:], by_class[3][-30:]]))
    values = ScaleUp(by="class").score(known.task(tmp_path, examples, probes, network())).values
    same = consistencies(known.task(tmp_path, examples, [], network()), range(3, 12, 2))

    def measured(rows, by):
        return (same[rows] - same[by].mean()) / max(same[by].std(ddof=1), 0.1)

    for label, by in ((0, probes), (1, by_class[1][-20:]), (2, probes), (3, by_class[3][-30:])):
        rows = np.setdiff1d(by_class[label], probes)
        assert values[rows] == pytest.approx(measured(rows, by), abs=1e-5)
    values_by_all = ScaleUp().score(known.task(tmp_path, examples, probes, network())).values
    others = np.setdiff1d(np.arange(240), probes)
    assert values_by_all[others] == pytest.approx(measured(others, probes), abs=1e-5)
    one = by_class[1][-1]
    assert values[one] == pytest.approx(measured(one, by_class[1][-20:-1]), abs=1e-5), "a probe by the others"


def test_a_second_score_asks_nobody_and_the_factors_go_up_to_the_largest(tmp_path):
    here = known.task(tmp_path, known.pictures(60), np.arange(20), network())
    first = ScaleUp(largest=3).score(here)
    asked = here.loaded
    assert np.array_equal(ScaleUp(largest=3).score(here).values, first.values)
    assert here.loaded == asked
    assert set(np.unique(first.parts["consistency"])) <= {0, 1}
    assert set((ScaleUp(largest=6).score(here).parts["consistency"] * 2).tolist()) <= {0, 1, 2}


def test_one_probe_grey_pictures_that_are_not_square_and_answers_that_never_change(tmp_path):
    grey = known.Examples.of(known.pictures(45).images[:, :1, :5], np.arange(45) % 2)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(40, 2))
    assert np.isfinite(ScaleUp().score(known.task(tmp_path, grey, [3], flat)).values).all()
    same = known.task(tmp_path / "b", known.pictures(40), np.arange(20), known.Backdoored(sure=0.0, trigger=0.0))
    assert not ScaleUp(by="class").score(same).values.any()


def test_answers_that_are_no_numbers(tmp_path):
    made = network()
    made.head.bias.data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        ScaleUp().score(known.task(tmp_path, known.pictures(40), np.arange(10), made))


@pytest.mark.parametrize("options", [{"largest": 2}, {"largest": 256}, {"by": "me"}])
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        ScaleUp(**options)
