"""Cognitive distillation: masks as found one picture at a time by a loop of its own, and the trigger that a small one keeps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import known
from untaint import rng
from untaint.defenses import cognitive_distillation
from untaint.defenses._perturbed import above_probes_by_deviation
from untaint.defenses.cognitive_distillation import CognitiveDistillation, mask_norms
from untaint.errors import InputError, SpecError
from untaint.scores import parse_rule

POISONED = np.arange(1, 240, 16)
PROBES = np.setdiff1d(np.arange(0, 240, 5), POISONED)


def one_at_a_time(here, row: int, options: CognitiveDistillation) -> float:
    """Adam and the loss, written out for one picture."""
    network = here.network.double().eval()
    picture = torch.tensor(here.examples.images[row][None] / 255)
    logits = network(picture).detach()
    weights = torch.ones(1, 1, known.SIDE, known.SIDE, dtype=torch.float64, requires_grad=True)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    drawn = rng.uniform(here.seed, "defenses/cognitive-distillation", 0, np.array([row]), options.steps * 3)
    for step, colour in enumerate(drawn.reshape(options.steps, 3), 1):
        mask = (torch.tanh(weights) + 1) / 2
        filled = torch.tensor(colour)[None, :, None, None] * (1 - mask)
        rough = sum(
            (mask[0, 0, y, x] - mask[0, 0, y + down, x + 1 - down]) ** 2
            for down in (0, 1)
            for y in range(8 - down)
            for x in range(7 + down)
        )
        given = network(picture * mask + filled)
        if options.keep == "logits":
            apart = (given - logits).abs().mean()
        else:
            apart = (given.softmax(1) - logits.softmax(1)).abs().sum()
        loss = apart + options.gamma * 16 * mask.sum() + options.beta * rough / 64  # 8x8 is a sixteenth of 32x32
        (gradient,) = torch.autograd.grad(loss, weights)
        first, second = 0.1 * first + 0.9 * gradient, 0.1 * second + 0.9 * gradient**2
        best = first / (1 - 0.1**step) / ((second / (1 - 0.1**step)).sqrt() + 1e-8)
        weights = (weights - options.learning_rate * best).detach().requires_grad_()
    return float(((torch.tanh(weights.detach()) + 1) / 2).mean())


@pytest.mark.parametrize("keep", ["probabilities", "logits"])
def test_masks_are_those_of_the_formula(tmp_path, keep):
    here = known.task(tmp_path, known.pictures(40, np.array([5])), np.arange(10))
    options = CognitiveDistillation(steps=6, gamma=0.002, beta=10.0, keep=keep)
    found = mask_norms(here, options)
    for row in (0, 5, 17):
        assert found[row] == pytest.approx(one_at_a_time(here, row, options), abs=2e-3)


@pytest.mark.parametrize("keep", ["probabilities", "logits"])
def test_a_trigger_in_a_corner_needs_a_smaller_mask_than_what_a_picture_shows(tmp_path, keep):
    here = known.task(tmp_path, known.pictures(poisoned=POISONED), PROBES)
    judge = CognitiveDistillation(steps=60, beta=1.0, gamma=0.0005, keep=keep)
    scores = judge.score(here)
    clean = np.setdiff1d(np.arange(240), POISONED)
    assert scores.values[POISONED].min() > np.quantile(scores.values[clean], 0.95)
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert set(POISONED) <= set(verdict.rows)
    assert np.isin(verdict.rows, clean).sum() < 0.25 * len(clean), "a deviation below the mean: a sixth"
    assert "all that the model needs" in judge.explain(scores, POISONED[:1])[0]
    alone = known.task(tmp_path / "b", here.examples, [])
    assert np.corrcoef(scores.values, judge.score(alone).values)[0, 1] > 0.999, "others stand in for the probes"


def test_pictures_do_not_touch_one_another_and_batches_do_not_matter(tmp_path, monkeypatch):
    whole = known.task(tmp_path / "a", known.pictures(60), np.arange(20))
    options = CognitiveDistillation(steps=10)
    together = mask_norms(whole, options)
    part = known.task(tmp_path / "b", whole.examples.take(np.arange(7, 60, 3)), [])
    monkeypatch.setattr(cognitive_distillation, "BYTES", 20_000)
    few = mask_norms(part, options)
    assert few[part.examples.rows] == pytest.approx(together[part.examples.rows], abs=1e-4)
    assert np.isnan(few[0])


def test_in_half_precision_masks_are_nearly_the_same(tmp_path):
    here = known.task(tmp_path, known.pictures(60, np.array([5, 9])), np.arange(20))
    options = CognitiveDistillation(steps=10, gamma=0.003, keep="probabilities")
    exact = mask_norms(here, options)
    object.__setattr__(here, "preset", here.preset.changed(precision="bfloat16"))
    found = mask_norms(here, options)
    assert not np.array_equal(found, exact)
    assert found == pytest.approx(exact, abs=0.02)
    assert exact.std() > 0.04


def test_room_is_found_by_what_layers_give():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 10, 1), torch.nn.Flatten(), torch.nn.Linear(10 * 6400, 4))
    given = 4 * (10 * 6400 + 10 * 6400 + 4)
    assert cognitive_distillation._fitting(network, torch.zeros(1, 3, 80, 80)) == 2**30 // (2 * given)


def test_a_second_score_distils_nothing(tmp_path):
    here = known.task(tmp_path, known.pictures(40), np.arange(20))
    first = CognitiveDistillation(steps=3).score(here)
    asked = here.loaded
    assert np.array_equal(CognitiveDistillation(steps=3).score(here).values, first.values)
    assert here.loaded == asked
    assert not np.array_equal(CognitiveDistillation(steps=3, beta=1.0).score(here).values, first.values)


def test_grey_pictures_that_are_not_square_and_a_model_of_which_nothing_is_needed(tmp_path):
    grey = known.Examples.of(known.pictures(45).images[:, :1, :5], np.arange(45) % 2)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(40, 2))
    values = CognitiveDistillation(steps=2).score(known.task(tmp_path, grey, np.arange(5), network)).values
    assert np.isfinite(values).all()
    same = known.task(tmp_path / "b", known.pictures(40), np.arange(10), known.Backdoored(sure=0.0, trigger=0.0))
    assert not CognitiveDistillation(steps=2).score(same).values.any()


def test_answers_that_are_no_numbers(tmp_path):
    network = known.Backdoored()
    network.head.bias.data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        CognitiveDistillation(steps=2).score(known.task(tmp_path, known.pictures(40), np.arange(10), network))


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"learning_rate": 0.0}, {"gamma": -1.0}, {"beta": float("nan")}, {"beta": float("inf")}]
)
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        CognitiveDistillation(**options)


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_deviations_of_probes_are_those_of_the_others(count):
    values = np.random.default_rng(count).normal(size=30)
    probes = np.arange(count) * 2
    found = above_probes_by_deviation(values, probes)
    for row in range(30):
        others = values[np.setdiff1d(probes, [row])]
        expected = (values[row] - others.mean()) / others.std(ddof=1) if len(others) > 1 else 0
        assert found[row] == pytest.approx(expected, abs=1e-9)
    assert not above_probes_by_deviation(np.ones(5), np.arange(3)).any()
