"""Runs the command line in this process, as a user would see it."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from untaint.__main__ import main

SMALL_DATA_TOO = "from untaint import __main__, scanning; scanning.FEWEST = 0; __main__.main()"  # what -c runs


@dataclass(frozen=True)
class Outcome:
    """Exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def told(*words: object) -> Outcome:
    """Run one command."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as left:
            code = left.code
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def refused(*words: object) -> str:
    """Run a command that must fail by exit code 2 with one sentence on standard error, and return it."""
    outcome = told(*words)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("untaint: ")
    message = lines[0].removeprefix("untaint: ")
    assert message[0] not in " \t"
    assert len(message) < 600, "too long to be read"
    return message


def epochs(count: int) -> tuple[object, ...]:
    """Options for a short training; float32, because finding out the faster precision takes longer than that."""
    return "--epochs", count, "--precision", "float32"
