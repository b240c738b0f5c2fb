"""How a command ends: exit codes, interruption, what goes to which stream, bars at a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from untaint import listing
from untaint.terminal import Bars, Lines, plain, table

from .conftest import keys_of
from .terminal import SMALL_DATA_TOO, Outcome, epochs, told

Made = tuple[Path, Outcome]


def test_an_internal_error_shows_where_and_asks_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(what: str) -> None:
        raise ZeroDivisionError("nobody expected this")

    monkeypatch.setattr(listing, "listing", broken)
    outcome = told("list", "attacks")
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert "nobody expected this" in outcome.err
    assert "Please report it" in outcome.err.splitlines()[-1]


def test_a_message_stays_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    outcome = told("scan", tmp_path / "two\nlines\x1b[31m", "--probes", "p", "--out", "o", "--quiet")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "\x1b" not in outcome.err
    assert r"two\nlines\x1b[31m" in outcome.err


def heeding() -> None:
    """Let Ctrl-C reach the command, also where these tests run in the background of a shell that shields them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_and_continued(few: Path, few_probes: Path, tmp_path: Path) -> None:
    words = [few, "--probes", few_probes, "--out", tmp_path / "run", "--precision", "float32", "--epochs", 200]
    command = [sys.executable, "-c", SMALL_DATA_TOO, "scan", *map(str, words)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    ) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "Ctrl-C is safe" in line:
                break
        while process.poll() is None and not (tmp_path / "run" / "watcher-a" / "state.json").exists():
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=60)
    assert process.returncode == 130, said + rest
    assert out == ""
    assert "Traceback" not in rest
    assert rest.splitlines()[-1] == (
        "untaint: interrupted. What was finished is kept: the same command goes on from there."
    )
    assert not (tmp_path / "run" / "summary.json").exists()
    assert json.loads((tmp_path / "run" / "watcher-a" / "state.json").read_text())["epoch"] >= 1


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    command = f"{sys.executable} -m untaint list models | head -n 1; echo ${{PIPESTATUS[0]}}"
    outcome = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert outcome.stdout.splitlines()[-1] in ("0", "141")
    assert outcome.stderr == ""


def test_output_to_a_full_disk() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs Linux")
    with open("/dev/full", "w") as full:
        outcome = subprocess.run(
            [sys.executable, "-m", "untaint", "list", "rules"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("untaint: the disk is full")


def test_streams_without_a_terminal(few: Path, few_probes: Path, tmp_path: Path) -> None:
    words = ("--probes", few_probes, "--out", tmp_path / "run", *epochs(1), "--no-retrain", "--json")
    outcome = told("scan", few, *words)
    assert outcome.code == 0
    assert json.loads(outcome.out)["rows"] == 36
    assert "\x1b" not in outcome.err
    assert "\r" not in outcome.err
    assert "12 probes are few" in outcome.err


def test_plain_lines_tell_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 4.0, 12.0, 20.0])
    monkeypatch.setattr("untaint.terminal.time.monotonic", lambda: next(clock))
    with Lines().step("watch", 1200) as step:
        step.advance(300)
        step.advance(300, "loss 0.5")
    assert capsys.readouterr().err.splitlines() == [
        "watch: 50%, 50 images/s, 12 s left loss 0.5",
        "watch: done in 20 s",
    ]


def test_bars_tell_rate_and_time_left_at_a_terminal(tmp_path: Path, photos: Path) -> None:
    leader, follower = pty.openpty()
    words = ["train", photos, "--out", tmp_path / "m", *epochs(12)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-m", "untaint", *map(str, words)], stdout=subprocess.PIPE, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other side was closed
                break
            if not part:
                break
            seen += part
    os.close(leader)
    assert process.returncode == 0, seen
    text = seen.decode()
    assert re.search(r"train .*━+.* 100 % .*[\d,]+ images/s", text), text
    assert re.search(r"\d+:\d\d", text), text


def test_bars_show_remarks_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Bars().say("[bold]class[/bold] 'a\nb' has one picture")
    assert capsys.readouterr().err == "[bold]class[/bold] 'a\\nb' has one picture\n"


def test_tables_obey_nothing_in_them() -> None:
    assert plain("a\tb\x1b[1m é 日") == r"a\tb\x1b[1m é 日"
    assert table(("name", "n"), [("x\ny", "1")]).splitlines()[-1] == r"  x\ny  1"


def test_probes_of_the_fixture_are_of_all_classes(few: Path) -> None:
    assert {key.partition("/")[0] for key in keys_of(few, 12)} == {"airplane", "bird", "ship"}
