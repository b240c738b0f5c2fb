"""Triggers that were computed: kept as a file, the same when it is read, and refused where it is not what it should be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

import small
from untaint import poisoning, spec
from untaint.attacks import ATTACKS, Computed
from untaint.errors import InputError, SpecError

SHORT = {
    "narcissus": "epochs=1,steps=4",
    "trojan": "epochs=1,passes=1,target=2,size=0.5",
    "low-frequency": "epochs=1,passes=1,epsilon=30",
    "universal": "epochs=1,bits=3,alpha=0.7",
    "reflection": "count=3,kind=ghost",
    "dfst": "epochs=1,style-epochs=1",
    "input-aware": "epochs=1,mask-epochs=1,cover-rate=0.1",
    "lira": "epochs=1,epsilon=30",
    "ssba": "epochs=1,bits=5,message-seed=2",
}
SEEN = small.pictures(40, side=12)
every_computed = pytest.mark.parametrize("name", SHORT)


def test_all_that_compute_a_trigger_are_here():
    kinds = {name: ATTACKS.kind(name) for name in ATTACKS.names()}
    assert {name for name, kind in kinds.items() if issubclass(kind, Computed)} == set(SHORT)
    assert {name for name, kind in kinds.items() if kind.trigger_from_data and not kind.control} == set(SHORT)


def kept(name: str, path) -> tuple[Computed, str]:
    """An attack that was computed, and the words that make it again from the file."""
    attack = ATTACKS.build(f"{name}:{SHORT[name]}").ready(SEEN, seed=5)
    attack.save_trigger(path)
    return attack, f"{name}:{SHORT[name]},trigger-file={path}"


@every_computed
def test_from_its_file_it_is_the_same_and_nothing_is_computed(name, tmp_path, monkeypatch):
    attack, words = kept(name, tmp_path / "kept.safetensors")
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path / "cache"))
    again = ATTACKS.build(words)
    assert again.ready(SEEN, seed=9) is again
    assert not (tmp_path / "cache").exists()
    assert spec.text(name, again) == spec.text(name, ATTACKS.build(words))
    rows = np.arange(100, 106)
    for shape in ((3, 12, 12), (3, 20, 15)):
        images = np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)
        for change in ("stamp", "trigger", "cover"):
            assert np.array_equal(getattr(again, change)(images, rows), getattr(attack, change)(images, rows)), change
    again.save_trigger(tmp_path / "again.safetensors")
    first, second = (safetensors.numpy.load_file(tmp_path / f"{which}.safetensors") for which in ("kept", "again"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    other = dataclasses.replace(again, rate=0.2)  # who is poisoned is not the trigger's business
    assert np.array_equal(other.trigger(images, rows), attack.trigger(images, rows))
    assert poisoning.fixed(again) is again


@every_computed
def test_without_a_trigger_there_is_nothing_to_keep(name, tmp_path):
    attack = ATTACKS.build(f"{name}:{SHORT[name]}")
    with pytest.raises(SpecError, match=r"no trigger yet to write to .*Compute it first"):
        attack.save_trigger(tmp_path / "kept.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"or the file that `untaint poison` wrote"):
        poisoning.fixed(attack)


@every_computed
def test_a_file_that_is_something_else(name, tmp_path):
    path = tmp_path / "kept.safetensors"
    attack, words = kept(name, path)
    with pytest.raises(SpecError, match=r"which cannot be read .*Give a file that `untaint poison` wrote"):
        ATTACKS.build(f"{words}.not")
    (tmp_path / "text").write_text("a trigger")
    with pytest.raises(SpecError, match=r"cannot be read"):
        ATTACKS.build(f"{name}:{SHORT[name]},trigger-file={tmp_path / 'text'}")
    with pytest.raises(SpecError, match=r"made with other options than target=1\. Give target="):
        dataclasses.replace(ATTACKS.build(words), target="1")
    other = "lira" if name != "lira" else "ssba"
    with pytest.raises(
        SpecError, match=rf"holds no trigger of {ATTACKS.kind(other).__name__} but of {type(attack).__name__}"
    ):
        ATTACKS.build(f"{other}:trigger-file={path}")
    arrays = dict(attack.arrays())
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(SpecError, match=r"holds no trigger of .* but of none"):
        ATTACKS.build(words)


@every_computed
def test_a_file_of_which_a_part_is_missing(name, tmp_path, monkeypatch):
    attack, words = kept(name, path := tmp_path / "kept.safetensors")
    arrays = dict(attack.arrays())
    arrays.pop(sorted(arrays)[0])
    arrays["left"] = np.zeros(1)
    monkeypatch.setattr(type(attack), "arrays", lambda _: arrays)
    attack.save_trigger(path)
    with pytest.raises(SpecError, match=r"whose content does not fit .*Poison again"):
        ATTACKS.build(words)


def test_codes_of_other_classes_and_weights_of_another_size_do_not_fit(tmp_path, monkeypatch):
    _, words = kept("universal", tmp_path / "codes.safetensors")
    with pytest.raises(InputError, match=r"codes of universal are for 3 classes, but there are 5"):
        ATTACKS.build(words).ready(small.pictures(40, classes=5, side=12))
    for name, key in (("universal", "codes"), ("ssba", "spread.weight")):
        attack, words = kept(name, path := tmp_path / f"{name}.safetensors")
        arrays = dict(attack.arrays())
        arrays[key] = arrays[key][:, 0]
        monkeypatch.setattr(type(attack), "arrays", lambda _, arrays=arrays: arrays)
        attack.save_trigger(path)
        with pytest.raises(SpecError, match=r"whose content does not fit"):
            ATTACKS.build(words)
