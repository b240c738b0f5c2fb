"""The files under a folder or in a zip file, alike: relative path, where to read it, size and time."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from untaint.errors import SourceError, did_you_mean
from untaint.sources.base import Item, Unreadable

__all__ = ["SPLITS", "Entry", "NoSplit", "Tree", "canonical", "folder", "split_of", "zipped"]

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class NoSplit(SourceError):  # noqa: N818 - a state of a source
    """A source has not the split that was asked for; ``others``: the splits that it has."""

    def __init__(self, message: str, others: tuple[str, ...]) -> None:
        super().__init__(message)
        self.others = others


@dataclass(frozen=True)
class Entry:
    """One file: its path relative to the tree with slashes, and how to get at it."""

    path: str
    item: Item

    @property
    def suffix(self) -> str:
        """The lower-case suffix, ``.png``."""
        return os.path.splitext(self.path)[1].lower()


@dataclass(frozen=True)
class Tree:
    """The files under one folder, sorted by path; ``archive`` is the zip file they lie in, if any."""

    name: str
    root: Path
    entries: list[Entry]
    archive: Path | None = None

    def under(self, folder: str) -> Tree:
        """Return the part of the tree below one folder."""
        head = folder + "/"
        below = [Entry(e.path[len(head) :], e.item) for e in self.entries if e.path.startswith(head)]
        return Tree(f"{self.name}/{folder}", self.root / folder, below, self.archive)

    def folders(self) -> list[str]:
        """Return the names of the folders at the top, sorted."""
        return sorted({e.path.partition("/")[0] for e in self.entries if "/" in e.path})

    def unwrapped(self) -> Tree:
        """Return the tree without a folder that merely wraps everything, as zip files have."""
        tree = self
        while len(tops := tree.folders()) == 1 and canonical(tops[0]) is None:
            inner = tree.under(tops[0])
            if len(inner.entries) < len(tree.entries) or not inner.folders():
                break
            tree = Tree(self.name, inner.root, inner.entries, self.archive)
        return tree


def canonical(split: str) -> str | None:
    """Return train, validation or test for any usual word for it, None for another word."""
    return SPLITS.get(split.lower())


def split_of(path: str) -> str | None:
    """Return the split that a path names (``data/train-00000-of-00002.parquet``), or None."""
    for part in reversed(path.split("/")):
        for word in re.split(r"[-._ 0-9]+", part):
            if found := canonical(word):
                return found
    return None


def choose_split(found: Iterable[str], wanted: str, where: str) -> str | None:
    """Return which of the splits found to take; None if there are none; refuses one that is not there."""
    names = sorted(set(found))
    target = canonical(wanted) or wanted
    for name in names:
        if name == wanted or (canonical(name) or name) == target:
            return name
    if names:
        raise NoSplit(f"{where} has no split '{wanted}'.{did_you_mean(wanted, names)}", tuple(names))
    if target != "train":
        message = f"{where} has no splits, so no '{wanted}'. Give the folder or file of that split itself."
        raise NoSplit(message, ())
    return None


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def folder(root: Path) -> Tree:
    """Return all files below a folder; links are followed, but each real folder is entered once."""
    found: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    later: list[tuple[str, str]] = []  # links to folders come after real ones: a real name wins

    def enter(path: str, relative: str) -> None:
        pending = [(path, relative)]
        while pending:
            here, prefix = pending.pop()
            try:
                facts = os.stat(here)
                entries = sorted(os.scandir(here), key=lambda entry: entry.name)
            except OSError as error:
                raise SourceError(
                    f"{here} cannot be opened: {(error.strerror or str(error)).lower()}. "
                    "Change its permissions or take it out."
                ) from None
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            for entry in entries:
                if _hidden(entry.name):
                    continue
                inner = (entry.path, f"{prefix}{entry.name}")
                if entry.is_dir(follow_symlinks=False):
                    pending.append((inner[0], inner[1] + "/"))
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    later.append((inner[0], inner[1] + "/"))
                else:
                    found.append(inner)

    enter(str(root), "")
    while later:
        later.sort(reverse=True)
        enter(*later.pop())
    found.sort(key=lambda pair: pair[1])
    return Tree(str(root), root, [Entry(relative, path) for path, relative in found])


def zipped(path: Path) -> Tree:
    """Return all files in a zip file; nothing is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SourceError(f"{path} cannot be read as a zip file ({error}). Pack it again.") from None
    entries = []
    for info in infos:
        name = info.filename.replace("\\", "/")
        if any(_hidden(part) for part in name.split("/")):
            continue
        entries.append(Entry(name, (str(path), info.filename)))
    return Tree(str(path), path, sorted(entries, key=lambda entry: entry.path), path).unwrapped()


def state(entry: Entry) -> tuple[Item, str]:
    """Return the item, or why it cannot be read, and its size and time as text."""
    if not isinstance(entry.item, str):
        return entry.item, ""
    try:
        facts = os.stat(entry.item)
    except OSError:
        return Unreadable("it is a link to nothing" if os.path.islink(entry.item) else "the file is missing"), "missing"
    if not stat.S_ISREG(facts.st_mode):
        return Unreadable("it is no regular file"), "special"
    return entry.item, f"{facts.st_size} {facts.st_mtime_ns}"
