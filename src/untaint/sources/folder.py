"""Pictures in folders (or a zip file): a folder per class, or a table beside them."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from untaint import run
from untaint.errors import SourceError
from untaint.sources import labels, metadata, tree
from untaint.sources.base import EncodedSource, Item, Unreadable
from untaint.sources.decode import PICTURE_SUFFIXES
from untaint.sources.tree import Entry, Tree

__all__ = ["FolderSource", "by_folder", "from_table", "from_tree", "has_pictures"]


class FolderSource(EncodedSource):
    """Pictures that lie in files, or as members of a zip file."""

    def __init__(self, where: Tree, entries: list[Entry]) -> None:
        """Look at each file once; labels are set by the functions below."""
        self.name = where.name
        self.keys = [entry.path for entry in entries]
        self._archive = where.archive
        looked = [tree.state(entry) for entry in entries]
        self._items = [item for item, _ in looked]
        self._states = [text for _, text in looked]
        self._root = str(where.root.absolute())
        self.class_names = ()

    def item(self, index: int) -> Item:
        """Return where one picture lies."""
        return self._items[index]

    def batches(self, size: int) -> Iterator[list[Item]]:
        """Go through where the pictures lie."""
        for start in range(0, len(self._items), size):
            yield self._items[start : start + size]

    def place(self) -> str:
        """Return the folder's or archive's path, and the table's."""
        return f"{self._archive or self._root}\0{self.name}"

    def identity(self) -> str:
        """Return a digest of the path, size and time of every file, or of the archive's contents."""
        sha = hashlib.sha256()
        if self._archive is not None:
            sha.update(run.digest(self._archive).encode())
        else:
            sha.update(self._root.encode("utf-8", "surrogateescape"))
        for key, text in zip(self.keys, self._states, strict=True):
            sha.update(f"{key}\0{text}\0".encode("utf-8", "surrogateescape"))
        return sha.hexdigest()


def has_pictures(where: Tree) -> bool:
    """Return whether a tree holds any file with the suffix of a picture."""
    return any(entry.suffix in PICTURE_SUFFIXES for entry in where.entries)


def from_tree(
    where: Tree,
    split: str,
    image_column: str | None,
    label_column: str | None,
    readable_names: Mapping[str, str] | None = None,
) -> FolderSource:
    """Return the pictures of a folder or zip file: its split, labelled by a table or by folders.

    ``readable_names`` gives people's words for folder names, as ``n01440764`` -> ``tench``.
    """
    splits = _splits(where)
    chosen = tree.choose_split(splits, split, where.name)
    part = where.under(chosen) if chosen else where
    table = metadata.find(part)
    if table is not None and (
        image_column or label_column or table.path.lower().startswith("metadata.") or not _classes(part)
    ):
        return from_table(part, table, image_column, label_column)
    names: set[str] = set().union(*(_classes(where.under(other)) for other in splits))
    return by_folder(part, names, readable_names or {})


def _classes(where: Tree) -> set[str]:
    return {e.path.partition("/")[0] for e in where.entries if "/" in e.path and e.suffix in PICTURE_SUFFIXES}


def _splits(where: Tree) -> list[str]:
    """Return the top folders that are splits: two of them, or one and no other pictures."""
    tops = sorted({e.path.partition("/")[0] for e in where.entries if "/" in e.path})
    words = [top for top in tops if tree.canonical(top)]
    if len(words) >= 2 or (words and not _classes(where).difference(words)):
        return words
    return []


def by_folder(part: Tree, names: set[str], readable_names: Mapping[str, str]) -> FolderSource:
    """Return the pictures labelled by the first folder of their path; ``names`` are folders that other splits have."""
    pictures = [entry for entry in part.entries if entry.suffix in PICTURE_SUFFIXES]
    if not pictures:
        raise SourceError(
            f"there are no pictures in {part.name} ({len(part.entries):,} files). "
            "Give a folder with a folder of pictures per class."
        )
    labelled = [entry for entry in pictures if "/" in entry.path]
    if not labelled:
        raise SourceError(
            f"the {len(pictures):,} pictures in {part.name} have no labels. "
            "Sort them into a folder per class, or add metadata.csv with the columns file_name and label."
        )
    source = FolderSource(part, labelled)
    if len(labelled) < len(pictures):
        source.remarks = (
            f"{len(pictures) - len(labelled):,} pictures at the top of {part.name} are in no class "
            "folder and are left out",
        )
    ordered = sorted(names | _classes(part))
    number = {name: place for place, name in enumerate(ordered)}
    source._labels = labels.fill(number[key.partition("/")[0]] for key in source.keys)
    source.class_names = _unique(tuple(readable_names.get(name, name) for name in ordered), ordered)
    return source


def _unique(names: tuple[str, ...], plain: list[str]) -> tuple[str, ...]:
    """Return the names; where two are alike ("crane" is a bird and a machine), with the folder's name added."""
    return tuple(n if names.count(n) == 1 else f"{n} ({p})" for n, p in zip(names, plain, strict=True))


def from_table(part: Tree, table: Entry, image_column: str | None, label_column: str | None) -> FolderSource:
    """Return the pictures that a table names, in its order."""
    listed = metadata.Metadata(part, table, image_column, label_column)
    known = {entry.path: entry.item for entry in part.entries}
    seen: set[str] = set()
    entries = []
    for path in listed.files:
        if path in seen:
            raise SourceError(f"'{path}' occurs twice in {listed.name}. Keys must be unique: take one of the two out.")
        seen.add(path)
        entries.append(Entry(path, known.get(path) or _elsewhere(part, path, known)))
    if all(isinstance(entry.item, Unreadable) for entry in entries):
        raise SourceError(
            f"none of the {len(entries):,} files named in {listed.name} can be read: "
            f"'{entries[0].path}': {entries[0].item!s}."
        )
    source = FolderSource(part, entries)
    source.name = listed.name
    source._labels, source.class_names = labels.classes_of(
        listed.values, source.keys.__getitem__, listed.where, typed=listed.typed
    )
    unlisted = sum(e.suffix in PICTURE_SUFFIXES and e.path not in seen for e in part.entries)
    if unlisted:
        source.remarks = (f"{unlisted:,} pictures in {part.name} are not named in {table.path} and are left out",)
    return source


def _elsewhere(part: Tree, path: str, known: Mapping[str, Item]) -> Item:
    if Path(path).is_absolute():
        try:
            path = Path(path).relative_to(part.root.absolute()).as_posix()
        except ValueError:
            return Unreadable("its path leads out of the folder of the table")
    tidy = posixpath.normpath(path)
    if tidy.startswith("../") or tidy == "..":
        return Unreadable("its path leads out of the folder of the table")
    return known.get(tidy) or Unreadable("the file is missing")
