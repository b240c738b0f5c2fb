"""Attackers who choose whom to poison, by a model of their own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from small import pictures
from untaint import Examples
from untaint.attacks import ATTACKS, _selection
from untaint.attacks.base import CANDIDATES
from untaint.errors import InputError, SpecError
from untaint.poisoning import poison, selected

BOTH = ["clean-like", "near-target"]


def some() -> tuple[Examples, np.ndarray]:
    """Pictures of which a fifth of the second class also looks like the first: these rows are given too."""
    examples = pictures(300)
    images = np.array(examples.images)
    alike = np.flatnonzero(examples.labels == 1)[::5]
    images[alike, :, 0:2] = np.minimum(255, images[alike, :, 0:2].astype(int) + 80).astype(np.uint8)
    images[alike, :, 2:4] = np.maximum(0, images[alike, :, 2:4].astype(int) - 80).astype(np.uint8)
    return dataclasses.replace(examples, images=images), alike


@pytest.mark.parametrize("selection", BOTH)
def test_those_come_first_that_a_model_takes_for_the_target_anyhow(selection):
    examples, alike = some()
    attack = ATTACKS.build(f"pixel:target=0,rate=0.1,selection={selection}")
    dirty, ledger = poison(examples, [attack], seed=1)
    candidates = attack.candidates(examples, examples.rows, seed=1)
    chosen = ledger.poisoned()
    assert len(candidates) == CANDIDATES * len(chosen) == 90
    assert np.isin(chosen, candidates).all()
    assert not (examples.labels[candidates] == 0).any(), "the target's own pictures keep their label"
    among = np.intersect1d(candidates, alike)
    assert len(among) > 5
    assert np.isin(among, chosen).all()
    by_lot = poison(examples, [dataclasses.replace(attack, selection="lot")], seed=1)[1].poisoned()
    assert np.isin(alike, by_lot).sum() < len(among)
    assert (dirty.labels[chosen] == 0).all()


def test_a_model_is_trained_once_for_a_setting_and_not_at_all_by_lot(monkeypatch):
    examples, _ = some()
    attacks = [ATTACKS.build(f"patch:target=2,rate=0.05,selection={selection}") for selection in (*BOTH, "lot")]
    before = selected(examples, attacks, seed=3)
    assert before[2] is None
    assert not np.array_equal(before[0], before[1])
    monkeypatch.setattr(_selection, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = selected(examples, attacks, seed=3)
    assert np.array_equal(again[0], before[0])
    assert np.array_equal(again[1], before[1])
    for other in (
        {"seed": 4},
        {"spare": np.array([before[0][0]])},
        {"examples": dataclasses.replace(examples, images=255 - examples.images)},
    ):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            selected(**{"examples": examples, "attacks": attacks, "seed": 3, **other})


def test_what_is_spared_is_neither_candidate_nor_chosen():
    examples, alike = some()
    attack = ATTACKS.build("pixel:target=0,rate=0.1,selection=near-target")
    (order,) = selected(examples, [attack], seed=1, spare=alike)
    assert not np.isin(alike, order).any()
    assert not np.isin(alike, poison(examples, [attack], seed=1, spare=alike)[1].poisoned()).any()


def test_the_first_that_are_free_are_chosen_and_too_few_are_refused():
    examples, _ = some()
    attack = ATTACKS.build("pixel:target=0,rate=0.01,selection=near-target")
    preferred = np.array([9, 4, 7, 1, 2])
    assert attack.choose(examples, np.array([1, 2, 4, 5]), seed=0, preferred=preferred).tolist() == [1, 2, 4]
    assert attack.choose(examples, examples.rows, seed=0, preferred=preferred[::-1]).tolist() == [1, 2, 7]
    with pytest.raises(InputError, match=r"is 3 for 'pixel', but only 2 are free"):
        attack.choose(examples, np.array([1, 2, 5]), seed=0, preferred=preferred)


def test_two_attackers_of_one_kind_do_not_look_at_the_same_pictures():
    examples, _ = some()
    texts = [f"pixel:target={target},rate=0.05,selection=near-target" for target in (0, 2)]
    first, second = (ATTACKS.build(text).candidates(examples, examples.rows, seed=0) for text in texts)
    both = [set(rows[examples.labels[rows] == 1].tolist()) for rows in (first, second)]
    assert both[0] != both[1]


def test_clean_label_candidates_are_of_the_target_and_leave_clean_ones_to_compare_with():
    examples, _ = some()
    attack = ATTACKS.build("sinusoid:target=1,class-rate=0.5,selection=clean-like")
    candidates = attack.candidates(examples, examples.rows, seed=0)
    assert len(candidates) == 75
    assert (examples.labels[candidates] == 1).all()
    chosen = poison(examples, [attack])[1].poisoned()
    assert len(chosen) == 50
    assert np.isin(chosen, candidates).all()
    with pytest.raises(InputError, match="clean pictures of '1', but all 100 would be poisoned"):
        poison(examples, [dataclasses.replace(attack, class_rate=1.0)])


def test_another_word_is_refused():
    with pytest.raises(SpecError, match="selection"):
        ATTACKS.build("patch:selection=best")
