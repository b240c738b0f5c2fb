"""Sweeps of made-up results: what is compared with what, and that it is drawn."""

from __future__ import annotations

import pytest

from untaint.bench.pictures import draw
from untaint.bench.sweeps import MEASURES, swept

THREE = ("patch:rate=0.01", "pixel:rate=0.01", "sinusoid:class-rate=0.1")


def made(attackers=THREE, called="cross-examination", each=100, found=0.9, epochs=8, **setting):
    poisoned = {f"attack {number}": each for number in range(len(attackers))}
    whole = each * len(attackers)
    usual = {"data": "photos", "attacks": "three", "rows": None, "probes": 250, "label_noise": 0.0, "epochs": None}
    return {
        "title": f"{attackers} {setting} {epochs}",
        "defence": called,
        "called": called,
        "origin": {
            "setting": {**usual, "attackers": list(attackers), "seed": 0, **setting},
            "watch": {"epochs": epochs},
        },
        "rows": 10_000,
        "poisoned": poisoned,
        "detection": {"all": {"auroc": 0.99}},
        "removal": {"rejected": whole, "poisoned": round(found * whole)},
    }


def at(rate):
    return tuple(f"{text.partition(':')[0]}:rate={rate}" for text in THREE)


def test_results_that_differ_in_one_thing_alone_are_a_sweep():
    usual = made()
    others = [made(probes=0, found=0.5), made(probes=25), made(probes=0, label_noise=0.1)]
    (sweep,) = swept([usual, *others])
    assert (sweep.key, sweep.called, sweep.values) == ("probes", "cross-examination", (0, 25, 250))
    assert list(sweep.results) == [(others[0],), (others[1],), (usual,)]
    assert not swept([usual, *others[1:]])  # two values make no line


def test_seeds_and_detectors_are_kept_apart_from_what_is_swept():
    results = [made(probes=probes, seed=seed) for probes in (0, 25, 250) for seed in (0, 1)]
    other = [made(probes=probes, called="pattern") for probes in (0, 25, 250)]
    own, pattern = swept([*results, *other])
    assert [len(some) for some in own.results] == [2, 2, 2]
    assert [len(some) for some in pattern.results] == [1, 1, 1]


def test_whether_a_model_was_trained_in_the_end_makes_no_other_setting():
    results = [made(probes=0, detect_only=True), made(probes=25, detect_only=False), made(detect_only=True)]
    (sweep,) = swept(results)
    assert (sweep.key, sweep.values) == ("probes", (0, 25, 250))


def test_rates_are_shares_of_the_pictures_and_other_options_must_be_the_same():
    one_class = tuple(f"{text},target=0" for text in at(0.003))
    results = [made(), made(at(0.001), each=10), made(at(0.03), each=300), made(one_class, each=30)]
    (sweep,) = swept(results)
    assert (sweep.key, sweep.values) == ("rate", (0.1, 1, 3))


def test_fewer_attackers_are_the_first_of_many():
    results = [made(), made(THREE[:1]), made(THREE[:2]), made(THREE[1:]), made(at(0.1)[:2], each=1000)]
    (sweep,) = swept(results)
    assert (sweep.key, sweep.values) == ("number", (1, 2, 3))


def test_epochs_left_to_the_preset_are_those_that_it_has():
    results = [made(epochs=2), made(), made(epochs=12)]
    for result, epochs in zip(results, (2, None, 12), strict=True):
        result["origin"]["setting"]["epochs"] = epochs
    (sweep,) = swept(results)
    assert (sweep.key, sweep.values) == ("epochs", (2, 8, 12))


@pytest.mark.parametrize(
    ("name", "value"), [("AUROC", 0.99), ("poison that is set aside", 0.9), ("poison among what is set aside", 0.9)]
)
def test_measures(name, value):
    assert MEASURES[name](made()) == pytest.approx(value)
    bare = made() | {"detection": {}, "removal": {"rejected": 0, "poisoned": 0}, "poisoned": {}}
    assert MEASURES[name](bare) is None


def test_sweeps_are_one_plot_and_results_without_them_none(tmp_path):
    results = [made(), made(probes=0, found=0), made(probes=25), made(THREE[:1]), made(THREE[:2])]
    results[1]["removal"]["rejected"] = 0  # nothing was set aside: no share of it can be right
    (path,) = draw(results, tmp_path, ["sweep"])
    assert path.name == "sweep.svg"
    first = path.read_bytes()
    assert b"poisoned by each attacker" not in first
    assert draw(results, tmp_path, ["sweep"]) == [path]
    assert path.read_bytes() == first
    for result in results:
        result["removal"] = {"rejected": 0, "poisoned": 0}
    assert draw(results, tmp_path, ["sweep"]) == [path]
    assert draw(results[:1], tmp_path / "none", ["sweep"]) == []
