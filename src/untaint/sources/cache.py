"""The pixel cache: each source's pictures, decoded once, as one memory-mapped array.

It lies in the user's cache folder and holds one folder per source and size: ``pixels.npy`` and
``decoded.json``, written last. A source that changed replaces what was there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from untaint import run
from untaint.errors import RunError, SourceError

__all__ = ["HEADER", "PixelCache", "cache_folder"]

HEADER = 128  # bytes of the .npy header, the same for any number of pictures
_BLOCK = 1 << 24  # bytes


def cache_folder(given: Path | str | None = None) -> Path:
    """Return the folder given, or $UNTAINT_CACHE, or ``untaint`` in the user's cache folder."""
    if given is not None:
        return Path(given).expanduser()
    if own := os.environ.get("UNTAINT_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "untaint"


def _header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape!r}, }}"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


class PixelCache:
    """The decoded pixels of one source at one size."""

    def __init__(self, folder: Path, name: str, place: str, size: int, identity: str) -> None:
        """Name the place; nothing is touched yet. ``identity`` changes when the pictures or settings do."""
        words = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[-60:]
        code = hashlib.sha256(f"{place}\0{size}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self.folder = folder / "pixels" / f"{words}-{size}-{code}"
        self.size = size
        self.identity = identity
        self._pixels = self.folder / "pixels.npy"
        self._note = self.folder / "decoded.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from decoding the same source at the same time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock: IO[str] = open(self.folder / ".lock", "a")  # noqa: SIM115 - closed below
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def find(self) -> tuple[NDArray[np.uint8], dict[int, str]] | None:
        """Return (uint8 (readable, 3, size, size) memory-mapped, reasons of the unreadable), or None."""
        try:
            note: dict[str, Any] = run.read_json(self._note)
            if note["identity"] != self.identity:
                return None
            pixels = run.load_array(self._pixels)
            unreadable = {int(index): str(reason) for index, reason in note["unreadable"].items()}
            fits = pixels.dtype == np.uint8 and pixels.shape == (note["count"], 3, self.size, self.size)
        except (RunError, KeyError, AttributeError, TypeError, ValueError):
            return None
        return (pixels, unreadable) if fits else None

    def make(
        self, count: int, decode: Callable[[str, int], dict[int, str]]
    ) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """Have ``decode(path, offset)`` write ``count`` pictures; drop the unreadable ones; return as ``find`` does."""
        picture = 3 * self.size * self.size
        self._note.unlink(missing_ok=True)
        try:
            with run.written(self._pixels) as file:
                _reserve(file, HEADER + count * picture, self.folder)
                unreadable = decode(file.name, HEADER)
                kept = _close_gaps(file, count, picture, sorted(unreadable))
                file.seek(0)
                file.write(_header((kept, 3, self.size, self.size)))
            note = {"identity": self.identity, "count": kept, "unreadable": {str(i): r for i, r in unreadable.items()}}
            run.write_json(self._note, note)
        except RunError as error:
            raise SourceError(f"{error} (The pixel cache lies there; UNTAINT_CACHE names another folder.)") from error
        found = self.find()
        if found is None:
            raise SourceError(f"{self._pixels} was changed while it was written. Give the same command again.")
        return found


def _reserve(file: IO[bytes], count: int, folder: Path) -> None:
    """Take the disk space now, so that a full disk is found before the work is done."""
    try:
        os.posix_fallocate(file.fileno(), 0, count)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            file.truncate(count)
            return
        free = shutil.disk_usage(folder).free
        raise SourceError(
            f"the pixel cache needs {count / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB are free. "
            "Free some space, give a smaller size, or name another folder in UNTAINT_CACHE."
        ) from error


def _close_gaps(file: IO[bytes], count: int, picture: int, gaps: list[int]) -> int:
    """Move the pictures behind each gap forward; return how many remain."""
    if not gaps:
        return count
    place = gaps[0]
    step = max(1, _BLOCK // picture)
    for gap, following in zip(gaps, [*gaps[1:], count], strict=True):
        for start in range(gap + 1, following, step):
            many = min(step, following - start)
            file.seek(HEADER + start * picture)
            with open(file.name, "rb") as reader:
                reader.seek(HEADER + start * picture)
                data = reader.read(many * picture)
            file.seek(HEADER + place * picture)
            file.write(data)
            file.flush()
            place += many
    file.truncate(HEADER + place * picture)
    return place


def _cannot_write(folder: Path, error: OSError) -> SourceError:
    reason = (error.strerror or str(error)).lower()
    return SourceError(f"the pixel cache {folder} cannot be written: {reason}. Name another folder in UNTAINT_CACHE.")
