from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import small
from untaint.bench import measures
from untaint.bench.case import Case, prepare
from untaint.bench.grid import Setting
from untaint.errors import InputError
from untaint.poisoning import stronger, triggered
from untaint.progress import Silent
from untaint.scores import Fraction, Scores
from untaint.training.evaluate import accuracy

SETTING = Setting(
    data="photos", attacks="two", probes=40, label_noise=0.1,
    attackers=("patch:target=1,rate=0.05,cover-rate=0.05", "blend:target=2,alpha=0.3,rate=0.1"),
)  # fmt: skip


@pytest.fixture(scope="module")
def case() -> Case:
    return prepare(SETTING, small.pictures(400), small.pictures(90, seed=1), Silent())


def slow_auroc(poison, clean) -> float:
    """The share of pairs in which poison is higher; ties count a half."""
    return float(np.mean([(one > other) + 0.5 * (one == other) for one in poison for other in clean]))


def slow_rate(poison, clean, rate) -> float:
    """The most poison above any limit that at most this share of clean rows exceeds."""
    limits = [-np.inf, *clean, *poison]
    return max(float((poison > limit).mean()) for limit in limits if (clean > limit).mean() <= rate + 1e-12)


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 60), st.sampled_from([2, 5, 1000]))
@settings(max_examples=60, deadline=None)
def test_measures_are_those_of_the_slow_definitions(seed, poisoned, clean_rows, levels):
    generator = np.random.default_rng(seed)
    poison = generator.integers(0, levels, poisoned) + generator.choice([0.0, 0.5])
    clean = np.sort(generator.integers(0, levels, clean_rows).astype(float))
    found = measures.compared(poison, clean)
    assert found["rows"] == poisoned
    assert found["auroc"] == pytest.approx(slow_auroc(poison, clean), abs=1e-5)
    for text, value in found["tpr_at_fpr"].items():
        assert value == pytest.approx(slow_rate(poison, clean, float(text)), abs=1e-5)
    assert (np.diff(found["curve"]) >= 0).all()
    assert found["curve"][-1] == 1


def test_an_attack_is_compared_with_clean_rows_only(case):
    values = np.full(400, 0.5, np.float32)
    ledger = case.ledger
    values[case.clean()] = np.linspace(0, 0.4, len(case.clean()))
    values[ledger.poisoned(0)] = 1
    for others in (case.probes, ledger.covers(), np.flatnonzero(case.noisy)):
        assert len(others)
        values[others] = 2  # above all poison: if they counted, AUROC were less than 1
    found = measures.detection(case, Scores(values=values, name="mine"))
    assert found["patch"]["auroc"] == found["blend"]["auroc"] == 1
    assert found["all"]["rows"] == 60
    assert found["label noise"]["rows"] == len(np.flatnonzero(case.noisy))


def test_rows_without_a_score_are_the_least_suspicious(case):
    values = np.full(400, np.nan, np.float32)
    values[case.clean()] = 0
    found = measures.detection(case, Scores(values=values, name="mine"))
    assert found["all"]["auroc"] == 0


def test_removal_counts_each_kind_by_itself(case):
    values = np.zeros(400, np.float32)
    values[case.ledger.poisoned()] = 2
    values[np.flatnonzero(case.noisy)[:7]] = 3
    values[case.ledger.covers()[:3]] = 3
    verdict = Fraction(0.2).decide(Scores(values=values, name="mine"), labels=case.examples.labels, probes=case.probes)
    found = measures.removal(case, verdict)
    assert (found["rejected"], found["poisoned"], found["label noise"], found["covers"]) == (80, 60, 7, 3)
    assert found["clean"] == 80 - 60 - 7 - 3
    assert found["precision"] == 0.75
    assert found["recall"] == 1
    assert found["per attack"] == {"patch": 20, "blend": 40}
    whole = {"rows": 400, "poisoned": 60, "set aside": 80, "clean set aside": found["clean"]}
    assert {what: sum(own[what] for own in found["classes"].values()) for what in whole} == whole
    labels = case.examples.labels
    for label, name in enumerate(case.examples.class_names):
        own = found["classes"][name]
        assert own["rows"] == np.count_nonzero(labels == label)
        assert own["poisoned"] == np.count_nonzero(labels[case.ledger.poisoned()] == label)
        assert own["set aside"] == np.count_nonzero(labels[verdict.rows] == label)
    nobody = measures.removal(
        case, Fraction(0.0).decide(Scores(values=values, name="mine"), labels=case.examples.labels, probes=case.probes)
    )
    assert nobody["precision"] is None
    assert nobody["rejected"] == 0


def test_probes_that_would_be_set_aside_are_counted_by_what_they_are(case):
    bad = case.ledger.poisoned(1)[:9]
    probes = np.sort(np.r_[case.probes, bad])
    values = np.zeros(400, np.float32)
    values[bad[:6]] = values[case.probes[:2]] = values[case.ledger.poisoned(0)] = 2
    values[bad[6:]] = -1
    scores = Scores(values=values, name="mine")
    verdict = Fraction(0.05).decide(scores, labels=case.examples.labels, probes=probes)
    assert measures.vouching(replace(case, probes=probes), scores, verdict) == {
        "poisoned": 9,
        "per attack": {"patch": 0, "blend": 9},
        "poisoned named": 6,
        "clean": 40,
        "clean named": 2,
    }


class Obeys(nn.Module):
    """Says class 1 where the patch's corner pixel is white, else the class whose rows are brightest."""

    def forward(self, images):
        bright = torch.stack([images[:, :, 2 * label : 2 * label + 2].mean(dim=(1, 2, 3)) for label in range(3)], 1)
        triggered = (images[:, :, 6, 6] > 0.99).all(1) & (images[:, :, 5, 5] > 0.99).all(1)
        bright[triggered] = torch.tensor([0.0, 9.0, 0.0])
        return bright


def test_behaviour_is_clean_accuracy_and_success_outside_the_target_class(case):
    found = measures.behaviour(case, Obeys(), torch.device("cpu"))
    assert found["clean accuracy"] > 0.9
    patch = found["attacks"]["patch"]
    assert patch == {"target": "1", "asr": 1.0, "asr stronger": 1.0, "untriggered": patch["untriggered"]}
    assert patch["untriggered"] < 0.1
    blend = found["attacks"]["blend"]
    assert blend["target"] == "2"
    assert blend["asr"] < 0.5


def test_a_stronger_trigger_changes_every_pixel_twice_as_much(case):
    shown = triggered(case.test, case.attacks[1])
    twice = stronger(case.test, shown)
    rows = shown.rows
    once = shown.images[rows].astype(int) - case.test.images[rows]
    exact = np.clip(case.test.images[rows] + 2 * once, 0, 255)
    assert np.array_equal(twice.images[rows], exact)
    assert np.array_equal(stronger(case.test, shown, 1.0).images[rows], shown.images[rows])
    assert np.array_equal(twice.labels, shown.labels)


class Broken(Obeys):
    def forward(self, images):
        return super().forward(images) * float("nan")


def test_a_model_whose_answers_are_no_numbers_is_an_error(case):
    with pytest.raises(InputError, match="no number"):
        measures.behaviour(case, Broken(), torch.device("cpu"))


def test_each_rate_is_the_one_that_a_pass_of_its_own_finds(case):
    model, where = Obeys(), torch.device("cpu")
    found = measures.behaviour(case, model, where)
    for name, attack in zip(case.names, case.attacks, strict=True):
        shown = triggered(case.test, attack)
        own = found["attacks"][name]
        assert own["asr"] == pytest.approx(accuracy(model, shown, where), abs=1e-5)
        assert own["asr stronger"] == pytest.approx(accuracy(model, stronger(case.test, shown), where), abs=1e-5)
        plain = replace(shown, images=case.test.images)
        assert own["untriggered"] == pytest.approx(accuracy(model, plain, where), abs=1e-5)


def test_nothing_clean_is_an_error(case):
    everybody = replace(case, noisy=np.ones(400, dtype=bool))
    with pytest.raises(InputError, match="no row is clean"):
        measures.detection(everybody, Scores(values=np.zeros(400, np.float32), name="mine"))
