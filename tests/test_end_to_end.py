"""The whole path on real pictures, as a user walks it: poison, scan, look, score again, train, evaluate, in one folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import untaint as ut
from untaint import samples
from untaint.__main__ import main
from untaint.recipe import preset


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class: 300 pictures of three classes."""
    folder = tmp_path_factory.mktemp("photos")
    examples = ut.load(samples.path())
    for label, name in enumerate(examples.class_names[:3]):
        (folder / name).mkdir()
        for row in np.flatnonzero(examples.labels == label)[:100]:
            Image.fromarray(examples.images[row].transpose(1, 2, 0)).save(folder / name / f"{row}.png")
    return folder


def test_the_whole_path(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dirty, run = tmp_path / "dirty", tmp_path / "run"
    attack = "patch:target=0,rate=0.1"
    assert command("poison", photos, "--attack", attack, "--out", dirty, "--quiet") == 0
    ledger = ut.Ledger.load(f"{dirty}.ledger.parquet")
    assert len(ledger.poisoned()) == 30

    assert command("probes", dirty, "--suggest", 60, "--out", tmp_path / "p.txt", "--quiet") == 0
    assert command("probes", dirty, "--check", tmp_path / "p.txt", "--quiet") == 0
    capsys.readouterr()

    arguments = ("scan", dirty, "--probes", tmp_path / "p.txt", "--out", run, "--epochs", 2, "--json", "--quiet")
    assert command(*arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 300
    kept, rejected = (
        (run / "kept.txt").read_text().split("\n")[:-1],
        (run / "rejected.txt").read_text().split("\n")[:-1],
    )
    assert len(kept) == told["counts"]["kept"]
    assert len(kept) + len(rejected) == 300
    table = pq.read_table(run / "scores.parquet").to_pandas()
    assert sorted(table["rank"]) == list(range(1, 301))
    assert (run / "report.html").stat().st_size < 10e6
    before = (run / "scores.parquet").read_bytes()

    assert command(*arguments) == 0  # all stages are done: the same command gives the same again
    assert (run / "scores.parquet").read_bytes() == before
    capsys.readouterr()

    assert command("score", run, "--reject", "fraction:share=0.1", "--check", "--quiet") == 3
    assert len((run / "rejected.txt").read_text().split("\n")[:-1]) == 30
    clean = tmp_path / "clean"
    assert command("train", dirty, "--without", run / "rejected.txt", "--out", clean, "--epochs", 15, "--quiet") == 0
    capsys.readouterr()
    assert command("evaluate", clean, photos, "--split", "train", "--json", "--quiet") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == 300
    assert found["accuracy"] > 1 / 3  # better than chance on three classes


def test_poison_that_a_model_learns_is_ranked_first(tmp_path: Path) -> None:
    """Strong poison, a few epochs: most of the worst tenth is poison, and the ledger is not where a defence could look."""
    whole = ut.load(samples.path())
    rows = np.flatnonzero(whole.labels < 4)[:1200]
    examples = ut.Examples.of(whole.images[rows], whole.labels[rows], class_names=whole.class_names[:4])
    probes = examples.rows[::10]
    dirty, ledger = ut.poison(
        examples, [ut.ATTACKS.build("blend:pattern=lattice,alpha=0.3,target=0,rate=0.1")], spare=probes
    )
    short = preset("fast").changed(epochs=4)
    short = replace(short, watch=replace(short.watch, batch=32), witness=replace(short.witness, batch=32))
    result = ut.scan(dirty, probes=probes, out=tmp_path / "run", preset=short, retrain=False)
    order = np.argsort(-result.scores.values)[:100]
    assert np.isin(order, ledger.poisoned()).mean() > 0.8
    assert not np.isin(result.rejected, probes).any()
