"""Pictures written losslessly by one path, as a folder per class or as a table.

Whatever was done to a picture, its file comes out of the same encoder with the same settings and
carries no metadata, so that nothing but its pixels tells it from its neighbours.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from untaint import run
from untaint.errors import SourceError

__all__ = ["FolderWriter", "PictureWriter", "TableWriter", "as_png", "image_schema"]

GROUP = 1_000  # pictures in one row group of a table


class PictureWriter(Protocol):
    """Takes encoded pictures one by one."""

    def add(self, key: str, label: int, encoded: bytes) -> None:
        """Write one picture under its key."""
        ...

    def close(self) -> None:
        """Finish; what was written is complete after this."""
        ...


def as_png(picture: NDArray[np.uint8]) -> bytes:
    """Return uint8 (channel, height, width) as a PNG file, always by the same settings."""
    file = io.BytesIO()
    pixels = picture[0] if len(picture) == 1 else np.ascontiguousarray(picture.transpose(1, 2, 0))
    Image.fromarray(pixels).save(file, "PNG", compress_level=6)
    return file.getvalue()


def image_schema(class_names: Sequence[str]) -> pa.Schema:
    """Return the columns ``image`` (bytes, path) and ``label`` (with class names) as ``datasets`` reads them."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    columns = [
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("label", pa.int64()),
    ]
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


class FolderWriter:
    """Writes ``folder/KEY``; keys begin with the class's folder. All files get the same modification time."""

    def __init__(self, folder: Path, class_names: Sequence[str], time: float) -> None:
        """Make the folder of every class, also of those that will have no picture."""
        self.folder, self.time = folder, time
        for name in class_names:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise SourceError(f"the class '{name}' cannot be the name of a folder. Write a table: format parquet.")
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add(self, key: str, label: int, encoded: bytes) -> None:
        """Write one picture."""
        del label  # the key says it
        path = self.folder / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded)
            os.utime(path, (self.time, self.time))
        except OSError as error:
            raise run.explain(error, path) from error

    def close(self) -> None:
        """Nothing is left to do."""


class TableWriter:
    """Writes one Parquet file."""

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        """Begin the file."""
        self.path, self.schema = path, image_schema(class_names)
        self.waiting: list[dict[str, Any]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # pictures are compressed already
            self.file = pq.ParquetWriter(path, self.schema, compression="none", use_dictionary=False)
        except OSError as error:
            raise run.explain(error, path) from error

    def add(self, key: str, label: int, encoded: bytes) -> None:
        """Take one picture; they are written by the thousand."""
        self.waiting.append({"image": {"bytes": encoded, "path": key}, "label": label})
        if len(self.waiting) == GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is waiting, and the end of the file."""
        if self.waiting:
            self._flush()
        self.file.close()

    def _flush(self) -> None:
        try:
            self.file.write_table(pa.Table.from_pylist(self.waiting, schema=self.schema))
        except OSError as error:
            raise run.explain(error, self.path) from error
        self.waiting = []
