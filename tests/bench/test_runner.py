from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import small
from untaint import recipe, run
from untaint.bench import Source, read_grid
from untaint.bench import runner as module
from untaint.bench.pictures import draw
from untaint.bench.runner import Runner, results_of
from untaint.bench.table import render
from untaint.errors import InputError, RunError

TEXT = """
[data.photos]
source = "PLACE"

[attacks]
two = ["patch:target=0,rate=0.05", "blend:alpha=0.4,target=1,rate=0.05"]

[[grid]]
data = "photos"
attacks = "two"
probes = 40
defences = ["none", "oracle", "random @ fraction:share=0.1", "spectral"]
seeds = SEEDS
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 300), ("test", 60)):
        examples = small.pictures(count, seed=count)
        for row, (image, label) in enumerate(zip(examples.images, examples.labels, strict=True)):
            place = folder / split / f"class-{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{row:03d}.png")
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setitem(recipe.PRESETS, "fast", replace(small.preset(), name="fast"))


class Told:
    """Keeps what is said, and can stop in the middle."""

    def __init__(self, after: int = 0) -> None:
        self.inner = small.Stopping(after) if after else small.Stopping(10**9)
        self.remarks: list[str] = []
        self.step = self.inner.step

    def say(self, remark):
        self.remarks.append(remark)


def found_in(folder, photos, *, seeds="[0]", told=None):
    made = runner(folder, photos, seeds=seeds)
    return results_of(made.grid, made.results, told)


def found_in_text(folder, photos, text):
    made = runner(folder, photos, text=text)
    return results_of(made.grid, made.results)


def runner(tmp_path, photos, *, seeds="[0]", text=TEXT, progress=None, **changes) -> Runner:
    path = tmp_path / "grid.toml"
    path.write_text(text.replace("PLACE", str(photos)).replace("SEEDS", seeds))
    return Runner(
        read_grid(path), results=tmp_path / "results", work=tmp_path / "work", progress=progress or Told(), **changes
    )


def test_every_cell_leaves_a_file_and_is_run_once(tmp_path, photos):
    first = runner(tmp_path, photos)
    assert first.run() == 0
    found = found_in(tmp_path, photos)
    assert sorted(r["defence"] for r in found) == ["none", "oracle", "random @ fraction:share=0.1", "spectral"]
    for one in found:
        assert 0 <= one["model"]["clean accuracy"] <= 1
        assert set(one["model"]["attacks"]) == {"patch", "blend"}
        assert one["cost"]["core_seconds"] > 0
        assert all(cost["peak_mib"] > 50 for cost in (one["cost"], *one["stages"].values()))
        assert one["poisoned"] == {"patch": 15, "blend": 15}
    oracle = next(one for one in found if one["defence"] == "oracle")
    assert (oracle["removal"]["poisoned"], oracle["removal"]["clean"], oracle["detection"]["all"]["auroc"]) == (
        30,
        0,
        1,
    )
    assert not [path for path in (tmp_path / "work").iterdir() if path.name != "claims"], "models are removed"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    again = runner(tmp_path, photos)
    assert again.run() == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()} == before
    assert "4 cells, 4 of them done before." in again.progress.remarks


def test_the_undefended_model_is_trained_once_for_all_defences(tmp_path, photos, monkeypatch):
    trained = []
    inner = module.Task.fit.__globals__["fit"]
    monkeypatch.setitem(
        module.Task.fit.__globals__,
        "fit",
        lambda *given, **named: trained.append(named["what"]) or inner(*given, **named),
    )
    runner(tmp_path, photos, keep=True).run()
    assert sorted(trained) == ["train the clean model"] * 3 + ["train the undefended model"]
    assert len(list((tmp_path / "work").glob("*/models/*/model.safetensors"))) == 4


def test_what_one_keeps_is_handed_on_to_another(tmp_path, photos):
    text = TEXT.replace('"spectral"]', '"spectral @ fraction:share=0.2", "spectral @ fraction:share=0.2 then repair"]')
    runner(tmp_path, photos, text=text, keep=True).run()
    alone, both = (
        next(one for one in found_in_text(tmp_path, photos, text) if one["defence"].endswith(end))
        for end in ("0.2", "repair")
    )
    assert alone["removal"] == both["removal"], "the same judge"
    assert alone["detection"] == both["detection"]
    assert set(both["stages"]) == {"undefended", "then/undefended", "then/repaired"}, "the first one's cost counts too"
    trained = [json.loads(path.read_text()) for path in (tmp_path / "work").glob("*/*/then/*/model.json")]
    removed = alone["removal"]["poisoned"] + alone["removal"]["clean"]
    assert removed > 0
    assert {card["rows"] for card in trained} == {alone["rows"] - removed}, "what was set aside is not trained on"


def test_a_grid_that_is_stopped_goes_on_where_it_was_and_ends_alike(tmp_path, photos):
    (tmp_path / "whole").mkdir()
    runner(tmp_path / "whole", photos).run()
    with pytest.raises(KeyboardInterrupt):
        runner(tmp_path, photos, progress=Told(after=60)).run()
    done = {path.name for path in (tmp_path / "results").glob("*.json")}
    assert 0 < len(done) < 4
    going_on = runner(tmp_path, photos)
    assert going_on.run() == 0
    assert f"4 cells, {len(done)} of them done before." in going_on.progress.remarks
    changing = {"cost", "stages", "measuring", "seal"}
    one, other = (
        {r["defence"]: {k: v for k, v in r.items() if k not in changing} for r in found_in(folder, photos)}
        for folder in (tmp_path, tmp_path / "whole")
    )
    assert one == other


def test_a_corrupt_result_is_named_redone_and_never_counted(tmp_path, photos):
    runner(tmp_path, photos).run()
    path = next((tmp_path / "results").glob("*oracle*.json"))
    facts = json.loads(path.read_text())
    facts["model"]["clean accuracy"] = 0.999
    path.write_text(json.dumps(facts))
    told = Told()
    assert len(found_in(tmp_path, photos, told=told)) == 3
    assert str(path) in told.remarks[0]
    again = runner(tmp_path, photos)
    again.run()
    assert any(str(path) in remark for remark in again.progress.remarks)
    assert run.read_sealed(path)["model"]["clean accuracy"] != 0.999
    path.write_text("{")
    runner(tmp_path, photos).run()
    assert len(found_in(tmp_path, photos)) == 4


def test_results_of_older_code_are_named_not_counted_and_replaced(tmp_path, photos, monkeypatch):
    runner(tmp_path, photos).run()
    monkeypatch.setattr("untaint.defenses.spectral.Spectral.version", 2)
    told = Told()
    assert len(found_in(tmp_path, photos, told=told)) == 3
    assert "spectral" in told.remarks[0]
    assert "is older (versions: defence is 1, now 2); the cell is to be run again." in told.remarks[0]
    runner(tmp_path, photos).run()
    assert len(list((tmp_path / "results").glob("*.json"))) == len(found_in(tmp_path, photos)) == 4


def test_results_of_other_pictures_are_run_again(tmp_path, photos, monkeypatch):
    runner(tmp_path, photos).run()
    train, test = module.read(Source(place=str(photos)), Told())
    monkeypatch.setattr(module, "read", lambda *_: (train, replace(test, labels=(test.labels + 1) % 3)))
    again = runner(tmp_path, photos)
    again.run()
    assert "4 cells, 0 of them done before." in again.progress.remarks
    assert any("is older (the pictures are others)" in remark for remark in again.progress.remarks)


def test_a_cell_that_fails_says_why_and_the_rest_goes_on(tmp_path, photos, monkeypatch):
    def fails(case, scores):
        raise InputError("AUROC is nan")

    with monkeypatch.context() as broken:
        broken.setattr(module, "detection", fails)
        assert runner(tmp_path, photos).run() == 0
    found = {r["defence"]: r.get("error") for r in found_in(tmp_path, photos)}
    assert found == {
        "none": None,
        "oracle": "AUROC is nan",
        "random @ fraction:share=0.1": "AUROC is nan",
        "spectral": "AUROC is nan",
    }
    again = runner(tmp_path, photos)
    again.run()
    assert "4 cells, 4 of them done before." in again.progress.remarks, "they are not run again by themselves"
    again = runner(tmp_path, photos, retry=True)
    again.run()
    assert "4 cells, 1 of them done before." in again.progress.remarks
    assert not [r for r in found_in(tmp_path, photos) if "error" in r]


def test_a_full_disk_is_no_finding(tmp_path, photos, monkeypatch):
    def full(self, task):
        raise RunError("the disk is full")

    monkeypatch.setattr("untaint.defenses.spectral.Spectral.score", full)
    with pytest.raises(RunError, match="the disk is full"):
        runner(tmp_path, photos).run()
    assert len(found_in(tmp_path, photos)) == 3


def test_what_cannot_be_is_said_before_anything_runs(tmp_path, photos):
    text = TEXT.replace("target=1,rate=0.05", "target=1,rate=0.95")
    with pytest.raises(InputError, match=r"photos, two, probes 40, seed 0: rate=0\.95"):
        runner(tmp_path, photos, text=text).run()
    assert not (tmp_path / "results").exists()


def test_a_setting_that_another_process_is_at_is_left_to_it(tmp_path, photos):
    first = runner(tmp_path, photos, seeds="[0, 1]")
    first.check()
    with first._claim(first.grid.cells[0][0]) as mine:
        assert mine
        other = runner(tmp_path, photos, seeds="[0, 1]")
        assert other.run() == 4
        assert {r["origin"]["setting"]["seed"] for r in found_in(tmp_path, photos, seeds="[0, 1]")} == {1}
    assert runner(tmp_path, photos, seeds="[0, 1]").run() == 0
    assert len(found_in(tmp_path, photos, seeds="[0, 1]")) == 8


def test_two_processes_run_each_cell_once(tmp_path, photos):
    text = TEXT.replace(', "random @ fraction:share=0.1", "spectral"', "")
    (tmp_path / "grid.toml").write_text(text.replace("PLACE", str(photos)).replace("SEEDS", "[0, 1, 2]"))
    code = (
        "import sys; from dataclasses import replace; sys.path.insert(0, sys.argv[1]); import small;"
        "from untaint import recipe; recipe.PRESETS['fast'] = replace(small.preset(), name='fast');"
        "from untaint.__main__ import main; main(['bench', 'grid.toml', '--results', 'results', '--out', 'work'])"
    )
    command = [sys.executable, "-c", code, str(Path(small.__file__ or "").parent)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(command, cwd=tmp_path, env=alone, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    begun = [line for text in said for line in text.splitlines() if "cells to go" in line]
    assert len(begun) == 6, begun
    assert len(list((tmp_path / "results").glob("*.json"))) == 6


def test_where_only_detection_is_asked_for_nothing_is_trained_on_what_is_kept(tmp_path, photos):
    text = TEXT.replace('"none", ', "").replace("probes = 40", "probes = 40\ndetect_only = true")
    made = runner(tmp_path, photos, text=text)
    made.run()
    found = results_of(made.grid, made.results)
    assert [sorted(one["stages"]) for one in found] == [[], [], ["undefended"]]
    assert all("model" not in one and "auroc" in one["detection"]["all"] for one in found)
    line = next(line for line in render(found, "markdown").splitlines() if "spectral" in line)
    assert line.split("|")[2:4] == [" – ", " – "]
    text = render(found, "markdown", per_attack=True)
    assert "AUROC patch" in text
    assert "ASR" not in text
    assert draw(found, tmp_path / "plots")


def test_classes_that_differ_between_parts_are_refused(tmp_path, photos, monkeypatch):
    train, test = small.pictures(60), replace(small.pictures(60), class_names=("a", "b", "c"))
    monkeypatch.setattr(module, "read", lambda *_: (train, test))
    with pytest.raises(InputError, match="the classes of 'photos' differ"):
        runner(tmp_path, photos).run()


def test_scores_of_a_cell_are_of_its_own_draw(tmp_path, photos):
    runner(tmp_path, photos, seeds="[0, 1]").run()
    drawn = [
        [own["set aside"] for own in r["removal"]["classes"].values()]
        for r in found_in(tmp_path, photos, seeds="[0, 1]")
        if r["defence"].startswith("random")
    ]
    assert len(drawn) == 2
    assert drawn[0] != drawn[1]
    assert all(sum(one) == 30 for one in drawn)
