"""The command ``untaint bench`` on real pictures, as a person gives it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from untaint.__main__ import main

SMOKE = Path(__file__).parents[2] / "experiments" / "smoke.toml"


def give(*words: object) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code


def test_the_smoke_grid_runs_shows_its_table_and_draws_its_plots(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert give("bench", SMOKE, "--pictures", tmp_path / "plots") == 0
    text = capsys.readouterr()
    assert "6 cells, 0 of them done before." in text.err
    lines = [line.split()[0] for line in text.out.splitlines() if line[:1].isalpha()]
    assert lines[2:8] == ["none", "oracle", "random", "badloss", "spectral", "clustering"]
    assert "1 seed, fewer than 3" in text.out
    assert len(list((tmp_path / "results" / "smoke").glob("*.json"))) == 6
    kinds = {path.stem.rpartition("-")[2] for path in (tmp_path / "plots").glob("*.svg")}
    assert kinds == {"roc", "rejection", "cost", "scores", "trajectories"}
    assert give("bench", SMOKE, "--table", "--format", "csv") == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    by_name = {line["defence"]: line for line in table}
    assert float(by_name["oracle"]["AUROC"]) == 1
    assert float(by_name["oracle"]["recall"]) == 1
    assert 0.3 < float(by_name["random @ fraction:share=0.1"]["AUROC"]) < 0.7


def test_wrong_words_are_answered_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert give("bench", "smoke.toml") == 2
    assert "smoke.toml does not exist" in capsys.readouterr().err
    assert give("bench", SMOKE, "--data", "sample") == 2
    assert "--data is 'sample'; give NAME=SOURCE" in capsys.readouterr().err
    assert give("bench", SMOKE, "--data", "samples=x") == 2
    assert "Did you mean 'sample'" in capsys.readouterr().err
    assert give("bench", SMOKE, "--table") == 0
    assert capsys.readouterr().out == "No results yet.\n"
    assert list(tmp_path.iterdir()) == []
