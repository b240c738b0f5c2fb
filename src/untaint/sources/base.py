"""``Source``: where labelled pictures lie, before any of them is decoded for training."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from untaint.errors import SourceError

if TYPE_CHECKING:
    import zipfile

    from PIL.Image import Image

__all__ = ["EncodedSource", "Item", "Source", "Unreadable", "read"]

LARGEST_FILE = 1 << 29  # bytes; an encoded picture above this is set aside rather than read into memory

# An encoded picture, or where it lies: the bytes, the path of a file, (path of a zip file, name of a
# member), or why there is none. Plain values, so that they can be sent to another process.
Item: TypeAlias = "bytes | str | tuple[str, str] | Unreadable"


class Unreadable(SourceError):  # noqa: N818 - a state of a picture
    """One picture cannot be decoded; the text is the reason, for people."""


class Source(ABC):
    """Labelled pictures in a fixed order, each readable at its own full size.

    ``name`` tells people where they come from; ``keys`` holds one text per picture, ``labels`` one
    int64 per picture and ``class_names`` one text per class; ``remarks`` are lines that a person
    should see once. Pictures that cannot be decoded are still members: ``picture`` raises there.
    """

    name: str
    keys: Sequence[str]
    class_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    _labels: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each picture: int64 (pictures,)."""
        return self._labels

    def __len__(self) -> int:
        """Count the pictures, readable or not."""
        return len(self.keys)

    def __repr__(self) -> str:
        """Say how many pictures there are and from where."""
        return f"<{type(self).__name__}: {len(self):,} pictures from {self.name}>"

    @abstractmethod
    def picture(self, index: int) -> Image:
        """Return one picture in RGB at its own size, turned upright; raises Unreadable."""

    def measure(self, index: int) -> tuple[int, int]:
        """Return (width, height) of one picture; raises Unreadable."""
        return self.picture(index).size

    def sample(self, count: int) -> list[int]:
        """Return up to ``count`` pictures that stand for all of them, always the same."""
        return sorted({step * (len(self) - 1) // max(1, count - 1) for step in range(count)})


class EncodedSource(Source):
    """A source of encoded pictures (JPEG, PNG, WebP, ...), which other processes can decode."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """Return one encoded picture or where it lies."""

    @abstractmethod
    def batches(self, size: int) -> Iterator[list[Item]]:
        """Go through all encoded pictures in order, at most ``size`` at a time."""

    def place(self) -> str:
        """Return a text that says which source this is, whether it changed or not: its cache's place."""
        return self.name

    @abstractmethod
    def identity(self) -> str | None:
        """Return a text that changes whenever a picture may have changed; None if that cannot be known."""

    def picture(self, index: int) -> Image:
        """Return one picture in RGB at its own size, turned upright; raises Unreadable."""
        from untaint.sources import decode

        with decode.quiet():
            return decode.upright(read(self.item(index)))

    def measure(self, index: int) -> tuple[int, int]:
        """Return (width, height) of one picture from its header; raises Unreadable."""
        from untaint.sources import decode

        with decode.quiet():
            return decode.opened(read(self.item(index))).size


def read(item: Item) -> bytes:
    """Return the bytes of one encoded picture; raises Unreadable."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, Unreadable):
        raise item
    try:
        if isinstance(item, str):
            if os.stat(item).st_size > LARGEST_FILE:
                raise Unreadable(f"the file is larger than {LARGEST_FILE >> 20} MiB")
            with open(item, "rb") as file:
                return file.read()
        return _read_member(*item)
    except OSError as error:
        raise Unreadable(f"the file cannot be read ({(error.strerror or type(error).__name__).lower()})") from None


def _read_member(archive: str, member: str) -> bytes:
    import zipfile

    try:
        opened = _zip(archive, os.stat(archive).st_mtime_ns)
        if opened.getinfo(member).file_size > LARGEST_FILE:
            raise Unreadable(f"the file is larger than {LARGEST_FILE >> 20} MiB")
        return opened.read(member)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, KeyError, EOFError, ValueError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"it cannot be taken out of the archive ({type(error).__name__})") from None
    except Exception as error:  # zlib, lzma and bz2 have an error class each
        if isinstance(error, OSError):
            raise
        raise Unreadable(f"its compressed data are damaged ({type(error).__name__})") from None


@lru_cache(maxsize=4)
def _zip(archive: str, modified: int) -> zipfile.ZipFile:
    import zipfile

    del modified  # part of the key only: an archive that was replaced is opened again
    return zipfile.ZipFile(archive)
