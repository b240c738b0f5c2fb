"""Run directories: what a stage leaves is complete or absent.

A file is written to ``NAME.part``, fsynced and renamed. A stage that is done leaves ``done.json``
with the SHA-256 of each of its files, which are checked when it is used again. One process at a
time may own a run directory, and it may only be continued with the inputs and settings that it
was begun with.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from untaint.errors import RunError

__all__ = [
    "RunDirectory",
    "check",
    "digest",
    "finish",
    "finished",
    "key_column",
    "load_array",
    "read_json",
    "read_keys",
    "read_labelled_keys",
    "read_sealed",
    "save_array",
    "write_json",
    "write_keys",
    "write_sealed",
    "written",
]

DONE = "done.json"


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """Give an open binary file that appears under ``path`` only when all of it is on disk."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder itself may be a file
            part.unlink(missing_ok=True)
        raise explain(error, path) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def explain(error: OSError, path: Path) -> RunError:
    """Say in one sentence why a path could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"the disk is full: {path} could not be written. Nothing unfinished was left behind; "
            "free some space and give the same command again."
        )
    reason = os.strerror(error.errno) if error.errno else str(error)
    return RunError(f"{path} could not be written: {reason.lower()}. Choose another --out, or change its permissions.")


def _json(value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name whose bytes are no UTF-8
        return json.dumps(value, indent=2) + "\n"
    return text


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, complete or not at all."""
    with written(path) as file:
        file.write(_json(value).encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of a run, or say that it was altered."""
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read as what untaint wrote ({error}). Remove it and run again.") from error


def _seal(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a JSON object with a digest of itself, by which ``read_sealed`` notices what was altered."""
    write_json(path, {**facts, "seal": _seal(facts)})


def read_sealed(path: Path, remedy: str = "") -> dict[str, Any]:
    """Read what ``write_sealed`` wrote; raises RunError if it was altered, saying what to do (default: begin anew)."""
    facts = read_json(path)
    if not isinstance(facts, dict) or facts.pop("seal", None) != _seal(facts):
        raise RunError(f"{path} was altered since it was written. {remedy or _anew(path.parent)}")
    return facts


def _anew(folder: Path) -> str:
    return f"Remove {folder} and give the same command again."


def check(folder: Path, files: Mapping[str, str], remedy: str = "") -> None:
    """Raise RunError unless each file of a folder is there with this digest."""
    for name, expected in files.items():
        path = folder / name
        if not path.exists() or digest(path) != expected:
            state = "was altered" if path.exists() else "is missing"
            raise RunError(f"{path} {state} since it was written. {remedy or _anew(folder)}")


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write one ``.npy`` file, complete or not at all."""
    with written(path) as file:
        np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def load_array(path: Path, *, mapped: bool = True) -> NDArray[Any]:
    """Open one ``.npy`` file read-only, memory-mapped unless told otherwise; never unpickles."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise RunError(
            f"{path} cannot be read as the array that untaint wrote ({error}). Remove it and run again."
        ) from error
    return array


def write_keys(path: Path, keys: Iterable[str], notes: Mapping[str, str] | None = None) -> None:
    """Write keys one a line, what ``notes`` says of a key after a tab.

    A key that holds control characters or begins with a quote is written as JSON.
    """
    with written(path) as file:
        for key in keys:
            plain = key.isprintable() and key == key.strip() and not key.startswith(('"', "#"))
            note = " ".join((notes or {}).get(key, "").split())
            line = (key if plain and key else json.dumps(key)) + (f"\t{note}" if note else "")
            file.write((line + "\n").encode("utf-8", "surrogateescape"))


def read_keys(path: Path) -> list[str]:
    """Read keys one a line, as ``write_keys`` writes them; blank lines and ``#`` comments are skipped."""
    return [key for key, _ in read_labelled_keys(path)]


def read_labelled_keys(path: Path) -> list[tuple[str, str | None]]:
    """Read keys one a line, each with what follows it after a tab, or None."""
    try:
        lines = path.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n")
    except OSError as error:
        raise RunError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}. Give a text file with one key a line."
        ) from error
    found = []
    for number, line in enumerate((line.rstrip("\r") for line in lines), start=1):
        if line.strip() and not line.startswith("#"):
            found.append(_labelled_key(line, f"line {number} of {path}"))
    return found


def _labelled_key(line: str, where: str) -> tuple[str, str | None]:
    if not line.startswith('"'):
        key, tab, label = line.partition("\t")
        return key, label.strip() if tab else None
    try:
        key, end = json.JSONDecoder().raw_decode(line)
        if line[end:].strip() and line[end] != "\t":
            raise ValueError(f"'{line[end:]}' follows the closing quote")
    except ValueError as error:
        raise RunError(
            f"{where} begins with a quote but is not JSON ({error}). Write it as JSON or without quotes."
        ) from error
    return key, line[end:].strip() or None


def key_column(keys: Iterable[str]) -> Any:
    """Return keys as a pyarrow column of text; of bytes where a file name among them is no Unicode."""
    import pyarrow as pa

    listed = list(keys)
    try:
        return pa.array(listed, pa.string())
    except UnicodeEncodeError:
        return pa.array([key.encode("utf-8", "surrogateescape") for key in listed], pa.binary())


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(stage: Path, *, files: Iterable[Path] | None = None, **facts: Any) -> None:
    """Mark a stage's folder as done: lists its files with their digests, and the facts given."""
    listed = sorted(files if files is not None else (p for p in stage.rglob("*") if p.is_file()))
    names = [p for p in listed if p.name != DONE and p.suffix != ".part"]
    write_sealed(stage / DONE, {"files": {str(p.relative_to(stage)): digest(p) for p in names}, **facts})


def finished(stage: Path) -> dict[str, Any] | None:
    """Return a done stage's facts, or None; refuses one whose files were altered since."""
    if not (stage / DONE).exists():
        return None
    facts = read_sealed(stage / DONE)
    check(stage, facts.get("files", {}))
    return facts


class RunDirectory:
    """One run's folder: owned by one process, begun with one set of settings.

    Use as a context manager. ``settings`` are plain JSON values; opening a folder that was begun
    with others raises RunError naming the first difference.
    """

    def __init__(self, path: Path | str, settings: Mapping[str, Any]) -> None:
        """Name the folder and what the run is made from; nothing is touched before ``with``."""
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        self._lock: IO[str] | None = None

    def __enter__(self) -> RunDirectory:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a")
        except OSError as error:
            raise explain(error, self.path) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunError(f"another process is working in {self.path}. Wait for it, or give another --out.") from None
        try:
            if not self._begun():
                write_sealed(self.path / "settings.json", self.settings)
        except BaseException:
            self.__exit__()
            raise
        return self

    def check(self) -> None:
        """Raise RunError if the folder holds anything else than this run, before anything is begun; nothing is touched."""
        if self.path.exists():
            self._begun()

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _begun(self) -> bool:
        """Tell whether the run was begun; raise RunError where the folder holds something else, or was begun with other settings."""
        path = self.path / "settings.json"
        try:
            if not path.exists():
                others = [p.name for p in self.path.iterdir() if p.name != ".lock"]
                if others:
                    raise RunError(
                        f"{self.path} is not empty and is no run of untaint (it holds {sorted(others)[0]}). Give a new folder as --out."
                    )
                return False
        except OSError as error:
            raise explain(error, self.path) from error
        found = _difference(read_sealed(path), self.settings)
        if found is not None:
            name, before, now = found
            begun = f"other {name}" if _is_digest(before) else f"{name} = {before!r}, now it is {now!r}"
            same = f"the same {name}" if _is_digest(before) else "the same settings"
            raise RunError(f"{self.path} was begun with {begun}. Give {same} to continue it, or another --out.")
        return True


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return the first entry that differs, by its whole name, and what it is on either side."""
    if before == now:
        return None
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return name or "settings", before, now
    pairs = ((key, before.get(key), now.get(key)) for key in [*now, *before])
    key, one, other = next(pair for pair in pairs if pair[1] != pair[2])
    return _difference(one, other, f"{name}.{key}" if name else key)
