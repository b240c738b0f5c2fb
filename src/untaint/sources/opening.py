"""Finds out what a source is, and opens it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from untaint.errors import SourceError, did_you_mean
from untaint.sources import folder, huggingface, metadata, named, tree
from untaint.sources.arrays import ArraySource
from untaint.sources.base import Source
from untaint.sources.cache import cache_folder
from untaint.sources.table import ParquetShards, TableSource
from untaint.sources.torch_dataset import from_torch, is_map_style

__all__ = ["open_source", "open_test"]

_TARS = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")
_HUB = re.compile(r"(hub:)?[\w.-]+/[\w.-]+(:[\w.-]+)?")


def open_source(
    source: Any,
    labels: Any = None,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    cache: Path | str | None = None,
) -> Source:
    """Return labelled pictures, none decoded yet, of a path, a name, a hub id, a data set or arrays.

    A path that exists wins over a name or a hub id. Raises SourceError.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, Path)):
        return _Opener(split, image_column, label_column, cache_folder(cache)).open(str(source))
    if labels is not None:
        return ArraySource(source, labels)
    if huggingface.is_dataset(source):
        return huggingface.from_dataset(source, split, image_column, label_column)
    if isinstance(source, tuple) and len(source) == 2:
        return ArraySource(*source)
    if hasattr(source, "dtype") and hasattr(source, "shape"):
        raise SourceError("the pictures have no labels. Give load((images, labels)).")
    if is_map_style(source) and not isinstance(source, (dict, list)):
        return from_torch(source)
    raise SourceError(
        f"a {type(source).__name__} is no source of pictures. "
        "Give a path, a name, a hub id, a torch Dataset, or (images, labels)."
    )


def open_test(
    source: Any, *, own: bool = False, image_column: str | None = None, label_column: str | None = None
) -> Source | None:
    """Return the part ``test`` of a source, else ``validation``, else all of a source that has no parts.

    ``own``: the source is training data, so only its part ``test`` will do; None if it has none.
    """
    if own and isinstance(source, (str, Path)) and Path(source).is_file() and Path(source).suffix.lower() != ".zip":
        return None  # one table is one part
    part = partial(open_source, source, image_column=image_column, label_column=label_column)
    try:
        return part(split="test")
    except tree.NoSplit as missing:
        if own:
            return None
        if missing.others:
            return part(split="validation")
        return part()


class _Opener:
    """The settings that go with a path."""

    def __init__(self, split: str, image_column: str | None, label_column: str | None, cache: Path) -> None:
        self.split = split
        self.columns = (image_column, label_column)
        self.cache = cache

    def open(self, text: str) -> Source:
        path = Path(text).expanduser()
        if path.is_dir():
            return self._folder(path)
        if path.is_file():
            return self._file(path)
        if os.path.lexists(path):
            raise SourceError(f"{path} is neither a file nor a folder that can be opened. Give another path.")
        if matches := sorted(glob.glob(str(path))) if glob.has_magic(text) else []:
            return self._files([Path(match) for match in matches], text)
        if named.is_name(text):
            return named.from_name(text, self.split, self.cache)
        if (
            _HUB.fullmatch(text)
            and not text.startswith(".")
            and not (Path(text).parts[0] and Path(Path(text).parts[0]).is_dir())
        ):
            return huggingface.from_hub(text, self.split, *self.columns)
        raise SourceError(f"there is no folder or file {text}.{_nearest(path)}")

    def _file(self, path: Path) -> Source:
        suffix = path.suffix.lower()
        if suffix == ".zip":
            return folder.from_tree(tree.zipped(path), self.split, *self.columns)
        if suffix in metadata.METADATA_SUFFIXES and suffix != ".parquet":
            return folder.from_table(tree.folder(path.parent), tree.Entry(path.name, str(path)), *self.columns)
        return self._files([path], str(path))

    def _files(self, paths: Sequence[Path], name: str) -> Source:
        if all(path.suffix.lower() == ".parquet" for path in paths):
            return TableSource(ParquetShards(paths), name, *self.columns, files_below=paths[0].parent)
        if all(path.suffix.lower() == ".arrow" for path in paths):
            return huggingface.from_arrow(paths, name, *self.columns)
        if all(path.name.lower().endswith(_TARS) for path in paths):
            return huggingface.from_tar(paths, name, self.cache, *self.columns)
        raise SourceError(
            f"{name} is no table or archive of pictures. "
            "Give a folder, or a .parquet, .arrow, .tar, .zip, .csv or .jsonl file."
        )

    def _folder(self, path: Path) -> Source:
        if (path / "dataset_dict.json").is_file() or (
            (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
        ):
            return huggingface.from_saved(path, self.split, *self.columns)
        found = named.from_layout(path, self.split)
        if found is not None:
            return found
        files = tree.folder(path)
        if not files.entries:
            raise SourceError(f"{path} is empty. Give a folder with a folder of pictures per class, or with a table.")
        if folder.has_pictures(files):
            return folder.from_tree(files, self.split, *self.columns)
        for suffixes in ((".parquet",), (".arrow",), _TARS):
            tables = [entry.path for entry in files.entries if entry.path.lower().endswith(suffixes)]
            if tables:
                name, chosen = self._of_split(tables, str(path))
                return self._files([path / table for table in chosen], name)
        return folder.from_tree(files, self.split, *self.columns)

    def _of_split(self, tables: list[str], name: str) -> tuple[str, list[str]]:
        splits = {table: tree.split_of(table) for table in tables}
        chosen = tree.choose_split([s for s in splits.values() if s], self.split, name)
        if chosen is None:
            return name, tables
        return f"{name} ({chosen})", [table for table in tables if splits[table] == chosen]


def _nearest(path: Path) -> str:
    parent = path.parent
    beside = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    hint = did_you_mean(path.name, beside + list(named.NAMES)) if len(beside) < 1000 else ""
    return hint if "Did you mean" in hint else " Check the path."
