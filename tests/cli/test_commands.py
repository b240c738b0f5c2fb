"""Every command once, end to end, on real pictures."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import untaint as ut
from untaint import demo

from .conftest import CLASSES
from .terminal import SMALL_DATA_TOO, Outcome, epochs, told

Made = tuple[Path, Outcome]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def subprocess_of(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "untaint", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)  # type: ignore[call-overload]


def test_poison_writes_data_ledger_and_triggered_tests(dirty: Made) -> None:
    out, outcome = dirty
    assert outcome.code == 0, outcome.err
    ledger = ut.Ledger.load(f"{out}.ledger.parquet")
    assert len(ledger.poisoned()) == 21
    data = ut.load(out)
    assert sorted(data.keys) == sorted(ledger.keys)
    assert set(data.labels[data.find([ledger.keys[row] for row in ledger.poisoned()])]) == {CLASSES.index("ship")}
    assert len(ut.load(out, split="test")) == 60
    triggered = ut.load(f"{out}.triggered/patch/test-00000-of-00001.parquet", size=32, fewest_classes=1)
    assert len(triggered) == 40
    assert "21" in outcome.out
    assert f"untaint probes {out} --suggest 250" in outcome.out


def test_what_poison_spared_can_be_handed_to_scan_as_probes(photos: Path, tmp_path: Path) -> None:
    spared, out = tmp_path / "probes.txt", tmp_path / "two"
    assert told("probes", photos, "--suggest", 30, "--out", spared, "--quiet").code == 0
    outcome = told("poison", photos, "--attack", "patch:target=ship,rate=0.1", "--spare", spared, "--out", out)
    assert f"untaint scan {out} --probes {out}.spare.txt" in outcome.out
    checked = told("probes", out, "--check", f"{out}.spare.txt", "--quiet")
    assert "30 probes, all in the data." in checked.out


def test_probes_suggest_balanced(dirty: Made, probes: Made) -> None:
    path, outcome = probes
    assert outcome.code == 0, outcome.err
    drawn = ut.load(dirty[0]).take(ut.load(dirty[0]).find(path))
    assert drawn.counts().tolist() == [20, 20, 20]
    sheet = path.with_suffix(".html").read_text()
    assert all(key in sheet for key in lines(path))
    assert f"--probes {path}" in outcome.out


def test_probes_suggest_draws_uniformly_and_the_same_again(photos: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = ("--suggest", 30, "--seed", seed, "--out", tmp_path / f"{name}.txt", "--quiet")
        assert told("probes", photos, *words).code == 0
    assert lines(tmp_path / "a.txt") == lines(tmp_path / "b.txt") != lines(tmp_path / "c.txt")
    assert len(set(lines(tmp_path / "a.txt"))) == 30


def test_the_next_command_reads_the_same_data(photos: Path, tmp_path: Path) -> None:
    words = ("--suggest", 30, "--split", "test", "--size", 16, "--quiet")
    outcome = told("probes", photos, *words, "--out", tmp_path / "p q.txt")
    command = re.search(r"untaint (scan .*) --out", outcome.out)
    assert command is not None
    expected = ["scan", str(photos), "--split", "test", "--size", "16", "--probes", str(tmp_path / "p q.txt")]
    assert shlex.split(command[1]) == expected
    run = tmp_path / "run"
    outcome = told(*expected, "--out", run, *epochs(1), "--no-retrain", "--quiet")
    assert outcome.code == 0, outcome.err
    assert f"untaint train {photos} --split test --size 16 --without {run / 'rejected.txt'}" in outcome.out


def test_probes_check(dirty: Made, probes: Made) -> None:
    outcome = told("probes", dirty[0], "--check", probes[0])
    assert outcome.code == 0, outcome.err
    assert re.search(r"airplane +20\b", outcome.out)
    assert "60 probes" in outcome.out


def test_scan_leaves_all_it_promises(scanned: Made, probes: Made) -> None:
    run, outcome = scanned
    assert outcome.code == 3, outcome.err  # --check, and something was set aside
    kept, rejected = lines(run / "kept.txt"), lines(run / "rejected.txt")
    assert len(kept) + len(rejected) == 210
    assert 0 < len(rejected) <= 21
    assert not set(kept) & set(rejected)
    assert not set(rejected) & set(lines(probes[0]))
    table = pq.read_table(run / "scores.parquet").to_pandas()
    assert set(table[table.verdict == "rejected"].key) == set(rejected)
    assert lines(run / "unreadable.txt") == []
    assert (run / "report.html").stat().st_size < 10e6
    assert f"{len(rejected)} of 210 pictures were set aside." in outcome.out
    for name in ("report.html", "rejected.txt", "model"):
        assert str(run / name) in outcome.out
    model = ut.load_model(run / "model")
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_scan_again_trains_nothing_and_says_the_same(scanned: Made, dirty: Made, probes: Made) -> None:
    run, _ = scanned
    before = (run / "scores.parquet").read_bytes()
    made = (run / "model" / "model.safetensors").stat().st_mtime_ns
    again = ("--probes", probes[0], "--out", run, *epochs(2), "--reject", "fraction:share=0.1")
    outcome = told("scan", dirty[0], *again)
    assert outcome.code == 0, outcome.err  # without --check
    assert (run / "scores.parquet").read_bytes() == before
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == made


def test_json_is_one_object_and_quiet_is_silent(scanned: Made) -> None:
    run, _ = scanned
    outcome = told("score", run, "--json", "--quiet", "--reject", "fraction:share=0.1")
    assert outcome.code == 0
    assert outcome.err == ""
    summary = json.loads(outcome.out)
    assert summary["rows"] == 210
    assert summary["report"] == str(run / "report.html")
    assert " DATA " not in summary["next"]
    assert f"--without {run / 'rejected.txt'} --out " in summary["next"]


def test_score_decides_again_with_marks(scanned: Made, tmp_path: Path) -> None:
    run, _ = scanned
    rejected = lines(run / "rejected.txt")
    kept = next(key for key in lines(run / "kept.txt") if key.startswith("bird"))
    poison = lines(run / "kept.txt")[-1]
    marks = tmp_path / "marks.txt"
    marks.write_text(f"fine\t{rejected[0]}\npoison\t{poison}\nfine\t{kept}\n")
    outcome = told("score", run, "--reject", "fraction:share=0.1", "--marks", marks)
    try:
        if outcome.code == 2:  # the last kept picture may be a probe, which nobody may call poison
            assert "it is a probe" in outcome.err
        else:
            assert set(lines(run / "rejected.txt")) == {*rejected, poison} - {rejected[0]}
    finally:
        assert told("score", run, "--reject", "fraction:share=0.1").code == 0
    assert lines(run / "rejected.txt") == rejected


def test_probes_that_score_like_what_was_set_aside_are_named(scanned: Made, probes: Made) -> None:
    run, _ = scanned
    try:
        outcome = told("score", run, "--reject", "fraction:share=0.8")
        assert outcome.code == 0, outcome.err
        table = pq.read_table(run / "scores.parquet").to_pandas()
        threshold = table.score[table.verdict == "rejected"].min()
        expected = table[table.probe & (table.score >= threshold)].sort_values("score", ascending=False)
        assert 20 < len(expected) <= 60
        assert lines(run / "doubtful_probes.txt") == list(expected.key)
        assert f"{len(expected)} of 60 probes score like what was set aside" in outcome.out
        assert str(run / "doubtful_probes.txt") in outcome.out
        page = (run / "report.html").read_text("utf-8")
        assert page.count('class="open probe"') >= len(expected)
    finally:
        assert told("score", run, "--reject", "fraction:share=0.1").code == 0
    assert len(lines(run / "doubtful_probes.txt")) < 20


def test_score_without_finds_gives_0_with_check(scanned: Made) -> None:
    run, _ = scanned
    try:
        outcome = told("score", run, "--reject", "above:score=1e9", "--check")
        assert outcome.code == 0
        assert "0 of 210 pictures were set aside." in outcome.out
    finally:
        assert told("score", run, "--reject", "fraction:share=0.1", "--check").code == 3


def test_report_can_be_written_elsewhere(scanned: Made, tmp_path: Path) -> None:
    outcome = told("report", scanned[0], "--out", tmp_path / "page.html")
    assert outcome.code == 0
    assert outcome.out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().lower().startswith("<!doctype html>")


def test_train_and_evaluate(scanned: Made, dirty: Made, probes: Made, tmp_path: Path) -> None:
    words = ("--without", scanned[0] / "rejected.txt", *epochs(2), "--out", tmp_path / "clean")
    outcome = told("train", dirty[0], *words, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    left_out = len(lines(scanned[0] / "rejected.txt"))
    assert json.loads(outcome.out) == {
        "out": str(tmp_path / "clean"),
        "trained_on": 210 - left_out,
        "left_out": left_out,
    }
    card = json.loads((tmp_path / "clean" / "model.json").read_text())
    assert card["rows"] == 210 - left_out
    assert tuple(card["class_names"]) == CLASSES

    test = ut.load(dirty[0], split="test", size=32)
    expected = ut.evaluate(ut.load_model(tmp_path / "clean"), test)
    for data in (dirty[0], dirty[0] / "test"):  # the whole, whose part test is taken; or that part itself
        outcome = told("evaluate", tmp_path / "clean", data, "--json", "--quiet")
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out) == expected
    triggered = f"{dirty[0]}.triggered/patch/test-00000-of-00001.parquet"
    outcome = told("evaluate", tmp_path / "clean", triggered)
    assert outcome.code == 0, outcome.err
    assert "of 40 pictures are labelled right" in outcome.out

    look = ("spectrum", tmp_path / "clean", dirty[0], "--attack", "patch:target=0", "--attack", "blend:target=1")
    outcome = told(*look, "--out", tmp_path / "look", "--at", "1.head", "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert list(found["triggers"]) == ["patch", "blend"]
    success = ut.accuracy(ut.load_model(tmp_path / "clean"), ut.triggered(test, ut.ATTACKS.build("patch:target=0")))
    assert found["triggers"]["patch"]["success"][0] == pytest.approx(success)
    assert found["triggers"]["patch"]["accuracy"][0] == pytest.approx(expected["accuracy"])
    kept = np.load(tmp_path / "look" / "spectrum.npz")
    assert kept["patch energy"].sum() == pytest.approx(1, abs=0.01), "three logits have three directions"
    assert (tmp_path / "look" / "spectrum.svg").read_text().startswith("<?xml")
    outcome = told(*look, "--out", tmp_path / "look", "--at", "1.head")
    assert outcome.code == 0, outcome.err
    assert "patch: taken for the right class, the target " in outcome.out
    outcome = told(*look, "--out", tmp_path / "look", "--at", "hed")
    assert outcome.code == 2
    assert "no layer 'hed'" in outcome.err

    mended = ("repair", tmp_path / "clean", dirty[0], "--defense", "repair:apart=2", "--out", tmp_path / "mended")
    outcome = told(*mended)
    assert outcome.code == 0, outcome.err
    keys = {line.split("\t")[0] for line in lines(tmp_path / "mended" / "overlooked.txt")}
    assert keys <= set(ut.load(dirty[0]).keys), "two deviations are so few that something is"
    assert f"names {len(keys)} pictures" in outcome.out
    assert len(keys) >= 10
    assert (tmp_path / "mended" / "overlooked.png").read_bytes()[:4] == b"\x89PNG"
    again = json.loads(told(*mended, "--json", "--quiet").out)
    assert sum(group["pictures"] for group in again["groups"]) >= len(keys)
    assert told("evaluate", tmp_path / "mended", dirty[0], "--quiet").code == 0
    outcome = told(*mended[:4], "repair:apart=9", *mended[5:])
    assert outcome.code == 2
    assert "repair:apart=9" in outcome.err
    outcome = told("repair", tmp_path / "clean", dirty[0], "--defense", "repair:apart=900", "--out", tmp_path / "same")
    assert "nothing was changed" in outcome.out
    assert not (tmp_path / "same" / "overlooked.png").exists()
    for wrong, said in (
        ("repair:apart=0", "apart is 0"),
        ("repair:at=bdy", "no layer 'bdy'"),
        ("fine-tuning", "there are 0 pictures known to be clean"),
        ("spectral", "'spectral' does not mend a model that is trained"),
    ):
        outcome = told("repair", tmp_path / "clean", dirty[0], "--defense", wrong, "--out", tmp_path / "wrong")
        assert outcome.code == 2
        assert said in outcome.err
        assert not (tmp_path / "wrong").exists(), "the right command may use the folder"
    tuned = ("repair", tmp_path / "clean", dirty[0], "--defense", "fine-tuning:steps=3", "--clean", probes[0])
    outcome = told(*tuned, "--out", tmp_path / "tuned")
    assert outcome.code == 0, outcome.err
    assert re.search(r"Right about [\d.]+% of the 60 clean pictures; [\d.]+% before\.", outcome.out)
    assert json.loads(told(*tuned, "--out", tmp_path / "tuned", "--json", "--quiet").out)["clean"] == 60
    assert told("evaluate", tmp_path / "tuned", dirty[0], "--quiet").code == 0


def test_train_by_a_defence_that_resists(dirty: Made, probes: Made, tmp_path: Path) -> None:
    out = tmp_path / "guarded"
    words = ("train", dirty[0], "--defense", "eigenguard:k=4", *epochs(1), "--json", "--quiet")
    outcome = told(*words, "--out", out, "--probes", probes[0])
    assert outcome.code == 0, outcome.err
    assert json.loads((out / "model.json").read_text())["model"] == "proxy+eigenguard:k=4"
    assert told("evaluate", out, dirty[0], "--quiet").code == 0
    before = (out / "stages" / "model" / "model.safetensors").stat().st_mtime_ns
    assert told(*words, "--out", out, "--probes", probes[0]).code == 0
    assert (out / "stages" / "model" / "model.safetensors").stat().st_mtime_ns == before, "nothing is trained again"
    outcome = told(*words, "--out", out)
    assert outcome.code == 2, "the folder was begun with probes"
    unlearned = (
        "train",
        dirty[0],
        "--defense",
        "unlearning:steps=2",
        *epochs(1),
        "--quiet",
        "--out",
        tmp_path / "less",
    )
    outcome = told(*unlearned, "--without", probes[0])
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "less" / "model.json").read_text())["rows"] == 210, "what it unlearns it had learned"
    for wrong, said in (
        (("--defense", "spectral"), "untaint scan DATA --detector spectral"),
        (("--defense", "nad"), "untaint repair MODEL DATA --defense nad"),
        (("--defense", "eigengard"), "Did you mean 'eigenguard'?"),
        (("--probes", probes[0]), "--probes are for a --defense"),
    ):
        outcome = told("train", dirty[0], *wrong, "--out", tmp_path / "wrong")
        assert outcome.code == 2
        assert said in outcome.err
        assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("what", ["attacks", "defenses", "models", "presets", "rules"])
def test_list(what: str) -> None:
    outcome = told("list", what)
    assert outcome.code == 0
    expected = {
        "attacks": "patch",
        "defenses": "cross-examination",
        "models": "resnet50",
        "presets": "paper",
        "rules": "gap",
    }
    assert re.search(rf"^  {expected[what]}\b", outcome.out, re.MULTILINE)
    assert max(map(len, outcome.out.splitlines())) <= 100
    if what == "models":
        assert re.search(
            r"^  NAME\+eigenguard .*\n(.*\n)? +at=before-pool, k=50, remainder=0\.001", outcome.out, re.MULTILINE
        )
    if what == "attacks":
        assert re.search(r"^ +cell, corner$", outcome.out, re.MULTILINE)
        assert re.search(
            r"^  \(every attack\).*\n +target=0, rate=0\.01, .*labels=all-to-one", outcome.out, re.MULTILINE | re.DOTALL
        )
        assert "None" not in outcome.out
        assert "``" not in outcome.out


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_demo", functools.partial(demo.run_demo, pictures=500, epochs=1))
    outcome = told("demo", "--out", tmp_path / "demo", "--quiet")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    for words in (
        "not poisoned",
        "clean accuracy",
        "ASR patch",
        str(tmp_path / "demo" / "report.html"),
        "untaint scan",
    ):
        assert words in outcome.out
    assert (tmp_path / "demo" / "report.html").exists()


def test_version_and_python_m() -> None:
    for words in (("--version",), ("list", "presets")):
        outcome = subprocess_of(*words)
        assert outcome.returncode == 0
        assert outcome.stderr == ""
        assert outcome.stdout == told(*words).out
    assert subprocess_of("--version").stdout.strip() == ut.__version__


def test_a_real_process_scans_a_table_by_names_of_columns(tmp_path: Path, photos: Path) -> None:
    data = ut.load(photos)
    rows = np.arange(0, 210, 3)
    table = tmp_path / "photos.csv"
    entries = [f"train/{data.keys[row]};{data.class_names[data.labels[row]]};x" for row in rows]
    (tmp_path / "train").symlink_to(photos / "train")
    table.write_text("\n".join(["where;kind;other", *entries]) + "\n")
    (tmp_path / "probes.txt").write_text("\n".join(entry.split(";")[0] for entry in entries[::2]) + "\n")
    words = ("--image-column", "where", "--label-column", "kind", "--no-retrain", "--quiet", "--json")
    words += ("--defense", "pattern")
    run = tmp_path / "run"
    outcome = subprocess_of("scan", table, "--probes", tmp_path / "probes.txt", "--out", run, *words)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    assert json.loads(outcome.stdout)["rows"] == 70
    assert not (run / "model").exists()


def test_help_teaches() -> None:
    alone, asked = told(), told("--help")
    assert alone == asked
    assert alone.code == 0
    for name in (
        "scan",
        "score",
        "train",
        "evaluate",
        "poison",
        "probes",
        "report",
        "repair",
        "spectrum",
        "list",
        "demo",
    ):
        assert re.search(rf"^  {name} +\S", alone.out, re.MULTILINE)
        page = told(name, "--help")
        assert page.code == 0
        assert page.err == ""
        assert page.out.startswith(f"usage: untaint {name}")
        assert "None" not in page.out
        assert "STR" not in page.out
        assert "(default: False)" not in page.out
        if name not in ("list", "demo"):
            assert f"Example: untaint {name} " in page.out


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys, untaint.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'datasets', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(','.join(heavy) or 0)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert outcome.returncode == 0, outcome.stderr


def test_without_a_compiler_compiling_is_refused_in_one_sentence(few: Path, few_probes: Path, tmp_path: Path) -> None:
    nowhere = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    words = ("scan", few, "--probes", few_probes, "--out", tmp_path / "run", *epochs(1), "--compile", "--quiet")
    command = [sys.executable, "-c", SMALL_DATA_TOO, *map(str, words)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=nowhere)
    assert outcome.returncode == 2, outcome.stderr
    assert re.search(
        r"^untaint: torch.compile does not work here \(.*\)\. Leave out --compile\.$", outcome.stderr, re.M
    )
    assert "Traceback" not in outcome.stderr
