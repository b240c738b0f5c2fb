"""A user's word: ``marks.txt``, one line each ``fine<TAB>key`` or ``poison<TAB>key``.

The report's page saves this file; scoring and training obey it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from untaint import run
from untaint.errors import RunError, did_you_mean

__all__ = ["Mark", "key_line", "read_marks", "write_marks"]

Mark = Literal["fine", "poison"]
MARKS: tuple[Mark, ...] = get_args(Mark)


def key_line(key: str) -> str:
    """Return a key as ``run.write_keys`` writes it: as it is, or as JSON where that would not read back."""
    plain = bool(key) and key.isprintable() and key == key.strip() and not key.startswith(('"', "#"))
    return key if plain else json.dumps(key)


def write_marks(path: Path, marks: Mapping[str, Mark]) -> None:
    """Write the file that the report's page would save for these marks; complete or not at all."""
    with run.written(path) as file:
        for key, mark in marks.items():
            file.write(f"{mark}\t{key_line(key)}\n".encode("utf-8", "surrogateescape"))


def read_marks(path: Path | str) -> dict[str, Mark]:
    """Return the mark of each key in a ``marks.txt``, in the file's order.

    Blank lines and lines that begin with ``#`` are skipped. Raises RunError naming the line that
    cannot be understood, or that marks a key both ways.
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape").split("\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunError(f"{path} cannot be read: {reason}. Give the marks.txt that the report's page saved.") from error
    marks: dict[str, Mark] = {}
    for position, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        mark, key = _parsed(line, f"line {position} of {path}")
        if marks.setdefault(key, mark) != mark:
            raise RunError(
                f"line {position} of {path} marks '{key}' as {mark}, an earlier line as {marks[key]}. "
                "Keep one of the two."
            )
    return marks


def _parsed(line: str, place: str) -> tuple[Mark, str]:
    word, tab, key = line.partition("\t")
    if not tab or not key.strip():
        raise RunError(f"{place} is '{line}'. Write 'fine' or 'poison', a tab, and a key.")
    mark = next((known for known in MARKS if known == word.strip()), None)
    if mark is None:
        raise RunError(f"{place} begins with '{word}', which is no mark.{did_you_mean(word, MARKS)}")
    if not key.startswith('"'):
        return mark, key
    try:
        return mark, str(json.loads(key))
    except ValueError as error:
        raise RunError(
            f"the key in {place} begins with a quote but is not JSON ({error}). Write it as JSON or without quotes."
        ) from error
