"""Pictures inside tables: Parquet files and Arrow tables, read a batch at a time, never as Python rows."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from untaint.errors import SourceError
from untaint.sources import columns, labels
from untaint.sources.base import EncodedSource, Item, Unreadable

__all__ = ["ParquetShards", "Shards", "TableSource"]

AHEAD = 64  # rows; a jump forward no longer than this reads on instead of starting again
KEY_COLUMNS = ("file_name", "filename", "key", "__key__")


class Shards(Protocol):
    """A table in pieces: what ``TableSource`` needs of Parquet files or an Arrow table."""

    schema: Any  # pyarrow.Schema

    def column(self, path: str) -> Any:
        """Return one column (``label``, or a field ``image.path``) as a pyarrow.ChunkedArray."""
        ...

    def batches(self, column: str, size: int, start: int = 0) -> Iterator[Any]:
        """Go through one column from a row on, as pyarrow arrays of at most ``size``."""
        ...

    def identity(self) -> str | None:
        """Return a text that changes when the table may have changed."""
        ...

    def place(self) -> str:
        """Return a text that says which table this is."""
        ...


class ParquetShards:
    """Parquet files one after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open the files' footers; raises SourceError for one that is damaged or of other columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.paths = list(paths)
        self._groups: list[tuple[int, int, int]] = []  # (file, row group, rows)
        self._files: list[Any] = []
        for place, path in enumerate(self.paths):
            try:
                file = pq.ParquetFile(path)
            except (pa.ArrowException, OSError) as error:
                raise SourceError(
                    f"{path} cannot be read as Parquet ({columns.line(error)}). Fetch or write it again."
                ) from None
            if place and not file.schema_arrow.equals(self._files[0].schema_arrow, check_metadata=False):
                raise SourceError(f"{path} has other columns than {self.paths[0]}. Give files of one table.")
            if place and columns.class_names(file.schema_arrow) != columns.class_names(self._files[0].schema_arrow):
                raise SourceError(f"{path} has other class names than {self.paths[0]}. Give files of one table.")
            self._files.append(file)
            for group in range(file.metadata.num_row_groups):
                self._groups.append((place, group, file.metadata.row_group(group).num_rows))
        self.schema = self._files[0].schema_arrow

    def column(self, path: str) -> Any:
        """Return one light column of all files."""
        import pyarrow as pa

        return columns.descend(pa.concat_tables([self._read(file, path) for file in self._files]), path)

    @staticmethod
    def _read(file: Any, path: str) -> Any:
        import pyarrow as pa

        try:
            return file.read(columns=[path]).replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"the Parquet column '{path}' is damaged ({columns.line(error)}). Fetch or write the file again."
            ) from None

    def batches(self, column: str, size: int, start: int = 0) -> Iterator[Any]:
        """Go through one column from a row on."""
        import pyarrow as pa

        for place, group, rows in self._groups:
            if start >= rows:
                start -= rows
                continue
            try:
                for batch in self._files[place].iter_batches(size, row_groups=[group], columns=[column]):
                    array = columns.descend(batch, column)
                    if start < len(array):
                        yield array[start:]
                    start = max(0, start - len(array))
            except (pa.ArrowException, OSError) as error:
                raise SourceError(
                    f"{self.paths[place]} is damaged ({columns.line(error)}). Fetch or write it again."
                ) from None

    def place(self) -> str:
        """Return the paths of the files."""
        return "\0".join(str(path.absolute()) for path in self.paths)

    def identity(self) -> str:
        """Return the path, size and time of every file."""
        facts = [(str(path.absolute()), os.stat(path)) for path in self.paths]
        return repr([(path, fact.st_size, fact.st_mtime_ns) for path, fact in facts])


class TableSource(EncodedSource):
    """Pictures that lie in a column of a table, as bytes."""

    def __init__(
        self,
        shards: Shards,
        name: str,
        image_column: str | None,
        label_column: str | None,
        files_below: Path | None = None,
    ) -> None:
        """Find the columns and read keys and labels; ``files_below`` is where pictures given as paths must lie."""
        self.name = name
        self._shards = shards
        self._files_below = files_below
        fields = columns.fields_of(shards.schema)
        self._column, self._coded = columns.picture_column(fields, image_column, name)
        self.keys = self._read_keys(fields)
        self._read_labels(fields, label_column)
        self._cursor: tuple[int, list[Item], Iterator[list[Item]]] | None = None

    def _read_keys(self, fields: dict[str, Any]) -> list[str]:
        named = next((column for column in KEY_COLUMNS if columns.is_text(fields.get(column))), None)
        if named is not None and named != self._column:
            keys: list[Any] = self._shards.column(named).to_pylist()
            for key, count in Counter(keys).most_common(1):
                if count > 1:
                    raise SourceError(
                        f"the key '{key}' occurs {count} times in column '{named}' of {self.name}. Keys must be unique."
                    )
            return [str(key) for key in keys]
        if self._coded == "struct" and "path" in [field.name for field in fields[self._column]]:
            keys = self._shards.column(f"{self._column}.path").to_pylist()
            if all(keys) and len(set(keys)) == len(keys):
                return keys
            if any(keys):
                self.remarks = (
                    f"the file names in {self.name} are not all there and unique: rows are named by number",
                )
            count = len(keys)
        else:
            count = len(self._shards.column(next((c for c in fields if c != self._column), self._column)))
        return [f"{row:0{len(str(max(count - 1, 0)))}d}" for row in range(count)]

    def _read_labels(self, fields: dict[str, Any], given: str | None) -> None:
        import pyarrow as pa

        if not self.keys:
            raise SourceError(f"{self.name} has no rows. Give a table with pictures.")
        column = columns.label_column(fields, columns.class_names(self._shards.schema), given, self._column, self.name)
        if column is None:
            folders = [key.rpartition("/")[0] for key in self.keys]
            if not all(folders):
                raise SourceError(
                    f"{self.name} has no labels (its columns are {', '.join(fields)}). "
                    "Name the column with label_column."
                )
            self._labels, self.class_names = labels.number_classes(folders)
            return
        where = f"column '{column}' of {self.name}"
        values = self._shards.column(column)
        if pa.types.is_integer(values.type) and not values.null_count:
            names = columns.class_names(self._shards.schema).get(column)
            self._labels, self.class_names = labels.integers(values.to_numpy(), names, self.keys.__getitem__, where)
        else:
            self._labels, self.class_names = labels.classes_of(
                values.to_pylist(), self.keys.__getitem__, where, typed=True
            )

    def batches(self, size: int) -> Iterator[list[Item]]:
        """Go through the encoded pictures, a batch of the column at a time."""
        return self._from(0, size)

    def _from(self, start: int, size: int) -> Iterator[list[Item]]:
        for array in self._shards.batches(self._column, size, start):
            yield self._items(array)

    def _items(self, array: Any) -> list[Item]:
        if self._coded == "binary":
            return [
                value if value is not None else Unreadable("the table has no picture there")
                for value in array.to_pylist()
            ]
        values = array.field("bytes").to_pylist()
        if all(value is not None for value in values) and not array.null_count:
            return list(values)
        return [self._item(record) for record in array.to_pylist()]

    def _item(self, record: dict[str, Any] | None) -> Item:
        if record and record["bytes"] is not None:
            return bytes(record["bytes"])
        path = record.get("path") if record else None
        if not path:
            return Unreadable("the table has no picture there")
        if self._files_below is None:
            return str(path)
        full = Path(os.path.normpath(self._files_below / path))
        if not full.is_relative_to(os.path.normpath(self._files_below)):
            return Unreadable("its path leads out of the folder of the table")
        return str(full) if full.is_file() else Unreadable("the file is missing")

    def item(self, index: int) -> Item:
        """Return one encoded picture; going forward row by row is fast."""
        if self._cursor is None or not 0 <= index - self._cursor[0] < len(self._cursor[1]) + AHEAD:
            self._cursor = (index, [], self._from(index, 16))
        first, items, ahead = self._cursor
        while index >= first + len(items):
            first, items = first + len(items), next(ahead)
        self._cursor = (first, items, ahead)
        return items[index - first]

    def sample(self, count: int) -> list[int]:
        """Return up to ``count`` pictures in ten runs: a table is read in pieces, not in single rows."""
        run = max(1, count // 10)
        starts = [step * max(0, len(self) - run) // 9 for step in range(10)]
        return sorted({row for start in starts for row in range(start, min(start + run, len(self)))})

    def place(self) -> str:
        """Return the paths of the table's files and the column."""
        return f"{self._shards.place()}\0{self._column}"

    def identity(self) -> str | None:
        """Return a digest that changes when the table may have changed."""
        known = self._shards.identity()
        return None if known is None else hashlib.sha256(f"{known}\0{self._column}".encode()).hexdigest()
