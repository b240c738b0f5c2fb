"""STRIP: the entropy as its formula is written, the trigger that stays sure, and what it does with few probes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import known
from untaint.defenses._perturbed import above_probes
from untaint.defenses.strip import Strip, entropies
from untaint.errors import InputError, SpecError
from untaint.scores import parse_rule

POISONED = np.arange(1, 240, 16)
PROBES = np.setdiff1d(np.arange(0, 240, 5), POISONED)


@pytest.mark.parametrize(("mix", "own"), [("add", 1.0), ("blend", 0.7)])
def test_the_entropy_is_that_of_the_formula(tmp_path, mix, own):
    here = known.task(tmp_path, known.pictures(40), np.arange(10))
    found = entropies(here, Strip(alpha=0.3, mix=mix))  # all nine others, each once
    pixels = here.examples.images.astype(np.float64) / 255
    for row in (0, 3, 25, 39):
        expected = []
        for probe in range(10):
            if probe == row:
                continue
            mixed = torch.tensor(own * pixels[row] + 0.3 * pixels[probe], dtype=torch.float32)[None]
            p = here.network.eval()(mixed).detach().double().softmax(1).numpy()[0]
            expected.append(-sum(x * np.log(x) for x in p if x > 0))
        if row < 10:
            assert found[row] == pytest.approx(np.mean(expected), rel=1e-4)
        else:  # nine of the ten were drawn
            left_out = np.sum(expected) - 9 * found[row]
            assert np.abs(left_out - expected).min() < 1e-4


def test_a_trigger_that_decides_whatever_lies_over_it_is_found_and_few_others(tmp_path):
    here = known.task(tmp_path, known.pictures(poisoned=POISONED), PROBES)
    judge = Strip(overlays=16)
    scores = judge.score(here)
    clean = np.setdiff1d(np.arange(240), POISONED)
    assert scores.values[POISONED].min() > scores.values[clean].max()
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert set(POISONED) <= set(verdict.rows)
    assert np.isin(verdict.rows, clean).sum() < 0.12 * len(clean)
    assert "entropy" in judge.explain(scores, POISONED[:1])[0]


def test_on_clean_pictures_about_the_share_that_was_asked_for_is_set_aside(tmp_path):
    here = known.task(tmp_path, known.pictures(2400), np.arange(0, 2400, 3))
    for share in (0.05, 0.2):
        values = Strip(overlays=4, false_positives=share).score(here).values
        assert abs((np.delete(values, here.probes) > 1).mean() - share) < 0.035


def test_what_is_said_of_a_row_does_not_depend_on_which_others_are_asked_about(tmp_path):
    whole = known.task(tmp_path / "a", known.pictures(120), np.arange(20))
    part = known.task(tmp_path / "b", whole.examples.take(np.r_[:20, 101:120]), np.arange(20))
    one, other = (entropies(each, Strip(overlays=8)) for each in (whole, part))
    assert other[part.examples.rows] == pytest.approx(one[part.examples.rows], rel=1e-5)
    assert np.isnan(other[20:101]).all()


def test_a_second_score_asks_nobody_and_is_the_same(tmp_path):
    here = known.task(tmp_path, known.pictures(60), np.arange(20))
    first = Strip(overlays=4).score(here)
    asked = here.loaded
    second = Strip(overlays=4, false_positives=0.2).score(here)
    assert here.loaded == asked
    assert np.array_equal(second.parts["entropy"], first.parts["entropy"])
    assert not np.array_equal(second.values, first.values)
    others = Strip(overlays=4).score(known.task(here.scratch, here.examples, np.arange(20, 40)))
    assert not np.array_equal(others.parts["entropy"], first.parts["entropy"])


@pytest.mark.parametrize("count", [0, 2])
def test_without_probes_it_says_how_many_it_needs_before_anything_is_trained(tmp_path, count):
    here = known.task(tmp_path, known.pictures(40), np.arange(count))
    with pytest.raises(SpecError, match=f"at least 3 pictures .* has {count}.*--probes"):
        Strip().score(here)
    assert here.loaded == 0


@pytest.mark.parametrize("count", [3, 5])
def test_few_probes_of_one_class_and_one_channel(tmp_path, count):
    grey = known.Examples.of(known.pictures(45).images[:, :1, :5], np.arange(45) % 2)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(40, 2))
    values = Strip(overlays=4).score(known.task(tmp_path, grey, np.arange(0, 2 * count, 2), network)).values
    assert np.isfinite(values).all()
    assert values.any()


def test_a_model_that_always_says_the_same_gives_nothing_away(tmp_path):
    network = known.Backdoored(sure=0.0, trigger=0.0)
    values = Strip(overlays=4).score(known.task(tmp_path, known.pictures(40), np.arange(10), network)).values
    assert not values.any()


def test_answers_that_are_no_numbers(tmp_path):
    network = known.Backdoored()
    network.head.bias.data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        Strip().score(known.task(tmp_path, known.pictures(40), np.arange(10), network))


@pytest.mark.parametrize(
    "options",
    [
        {"overlays": 0},
        {"alpha": 0.0},
        {"alpha": 1.5},
        {"mix": "up"},
        {"false_positives": 0.0},
        {"false_positives": 0.5},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        Strip(**options)


@pytest.mark.parametrize("count", [2, 3, 10, 41])
def test_probes_are_measured_by_the_others(count):
    values = np.random.default_rng(count).normal(size=100).round(1)
    probes = np.random.default_rng(1).choice(100, count, replace=False)
    found = above_probes(values, np.sort(probes), 0.1)
    for row in range(100):
        others = values[np.setdiff1d(probes, [row])]
        middle, level = np.quantile(others, [0.5, 0.9])
        expected = (values[row] - middle) / (level - middle) if level > middle else 0.0
        assert found[row] == pytest.approx(expected, abs=1e-9)
    assert not above_probes(np.ones(5), np.arange(3), 0.1).any()
    assert above_probes(np.arange(5.0), np.array([2]), 0.1)[2] == 0
