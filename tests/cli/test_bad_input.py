"""Input that cannot be used: exit code 2, one sentence that names it, and nothing left that looks finished."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shlex
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from untaint import run as runs
from untaint import samples
from untaint.recipe import PRESETS, Recipe

from .conftest import keys_of
from .terminal import Outcome, epochs, refused, told

Made = tuple[Path, Outcome]


def check(data: object, *words: object) -> str:
    """What a scan of these data says; the probes do not matter, for the data are refused first."""
    return refused("scan", data, "--probes", "/dev/null", "--out", "/proc/never", "--quiet", *words)


def unfinished(run: Path) -> None:
    """Nothing may look as if the run had been finished."""
    for name in ("summary.json", "scores.parquet", "kept.txt", "rejected.txt", "report.html", "model/done.json"):
        assert not (run / name).exists(), name
    assert not list(run.rglob("*.part"))


# ---- what the data are


def test_path_missing(photos: Path, tmp_path: Path) -> None:
    assert "no folder or file" in check(tmp_path / "none")
    message = check(photos.parent / "phots")
    assert str(photos.parent / "phots") in message
    assert "Did you mean 'photos'?" in message


def test_empty_folder(tmp_path: Path) -> None:
    assert re.search(rf"{tmp_path} is empty\. Give a folder", check(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    assert "no pictures" in check(tmp_path)


def test_flat_folder_has_no_labels(few: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(few / "ship", flat)
    assert re.search(r"12 pictures in .* have no labels\. Sort them", check(flat))


def test_one_class_only(few: Path) -> None:
    shutil.rmtree(few / "ship")
    shutil.rmtree(few / "bird")
    message = check(few)
    assert "all 12 pictures" in message
    assert "'airplane'" in message
    assert "at least two classes" in message


def test_a_class_with_one_picture_is_scanned(few: Path, few_probes: Path, tmp_path: Path) -> None:
    for path in sorted((few / "ship").iterdir())[1:]:
        path.unlink()
    few_probes.write_text("\n".join([*keys_of(few, 36)[:20], "ship/000.png"]) + "\n")
    words = ("--probes", few_probes, "--out", tmp_path / "run", *epochs(1))
    outcome = told("scan", few, *words)
    assert outcome.code == 0, outcome.err
    assert "class 'ship' has one picture" in outcome.err


LABELS = {
    "empty": (["cat", "", "dog"], r"'b\.png' .* has no label\."),
    "negative": (["0", "-1", "1"], r"'b\.png' .* has the label -1\."),
    "text in numbers": (["0", "one", "1"], r"'b\.png' .* has the label 'one'\. 2 other labels are numbers"),
    "fraction": (["0", "0.5", "1"], r"'b\.png' .* has the label 0\.5\. Give whole numbers"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_none(kind: str, few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for name, source in zip("abc", sorted((few / "ship").iterdir()), strict=False):
        shutil.copy(source, folder / f"{name}.png")
    labels, expected = LABELS[kind]
    rows = [f"{name}.png,{label}" for name, label in zip("abc", labels, strict=True)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    assert re.search(expected, check(folder))


def test_labels_of_a_table(few: Path, tmp_path: Path) -> None:
    picture = (few / "ship" / "000.png").read_bytes()
    table = tmp_path / "t.parquet"
    for labels, expected in {
        (0, None, 1): r"has no label\.",
        (0, -1, 1): r"has the label -1\.",
        ((0, 1), (1,), (0,)): r"multi-label data cannot be used\.",
    }.items():
        values = [list(label) if isinstance(label, tuple) else label for label in labels]
        pq.write_table(pa.table({"image": [picture] * 3, "label": values}), table)
        assert re.search(expected, check(table))
    pq.write_table(pa.table({"image": [picture] * 3}), table)
    assert "has no labels" in check(table)


def test_duplicate_keys(few: Path, tmp_path: Path) -> None:
    (few / "labels.csv").write_text("file_name,label\nship/000.png,a\nship/000.png,b\n")
    assert re.search(r"'ship/000\.png' occurs twice in .*labels\.csv", check(few / "labels.csv"))
    picture = (few / "ship" / "000.png").read_bytes()
    pq.write_table(pa.table({"image": [picture] * 2, "label": [0, 1], "key": ["k", "k"]}), tmp_path / "t.parquet")
    assert "the key 'k' occurs 2 times in column 'key'" in check(tmp_path / "t.parquet")


def test_column_and_split_that_are_not_there(photos: Path) -> None:
    assert "has no split 'tset'. Did you mean 'test'?" in check(photos, "--split", "tset")
    assert "has no column 'lable' for the labels. Did you mean 'label'?" in check(
        samples.path(), "--label-column", "lable"
    )


def damage(folder: Path) -> list[str]:
    """Make five pictures of a folder unreadable, each in its own way, and return their keys."""
    whole = (folder / "ship" / "000.png").read_bytes()
    (folder / "ship" / "text.jpg").write_text("this is no picture")
    (folder / "ship" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bird" / "empty.png").write_bytes(b"")
    chunk = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    bomb = whole[:8] + (13).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + whole[33:]
    (folder / "bird" / "bomb.png").write_bytes(bomb)
    (folder / "bird" / "nowhere.png").symlink_to(folder / "gone.png")
    return ["bird/bomb.png", "bird/empty.png", "bird/nowhere.png", "ship/cut.png", "ship/text.jpg"]


def test_unreadable_pictures_are_set_aside(few: Path, few_probes: Path, tmp_path: Path) -> None:
    damaged, run = damage(few), tmp_path / "run"
    outcome = told("scan", few, "--probes", few_probes, "--out", run, *epochs(1), "--no-retrain")
    assert outcome.code == 0, outcome.err
    assert "5 pictures cannot be read" in outcome.err
    assert f"5 pictures could not be read: {run / 'unreadable.txt'}" in outcome.out
    assert sorted(runs.read_keys(run / "unreadable.txt")) == damaged
    assert all(reason for _, reason in runs.read_labelled_keys(run / "unreadable.txt"))
    assert json.loads((run / "summary.json").read_text())["unreadable"] == 5
    listed = [*runs.read_keys(run / "kept.txt"), *runs.read_keys(run / "rejected.txt")]
    assert len(listed) == 36
    assert not set(listed) & set(damaged)
    assert "5" in (run / "report.html").read_text()


def test_all_unreadable(few: Path) -> None:
    for path in few.rglob("*.png"):
        path.write_bytes(b"nothing")
    message = check(few)
    assert "none of the 36 pictures" in message
    assert "it is no picture in a format that can be read" in message


# ---- names


HOSTILE = [
    "two words.png",
    " begins with a space.png",
    "line\nbreak.png",
    "a \"quote\" and 'another'.png",
    '"begins with a quote.png',
    "#begins like a comment.png",
    "<script>alert(1)</script>.png",
    "日本語 ünïcode 🚢.png",
    "tab\there.png",
    "back\\slash.png",
    "\x1b[31mred.png",
    "--out.png",
]
RAW = b"bytes\xff\xfe.png"  # a name that is no Unicode


@pytest.mark.parametrize("with_raw", [False, True], ids=["unicode", "no unicode"])
def test_hostile_names_go_the_whole_way(few: Path, tmp_path: Path, with_raw: bool) -> None:
    odd = few / '<blink>"odd"\n& class'
    (few / "ship").rename(odd)
    picture = (odd / "000.png").read_bytes()
    for name in HOSTILE:
        (odd / name.replace("/", "∕")).write_bytes(picture)
    if with_raw:
        Path(os.fsdecode(os.fsencode(odd) + b"/" + RAW)).write_bytes(picture)
    few, probes = few.rename(tmp_path / "my 'pictures'"), tmp_path / "the probes.txt"
    outcome = told("probes", few, "--suggest", 30, "--out", probes, "--quiet")
    assert outcome.code == 0, outcome.err
    assert told("probes", few, "--check", probes, "--quiet").code == 0
    run = tmp_path / "the run"
    words = (*epochs(1), "--no-retrain", "--reject", "fraction:share=1", "--quiet")
    outcome = told("scan", few, "--probes", probes, "--out", run, *words)
    assert outcome.code == 0, outcome.err
    assert "\x1b" not in outcome.out
    kept, rejected = runs.read_keys(run / "kept.txt"), runs.read_keys(run / "rejected.txt")
    found = {os.fsdecode(os.path.relpath(p, os.fsencode(few))) for p in map(os.fsencode, few.rglob("*.png"))}
    assert {*kept, *rejected} == found
    assert len(rejected) == len(found) - 30
    assert any("\n" in key for key in rejected)

    page = (run / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<blink>" not in page
    assert told("report", run).code == 0
    assert told("score", run, "--reject", "fraction:share=0.5", "--quiet").code == 0
    assert told("score", run, "--reject", "fraction:share=1", "--quiet").code == 0

    command = re.search(r"untaint (train .*) --model", outcome.out)
    assert command is not None
    assert shlex.split(command[1])[:2] == ["train", str(few)]
    outcome = told("train", few, "--without", run / "rejected.txt", "--out", tmp_path / "m", *epochs(1), "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["trained_on"] == 30
    outcome = told("evaluate", tmp_path / "m", few, "--quiet")
    assert outcome.code == 0, outcome.err
    outcome = told("poison", few, "--attack", "patch:target=bird,rate=0.2", "--out", tmp_path / "dirty", "--quiet")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "dirty").rglob("*.png"))) == len(found)


def test_symlink_loops(few: Path, few_probes: Path, tmp_path: Path) -> None:
    (few / "ship" / "again").symlink_to(few)
    (few / "loop").symlink_to(few / "loop")
    (few / "ship" / "self.png").symlink_to(few / "ship" / "self.png")
    run = tmp_path / "run"
    outcome = told("scan", few, "--probes", few_probes, "--out", run, *epochs(1), "--no-retrain", "--quiet")
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "summary.json").read_text())["rows"] == 36
    assert runs.read_keys(run / "unreadable.txt") == ["ship/self.png"]


# ---- probes


def scan_with(data: Path, probes: object, run: Path) -> str:
    message = refused("scan", data, "--probes", probes, "--out", run, "--quiet")
    assert not run.exists()
    if Path(str(probes)).is_file():
        assert refused("probes", data, "--check", probes, "--quiet") == message
    return message


def test_probes_not_in_the_data(few: Path, few_probes: Path, tmp_path: Path) -> None:
    few_probes.write_text(few_probes.read_text() + "shp/001.png\nother.png\n")
    message = scan_with(few, few_probes, tmp_path / "run")
    assert f"2 of 14 keys in {few_probes} are not in the data, first 'shp/001.png'" in message
    assert "ship/001.png" in message


def test_probes_missing(few: Path, tmp_path: Path) -> None:
    assert f"{tmp_path / 'no.txt'} does not exist" in scan_with(few, tmp_path / "no.txt", tmp_path / "run")
    (tmp_path / "empty.txt").write_text("# nothing yet\n\n")
    assert "there are 0 probes" in scan_with(few, tmp_path / "empty.txt", tmp_path / "run")


def test_too_few_probes(few: Path, few_probes: Path, tmp_path: Path) -> None:
    few_probes.write_text("\n".join(keys_of(few, 6)))
    message = scan_with(few, few_probes, tmp_path / "run")
    assert "there are 6 probes; give at least 10" in message


def test_probes_of_one_class(few: Path, few_probes: Path, tmp_path: Path) -> None:
    few_probes.write_text("\n".join(f"ship/{number:03d}.png" for number in range(12)))
    message = scan_with(few, few_probes, tmp_path / "run")
    assert "all 12 probes are of the class 'ship', but the data has 3" in message


def test_probes_labelled_differently(few: Path, few_probes: Path, tmp_path: Path) -> None:
    right = [f"{key}\t{key.partition('/')[0]}" for key in keys_of(few, 12)]
    few_probes.write_text("\n".join(right))
    assert told("probes", few, "--check", few_probes, "--quiet").code == 0
    few_probes.write_text("\n".join([*right[:-2], '"ship/002.png"\tbird', "ship/003.png\tcow"]))
    message = scan_with(few, few_probes, tmp_path / "run")
    assert "says that 'ship/002.png' is 'bird', but the data labels it 'ship'." in message


def test_trusted_pictures_of_other_classes(few: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(few, tmp_path / "trusted")
    (tmp_path / "trusted" / "ship").rename(tmp_path / "trusted" / "boat")
    message = scan_with(few, tmp_path / "trusted", tmp_path / "run")
    assert "a class 'boat', which the data has not (airplane, bird, ship" in message


def test_nothing_to_do_for_probes(few: Path) -> None:
    assert "give --suggest 250 --out probes.txt" in refused("probes", few, "--quiet")
    message = refused("probes", few, "--suggest", 1000, "--out", "/proc/never", "--quiet")
    assert "1000 probes were asked for, of 36 pictures" in message


# ---- where the output goes


@pytest.mark.parametrize("command", ["scan", "train", "poison", "probes", "report"])
def test_out_not_writable(command: str, few: Path, few_probes: Path, scanned: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    extra = {
        "scan": (few, "--probes", few_probes, "--quiet"),
        "train": (few, "--quiet"),
        "poison": (few, "--attack", "patch:target=ship,rate=0.2", "--quiet"),
        "probes": (few, "--suggest", 5, "--quiet"),
        "report": (scanned[0],),
    }[command]
    for out in (tmp_path / "file" / "below", Path("/proc/never/below")):
        message = refused(command, *extra, "--out", out)
        assert str(out.parent) in message
        assert "could not be written: " in message
        assert "Choose another --out" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few", "few-probes.txt", "file"]


def test_out_holds_something_else(few: Path, few_probes: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    message = refused("scan", few, "--probes", few_probes, "--out", tmp_path / "run", "--quiet")
    assert "it holds thesis.tex" in message
    message = refused("poison", few, "--attack", "patch:target=ship", "--out", tmp_path / "run", "--quiet")
    assert "exists already" in message


@pytest.mark.parametrize("after", [0, 3, 20])
def test_full_disk(after: int, few: Path, few_probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real, calls = tmp_path / "run", os.fsync, 0
    words = ("scan", few, "--probes", few_probes, "--out", run, *epochs(1), "--no-retrain", "--quiet", "--json")

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    assert told("probes", few, "--check", few_probes, "--quiet").code == 0  # the pixel cache is filled
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = refused(*words)
    assert message.startswith("the disk is full: ")
    assert "free some space and give the same command again" in message
    unfinished(run)
    outcome = told(*words)
    assert outcome.code == 0, outcome.err
    if after < 20:
        return
    fresh = told(*words[:5], tmp_path / "fresh", *words[6:])
    assert fresh.code == 0, fresh.err
    assert (run / "scores.parquet").read_bytes() == (tmp_path / "fresh" / "scores.parquet").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_full_disk_while_a_picture_is_written(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Path.write_bytes, 0

    def full(path: Path, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    out = tmp_path / "dirty"
    message = refused("poison", few, "--attack", "patch:target=ship,rate=0.2", "--out", out, "--quiet")
    assert message.startswith("the disk is full: ")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("dirty")]


# ---- settings


def test_loss_not_finite(few: Path, few_probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = PRESETS["fast"]
    wild = Recipe(epochs=2, learning_rate=1e30)
    monkeypatch.setitem(PRESETS, "fast", replace(fast, watch=wild, witness=wild, retrain=wild))
    run = tmp_path / "run"
    message = refused("scan", few, "--probes", few_probes, "--out", run, *epochs(2), "--quiet")
    assert re.search(r"(the loss is (nan|inf) at|the logits at) epoch [01]", message)
    assert re.search(r"[Ll]ower", message)
    unfinished(run)


UNKNOWN = {
    "preset": (("--preset", "fasst"), "no preset 'fasst'. Did you mean 'fast'?"),
    "model": (("--model", "resnet81"), "no model 'resnet81' in torchvision or timm. Did you mean 'resnet18'?"),
    "detector": (("--detector", "badlos"), "no defence 'badlos'. Did you mean 'badloss'?"),
    "detector option": (("--detector", "badloss:K=3,obsrvable=ce"), "'badloss' has no option"),
    "detector value": (("--detector", "badloss:observable=margn"), "Did you mean 'margin'?"),
    "rule": (("--reject", "fractoin:share=0.1"), "no rule 'fractoin'. Did you mean 'fraction'?"),
    "rule option": (("--reject", "fraction:shar=0.1"), "'fraction' has no option 'shar'. Did you mean 'share'?"),
    "rule value": (("--reject", "fraction:share=x"), "option 'share' of 'fraction' is 'x'; give a number."),
    "rule range": (("--reject", "fraction:share=7"), "7"),
    "share": (("--keep-per-class", "7"), "at_least is 7"),
    "option": (("--prbes", "x"), "'untaint scan' has no option '--prbes'. Did you mean '--probes'?"),
    "value": (("--epochs", "two"), "--epochs is 'two'; give a whole number."),
    "epochs": (("--epochs", "0"), "epochs is 0; give a number above zero."),
    "size": (("--size", "0"), "the size is 0. Give at least 1 pixel per side."),
    "choice": (("--augment", "cropp"), "--augment is 'cropp', which is not known. Did you mean 'crop'?"),
    "no value": (("--seed",), "--seed has no value after it."),
    "second data": (("more",), "'more' is more than 'untaint scan' takes"),
    "marks": (("--marks", "/nowhere/marks.txt"), "/nowhere/marks.txt cannot be read"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_settings(kind: str, few: Path, few_probes: Path, tmp_path: Path) -> None:
    words, expected = UNKNOWN[kind]
    run = tmp_path / "run"
    given = ("--preset", "fast") if kind != "preset" else ()
    message = refused("scan", few, "--probes", few_probes, "--out", run, "--quiet", *given, *words)
    assert expected in message
    assert not run.exists(), "refused before anything is made"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("scn", "x"), "no command 'scn'. Did you mean 'scan'?"),
        (("--versoin",), "no option '--versoin'. Did you mean '--version'?"),
        (("scan",), "'untaint scan' needs --out."),
        (("scan", "--probes", "p", "--out", "o"), "'untaint scan' needs DATA."),
        (("score",), "'untaint score' needs RUN."),
        (("list", "atacks"), "Did you mean 'attacks'?"),
        (("evaluate", "/nowhere", "x"), "/nowhere is no model of untaint"),
        (("score", "/nowhere"), "/nowhere is no run"),
        (("report", "/nowhere"), "/nowhere is no folder"),
    ],
)
def test_wrong_words(words: tuple[str, ...], expected: str) -> None:
    assert expected in refused(*words)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ("pacth:target=ship", "no attack 'pacth'. Did you mean 'patch'?"),
        ("patch:taget=ship", "'patch' has no option 'taget'. Did you mean 'target'?"),
        ("patch:target=shp,rate=0.2", "Did you mean 'ship'?"),
        ("patch:target=ship,rate=2", "2"),
        ("patch:target=ship,rate=lots", "option 'rate' of 'patch' is 'lots'; give a number."),
        ("patch:ship", "'ship' in 'patch:ship' is not 'key=value'."),
    ],
)
def test_unknown_attacks(attack: str, expected: str, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "dirty"
    assert expected in refused("poison", few, "--attack", attack, "--out", out, "--quiet")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("dirty")]


def test_another_run_in_the_folder(scanned: Made, dirty: Made, probes: Made) -> None:
    words = ("--probes", probes[0], "--out", scanned[0], "--quiet", *epochs(2), "--reject", "fraction:share=0.1")
    message = refused("scan", dirty[0], *words, "--seed", 5)
    assert f"{scanned[0]} was begun with seed = 0, now it is 5." in message
    message = refused("scan", f"{dirty[0]}", *words, "--size", 16)
    assert f"{scanned[0]} was begun with other data. Give the same data" in message
    message = refused("train", dirty[0], "--out", scanned[0], "--quiet")
    assert "was begun with kind = 'scan', now it is 'model'" in message


def test_options_that_need_training(scanned: Made) -> None:
    message = refused("score", scanned[0], "--detector", "cross-examination:trusted=0.4", "--quiet")
    assert "untaint scan --detector cross-examination:trusted=0.4 --out NEW" in message
    assert "--out NEW" in refused("score", scanned[0], "--detector", "badloss", "--quiet")


# ---- files that were altered


@pytest.fixture
def copied(scanned: Made, tmp_path: Path) -> Path:
    shutil.copytree(scanned[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    "name",
    [
        "settings.json",
        "labels.npy",
        "rows.npy",
        "probes.npy",
        "data.json",
        "watcher-a/done.json",
        "watcher-a/trajectories/margin/epoch_001.npy",
        "watcher-b/model.safetensors",
    ],
)
@pytest.mark.parametrize("how", ["cut", "turned"])
def test_altered_run_files(name: str, how: str, copied: Path) -> None:
    path = copied / name
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[len(content) // 2 :]
    elif name.endswith(".json"):
        content[content.index(b"{")] = ord("[")
    else:
        content[-1] ^= 255
    path.write_bytes(content)
    outcome = told("score", copied, "--quiet")
    assert "Traceback" not in outcome.err
    assert outcome.code == 2, outcome.out
    assert path.name in outcome.err
    assert re.search(r"[Rr]emove|again", outcome.err)


@pytest.mark.parametrize(("name", "entry"), [("settings.json", "seed"), ("data.json", "name")])
def test_run_files_that_are_still_json_but_say_something_else(name: str, entry: str, copied: Path) -> None:
    facts = json.loads((copied / name).read_text())
    (copied / name).write_text(json.dumps({**facts, entry: 7}))
    assert f"{copied / name} was altered since it was written." in refused("score", copied, "--quiet")


def test_altered_model(copied: Path, photos: Path) -> None:
    weights = copied / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 255
    weights.write_bytes(content)
    message = refused("evaluate", copied / "model", photos, "--quiet")
    assert f"{weights} was altered since it was written" in message
    weights.unlink()
    assert f"{weights} is missing" in refused("evaluate", copied / "model", photos, "--quiet")
    (copied / "model" / "model.json").write_text("{}")
    assert "was altered" in refused("evaluate", copied / "model", photos, "--quiet")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["model.pt", "model.pth", "folder/model.safetensors", "folder/model.pkl"])
def test_pickles_are_never_loaded(place: str, scanned: Made, photos: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".pth":
        torch.save(Trap(trap), path)
    else:
        path.write_bytes(pickle.dumps(Trap(trap)))
    model = path
    if place == "folder/model.safetensors":  # a pickle under the right name, with a card that fits it
        card = json.loads((scanned[0] / "model" / "model.json").read_text())
        card["sha256"] = runs.digest(path)
        (path.parent / "model.json").write_text(json.dumps(card))
        model = path.parent
    message = refused("evaluate", model, photos, "--quiet")
    assert not trap.exists()
    assert re.search(r"pickle|safetensors", message)


def test_pickled_arrays_are_never_loaded(copied: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    np.save(copied / "labels.npy", np.array([Trap(trap)], dtype=object), allow_pickle=True)
    assert "labels.npy" in refused("score", copied, "--quiet")
    assert not trap.exists()


def test_marks_that_cannot_be_obeyed(scanned: Made, probes: Made, tmp_path: Path) -> None:
    marks = tmp_path / "marks.txt"
    for text, expected in {
        "poisn\tship/000.png": "Did you mean 'poison'?",
        "fine ship/000.png": "a tab, and a key",
        "fine\tshp/000.png": "are not in the data",
        f"poison\t{probes[0].read_text().splitlines()[0]}": "but it is a probe",
    }.items():
        marks.write_text(text + "\n")
        assert expected in refused("score", scanned[0], "--marks", marks, "--quiet")
