"""The best scan that fits into a given time; what a picture costs is made up, so that no clock decides."""

from __future__ import annotations

import numpy as np
import pytest

import small
import untaint as ut
from small import pictures, preset
from untaint import run, spec
from untaint.budgeting import LADDER, minutes_text, seconds_of, within
from untaint.defenses import DEFENSES, Task
from untaint.errors import InputError, RunError, SpecError
from untaint.progress import Silent
from untaint.scores import FalseDiscovery
from untaint.training.device import Trial

TRIAL = Trial("float32", train=0.3, evaluate=0.1)  # seconds for a picture
PROBES = np.arange(0, 90, 4)


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    """A machine that is as slow as it says."""
    monkeypatch.setattr(Task, "trial", lambda task: TRIAL)


def task(scratch, told=None):
    return small.task(scratch, pictures(90), PROBES, epochs=2, progress=told or Silent(), rule=FalseDiscovery(0.1))


def minutes(here: Task, retrain: bool) -> list[float]:
    """What the scans of the ladder take, the best first."""
    return [1.15 * seconds_of(here, DEFENSES.build(text), retrain, TRIAL) / 60 for text in LADDER]


def test_the_best_scan_that_fits_is_taken(tmp_path):
    here = task(tmp_path)
    for retrain in (True, False):
        takes = minutes(here, retrain)
        assert takes == sorted(takes, reverse=True)
        assert len(set(takes)) == 3
        for text, enough in zip(LADDER, takes, strict=True):
            for more in (enough * 1.01 + 1e-6, enough * 1.2 + 1e-6):
                judge, tried = within(more, here, retrain)
                assert spec.text(DEFENSES.name_of(judge), judge) == text
                assert tried == TRIAL


def test_the_time_is_that_of_all_models(tmp_path):
    takes = minutes(task(tmp_path), True)
    model = 90 * 2 * 0.3
    watcher = 45 * 2 * 0.3 + 90 * 2 * 0.1
    witness = 45 * 2 * 0.3 + 90 * 2 * 0.1
    expected = [4 * watcher + witness + model, 2 * watcher + witness + model, model]
    assert takes == pytest.approx([1.15 * seconds / 60 for seconds in expected])


def test_too_little_time_is_refused_with_what_the_quickest_takes(tmp_path):
    here = task(tmp_path)
    quickest = minutes_text(60 * minutes(here, True)[-1])
    with pytest.raises(InputError, match=f"takes about {quickest} here, more than the 0.01 minutes.*--no-retrain"):
        within(0.01, here, True)
    with pytest.raises(SpecError, match="budget is 0 minutes"):
        within(0, here, True)


def test_a_scan_keeps_to_what_it_chose_when_it_goes_on(tmp_path, monkeypatch):
    middle = minutes(task(tmp_path / "none"), True)[1] * 1.05
    settled = {"probes": PROBES, "preset": preset(epochs=2)}
    first = ut.scan(pictures(90), out=tmp_path / "run", budget=middle, **settled)
    known = run.read_sealed(tmp_path / "run" / "settings.json")
    assert (known["detector"], known["budget"]) == ("cross-examination:views=whitened", middle)
    monkeypatch.setattr(Task, "trial", lambda task: Trial("float32", train=9.0, evaluate=9.0))  # busier than before
    again = ut.scan(pictures(90), out=tmp_path / "run", budget=middle, **settled)
    assert np.array_equal(again.scores.values, first.scores.values)
    assert run.read_sealed(tmp_path / "run" / "machine.json")["train"] == TRIAL.train
    with pytest.raises(RunError, match="was begun with budget"):
        ut.scan(pictures(90), out=tmp_path / "run", budget=1e6, **settled)


def test_by_pixels_alone_the_rule_is_that_of_patterns(tmp_path):
    least = minutes(task(tmp_path / "none"), False)[-1] + 1e-6
    found = ut.scan(pictures(90), out=tmp_path / "run", preset=preset(epochs=2), budget=least, retrain=False)
    known = run.read_sealed(found.run / "settings.json")
    assert known["detector"] == "pattern"
    assert known["reject"] == DEFENSES.build("pattern").usual_rule


def test_a_budget_chooses_the_detector_itself(tmp_path):
    for given in ({"detector": "badloss"}, {"preset": "paper"}):
        with pytest.raises(SpecError, match="the detector is chosen for you"):
            ut.scan(pictures(90), out=tmp_path / "run", budget=5, **given)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "some seconds"), (89, "89 seconds"), (120, "2 minutes"), (5400, "1.5 hours")]
)
def test_times_are_said_as_people_do(seconds, said):
    assert minutes_text(seconds) == said
