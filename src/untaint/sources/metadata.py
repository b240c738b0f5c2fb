"""A table of file names and labels beside the pictures: CSV, TSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from untaint.errors import SourceError
from untaint.sources import labels
from untaint.sources.base import Unreadable, read
from untaint.sources.tree import Entry, Tree

__all__ = ["METADATA_SUFFIXES", "Metadata", "find"]

METADATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class Metadata:
    """File names and labels in the order of the table; ``typed`` tells text from numbers."""

    def __init__(self, tree: Tree, entry: Entry, image_column: str | None, label_column: str | None) -> None:
        """Read the table; raises SourceError when it has no column of file names or of labels."""
        self.name = f"{tree.name}/{entry.path}"
        self.typed = entry.suffix not in (".csv", ".tsv")
        try:
            data = read(entry.item)
        except Unreadable as error:
            raise SourceError(f"{self.name} cannot be read: {error}.") from None
        columns = _parquet(data, self.name) if entry.suffix == ".parquet" else self._parse(data, entry.suffix)
        names = list(columns)
        files = labels.guess(names, labels.FILE_COLUMNS, image_column, "file names", self.name)
        if files is None:
            raise SourceError(
                f"{self.name} has no column of file names (it has {', '.join(names)}). Name it with image_column."
            )
        rest = [name for name in names if name != files]
        label = labels.guess(
            rest if label_column is None else names, labels.LABEL_COLUMNS, label_column, "labels", self.name
        )
        if label is None and len(rest) == 1:
            label = rest[0]
        if label is None:
            raise SourceError(
                f"{self.name} has no labels (its columns are {', '.join(names)}). Name the column with label_column."
            )
        folder = entry.path.rpartition("/")[0]
        self.files = [_inside(folder, value, row, self.name) for row, value in enumerate(columns[files])]
        self.values: Sequence[Any] = columns[label]
        self.where = f"column '{label}' of {self.name}"

    def _parse(self, data: bytes, suffix: str) -> dict[str, list[Any]]:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.name} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
        return _json_lines(text, self.name) if suffix in (".jsonl", ".ndjson") else _delimited(text, self.name)


def find(tree: Tree) -> Entry | None:
    """Return the metadata table at the top of a tree: ``metadata.*``, else the only table there is."""
    tables = [e for e in tree.entries if "/" not in e.path and e.suffix in METADATA_SUFFIXES]
    named = [e for e in tables if e.path.lower().startswith("metadata.")]
    if len(named or tables) > 1 and (named or not tree.folders()):
        listed = ", ".join(e.path for e in named or tables)
        raise SourceError(f"{tree.name} has several tables ({listed}). Give the one that holds the labels itself.")
    if named:
        return named[0]
    return tables[0] if len(tables) == 1 else None


def _inside(folder: str, value: Any, row: int, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise SourceError(f"row {row} of {name} has no file name. Add it or take the row out.")
    path = value.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:]
    return f"{folder}/{path}" if folder else path


def _delimited(text: str, name: str) -> dict[str, list[Any]]:
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        table = [row for row in rows if row]
    except csv.Error as error:
        raise SourceError(f"{name} cannot be read as a table ({error}). Save it as CSV with a header line.") from None
    if len(table) < 2:
        raise SourceError(f"{name} has {len(table)} lines. Give a header line and one line per picture.")
    names = [column.strip() for column in table[0]]
    for number, row in enumerate(table[1:], start=2):
        if len(row) != len(names):
            raise SourceError(
                f"row {number} of {name} has {len(row)} fields, but the header has {len(names)}. Correct it."
            )
    return {column: [row[place] for row in table[1:]] for place, column in enumerate(names)}


def _json_lines(text: str, name: str) -> dict[str, list[Any]]:
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise SourceError(f"line {number} of {name} is not JSON ({error}). Write one object a line.") from None
        if not isinstance(record, dict):
            raise SourceError(f"line {number} of {name} is no JSON object. Write one object a line.")
        records.append(record)
    if not records:
        raise SourceError(f"{name} is empty. Give one JSON object per picture.")
    columns = dict.fromkeys(key for record in records for key in record)
    return {column: [record.get(column) for record in records] for column in columns}


def _parquet(data: bytes, name: str) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{name} cannot be read as Parquet ({error}). Write it again.") from None
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns
