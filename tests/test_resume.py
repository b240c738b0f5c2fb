"""Killed at any moment, the same command goes on and ends with the same bits.

The processes are real and are killed by SIGKILL, between two steps of the work that are named.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import untaint as ut
from small import RECIPE, Stopping, WithDropout, contents, pictures, preset
from untaint import run, scanning
from untaint.errors import RunError
from untaint.training.loop import Watch, fit

processes = multiprocessing.get_context("forkserver")
# imported once for all processes; the last three would be imported by the first training step or table
processes.set_forkserver_preload(
    ["untaint.scanning", "untaint.report.charts", "pytest", "torch._dynamo", "torchvision", "pandas"]
)
PROBES = np.arange(0, 60, 4)

# a moment: (when, file, how manieth time)
Moment = tuple[str, str, int]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: Moment | None) -> None:
    """Kill this process before or after a file is put in place, or after one is removed."""
    if moment is None:
        return
    when, name, times = moment
    left = [times]
    replace_file, unlink = os.replace, Path.unlink

    def reached(path: object, what: tuple[str, ...]) -> bool:
        if when not in what or not str(path).endswith(name):
            return False
        left[0] -= 1
        return left[0] == 0

    def replacing(part: object, path: object) -> None:
        dying = reached(path, ("before", "after"))
        if dying and when == "before":
            die()
        replace_file(part, path)
        if dying:
            die()

    def unlinking(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if reached(path, ("removed",)):
            die()

    os.replace = replacing
    Path.unlink = unlinking  # type: ignore[method-assign]


class Deadly(Stopping):
    def advance(self, count: int, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            die()


def train_once(out: Path, moment: Moment | None) -> None:
    torch.set_num_threads(1)
    progress = Deadly(moment[2]) if moment and moment[0] == "step" else None
    arm(None if progress else moment)
    examples = pictures()
    watch = Watch(rows=examples.rows, features={0, 2})
    recipe = replace(RECIPE, augment="crop-flip")
    fit(examples, recipe, out, seed=1, watch=watch, model=WithDropout, progress=progress)


def scan_once(out: Path, moment: Moment | None) -> None:
    torch.set_num_threads(1)
    progress = Deadly(moment[2]) if moment and moment[0] == "step" else None
    arm(None if progress else moment)
    scanning.FEWEST = 0  # in this process
    ut.scan(pictures(), probes=PROBES, out=out, preset=preset(epochs=2), progress=progress)


def in_a_process(work, out: Path, moment: Moment | None = None) -> bool:
    """Do the work in a process of its own; tell whether it was killed."""
    process = processes.Process(target=work, args=(out, moment))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"ended with {process.exitcode} at {moment}"
    return process.exitcode != 0


# --- one model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    assert not in_a_process(train_once, out)
    return contents(out)


TRAINING: list[Moment] = [
    ("step", "", 1),
    ("step", "", 7),  # in the second epoch's training
    ("step", "", 10),  # in its recording pass
    ("before", "features/epoch_000.npy", 1),
    ("after", "margin/epoch_001.npy", 1),
    ("after", "scaled-logit/epoch_001.npy", 1),  # the epoch is recorded, its checkpoint not written
    ("before", "checkpoint_002.safetensors", 1),
    ("after", "checkpoint_002.safetensors", 1),  # the checkpoint is written, the state names the one before
    ("before", "state.json", 1),
    ("after", "state.json", 2),
    ("removed", "checkpoint_001.safetensors", 1),
    ("after", "model.safetensors", 1),
    ("after", "model.json", 1),
    ("before", "done.json", 1),
    ("after", "done.json", 1),
    ("removed", "state.json", 1),
    ("removed", "checkpoint_003.safetensors", 1),
]


@pytest.mark.parametrize("moment", TRAINING, ids=lambda moment: "-".join(map(str, moment)))
def test_training_that_was_killed_ends_with_the_same_bits(tmp_path, trained, moment):
    out = tmp_path / "run"
    assert in_a_process(train_once, out, moment)
    assert not in_a_process(train_once, out)
    assert contents(out) == trained


def test_training_killed_over_and_over_ends_with_the_same_bits(tmp_path, trained):
    out = tmp_path / "run"
    moments = [moment for moment in TRAINING if moment[0] != "step"]
    killed = sum(in_a_process(train_once, out, moment) for moment in moments)
    assert killed >= 6  # not every moment comes again in what is left to do
    assert not in_a_process(train_once, out)
    assert contents(out) == trained


# --- a whole scan

TIMED = ("machine.json", "summary.json", "report.html", "cost.json")  # these hold seconds


def findings(out: Path) -> dict[str, object]:
    summary = run.read_json(out / "summary.json")
    for name in ("stages", "clean_model", "next", "hardware"):
        summary.pop(name)
    assert (out / "report.html").stat().st_size > 1000
    return {**contents(out, without=TIMED), "summary": summary}


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    out = tmp_path_factory.mktemp("scanned") / "run"
    assert not in_a_process(scan_once, out)
    assert {"scores.parquet", "kept.txt", "rejected.txt", "model/done.json", "witness/done.json"} <= set(contents(out))
    return out


def same(out: Path, scanned: Path) -> None:
    found, expected = findings(out), findings(scanned)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if name != "data.json" and found[name] != expected[name]] == []


SCANNING: list[Moment] = [
    ("after", "settings.json", 1),
    ("before", "machine.json", 1),
    ("after", "watcher-a/state.json", 1),
    ("after", "watcher-a/done.json", 1),
    ("after", "watcher-b/trajectories/margin/epoch_001.npy", 1),
    ("before", "trusted.npy", 1),
    ("after", "trusted.npy", 1),
    ("after", "witness/checkpoint_001.safetensors", 1),
    ("before", "scores.parquet", 1),
    ("after", "rejected.txt", 1),
    ("after", "summary.json", 1),
    ("after", "model-rows.json", 1),
    ("after", "model/checkpoint_002.safetensors", 1),
    ("after", "kept.txt", 2),
    ("before", "report.html", 1),
]


def test_a_scan_killed_at_every_stage_ends_with_the_same_bits(tmp_path, scanned):
    out = tmp_path / "run"
    for moment in SCANNING:
        assert in_a_process(scan_once, out, moment), moment
    assert not in_a_process(scan_once, out)
    same(out, scanned)


@pytest.mark.parametrize("moment", [SCANNING[2], SCANNING[6], SCANNING[8], SCANNING[12]], ids=lambda m: m[1])
def test_a_scan_killed_once_ends_with_the_same_bits(tmp_path, scanned, moment):
    out = tmp_path / "run"
    assert in_a_process(scan_once, out, moment)
    assert not in_a_process(scan_once, out)
    same(out, scanned)


def test_a_scan_killed_within_epochs_ends_with_the_same_bits(tmp_path, scanned):
    out, killed = tmp_path / "run", 0
    for steps in range(4, 40, 3):
        if not in_a_process(scan_once, out, ("step", "", steps)):
            break
        killed += 1
    assert killed >= 3
    same(out, scanned)


def again(out, **changes):
    given = {"probes": PROBES, "preset": preset(epochs=2), **changes}
    return ut.scan(given.pop("data", None) or pictures(), out=out, **given)


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    out = tmp_path / "run"
    for after in (3, 8, 9):
        with pytest.raises(KeyboardInterrupt):
            again(out, progress=Stopping(after))
    listening = Stopping(10**9)
    whole = again(tmp_path / "whole")
    result = again(out, progress=listening)
    same(out, tmp_path / "whole")
    assert np.array_equal(result.scores.values, whole.scores.values)
    assert any("stages are done already" in remark for remark in listening.remarks)


def test_a_scan_without_a_clean_model_may_be_given_one_later(tmp_path):
    out = tmp_path / "run"
    assert again(out, retrain=False).summary["clean_model"] is None
    assert not (out / "model").exists()
    listening = Stopping(10**9)
    again(out, progress=listening)
    assert [step[0] for step in listening.steps if step[0].startswith(("watch", "train"))] == ["train the clean model"]
    again(tmp_path / "whole")
    same(out, tmp_path / "whole")


@pytest.fixture
def copy(tmp_path, scanned):
    return Path(shutil.copytree(scanned, tmp_path / "copy"))


def test_a_finished_scan_is_only_read_again(copy, scanned):
    progress = Stopping(10**9)
    result = again(copy, progress=progress)
    assert [step for step in progress.steps if step[0].startswith(("watch", "train"))] == []
    same(copy, scanned)
    assert len(result.kept) == 60 - len(result.rejected)


def test_a_precision_that_somebody_changed_is_noticed(copy):
    """A run goes on in the precision that it was begun in; it is written down once."""
    facts = run.read_json(copy / "machine.json")
    run.write_json(copy / "machine.json", {**facts, "precision": "bfloat16"})
    with pytest.raises(RunError, match=r"machine\.json was altered since it was written\."):
        again(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed = 0, now it is 1"),
        ({"preset": preset(epochs=3)}, r"preset.watch.epochs = 2, now it is 3\."),
        ({"preset": preset(epochs=2, batch=8)}, "preset.watch.batch = 16, now it is 8"),
        ({"reject": "gap"}, "reject = 'fraction:share=0.1', now it is 'gap'"),
        ({"detector": "cross-examination:trusted=0.4"}, "detector = 'cross-examination', now it is 'cross-exam"),
        ({"probes": np.arange(0, 60, 5)}, "begun with other probes"),
        ({"data": pictures(seed=5)}, "begun with other data"),
        ({"model": WithDropout}, "model = 'proxy', now it is 'custom'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_by_the_name_of_the_difference(copy, changes, message):
    before = contents(copy)
    with pytest.raises(RunError, match=message) as refused:
        again(copy, **changes)
    assert len(str(refused.value)) < 500
    assert contents(copy) == before


def test_a_second_process_on_the_same_run_is_refused(tmp_path):
    class Intruding(Stopping):
        def advance(self, count: int, note: str = "") -> None:
            with pytest.raises(RunError, match="another process is working in"):
                again(tmp_path / "run")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(tmp_path / "run", progress=Intruding(1))


ALTERED = (
    "watcher-a/trajectories/scaled-logit/epoch_001.npy",
    "watcher-b/features/epoch_000.npy",
    "witness/done.json",
    "witness/model.safetensors",
)


@pytest.mark.parametrize(
    ("name", "work"),
    [*((name, work) for name in ALTERED for work in (again, ut.score)), ("model/model.safetensors", again)],
)
def test_a_run_that_was_altered_is_refused_in_one_sentence(copy, name, work):
    path = copy / name
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(RunError, match=path.name) as refused:
        work(copy)
    assert "\n" not in str(refused.value)
