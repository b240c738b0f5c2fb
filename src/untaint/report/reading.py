"""Reads what a run left: the summary, the scores, the thumbnails, the unreadable keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from untaint import run
from untaint.errors import RunError

__all__ = ["Findings", "Table"]

_NEEDED = ("row", "key", "label", "score", "p_value", "rank", "verdict", "probe", "reason")
_ABSENT: Mapping[str, Any] = {  # what the page takes where the summary is silent
    **dict.fromkeys(("rows", "unreadable"), 0),
    **dict.fromkeys(("preset", "hardware", "next"), ""),
    **dict.fromkeys(("class_names", "per_class", "stages", "limits", "triggers", "groups"), ()),
    **dict.fromkeys(("rule", "counts", "versions"), MappingProxyType({})),
    "name": "run",
    "detector": "unknown",
    "pixel_size": (0, 0, 0),
    "clean_model": None,
}


@dataclass(frozen=True, eq=False)
class Table:
    """``scores.parquet``: one entry per scored row, addressed by its position in the file.

    Numbers are numpy arrays over all entries; texts are fetched for the positions asked for, since
    a run may have a million.
    """

    data: Any

    @classmethod
    def read(cls, path: Path) -> Table:
        """Open the file; raises RunError when it is absent, damaged or lacks a column."""
        if not path.exists():
            raise RunError(
                f"{path} does not exist, so there is nothing to report. "
                "Let the scan finish first: give its command again."
            )
        try:
            data = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise RunError(
                f"{path} cannot be read as the table that untaint wrote ({error}). Remove it and score again."
            ) from error
        missing = [name for name in _NEEDED if name not in data.column_names]
        if missing:
            raise RunError(
                f"{path} has no column '{missing[0]}'; it has {', '.join(data.column_names)}. "
                "Remove it and score again."
            )
        return cls(data)

    def __len__(self) -> int:
        """Count the entries."""
        return int(self.data.num_rows)

    def _numbers(self, name: str, kind: str) -> NDArray[Any]:
        return np.asarray(self.data.column(name).to_numpy(), dtype=kind)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Row of each entry: int64."""
        return self._numbers("row", "int64")

    @cached_property
    def score(self) -> NDArray[np.float32]:
        """Score of each entry, nan where not scored: float32."""
        return self._numbers("score", "float32")

    @cached_property
    def p_value(self) -> NDArray[np.float64]:
        """p-value of each entry, nan where there is none: float64."""
        return self._numbers("p_value", "float64")

    @cached_property
    def rank(self) -> NDArray[np.int64]:
        """Rank of each entry, 1 = most suspicious: int64."""
        return self._numbers("rank", "int64")

    @cached_property
    def probe(self) -> NDArray[np.bool_]:
        """Whether each entry is a probe: bool."""
        return self._numbers("probe", "bool")

    def member(self, of: Literal["trigger", "group"]) -> NDArray[np.int64]:
        """Number of the trigger that each entry has, or of its group, from 1; 0: none: int64."""
        if f"in_{of}" not in self.data.column_names:
            return np.zeros(len(self), dtype=np.int64)
        return self._numbers(f"in_{of}", "int64")

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """Label of each entry as a number of its own: int64."""
        labels = self.data.column("label").combine_chunks().dictionary_encode()
        return np.asarray(labels.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

    @cached_property
    def rejected(self) -> NDArray[np.bool_]:
        """Whether each entry was set aside: bool."""
        return np.asarray(pc.equal(self.data.column("verdict").cast(pa.string()), "rejected").to_numpy(), dtype=bool)

    @cached_property
    def parts(self) -> dict[str, NDArray[np.float32]]:
        """Further columns of numbers, the parts of the score: name -> float32."""
        extra = [field for field in self.data.schema if field.name not in _NEEDED and pa.types.is_floating(field.type)]
        return {field.name: self._numbers(field.name, "float32") for field in extra}

    def texts(self, name: str, positions: NDArray[np.int64]) -> list[str]:
        """Return a column of texts at these positions; bytes that are no UTF-8 survive as surrogates."""
        values = self.data.column(name).take(pa.array(positions)).to_pylist()
        return [
            value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value or "")
            for value in values
        ]

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where these rows are, -1 for a row that has no entry: int64."""
        if not len(self):
            return np.full(len(rows), -1, dtype=np.int64)
        order = np.argsort(self.rows, kind="stable")
        place = np.searchsorted(self.rows, rows, sorter=order).clip(max=len(self) - 1)
        found = order[place]
        return np.where(self.rows[found] == rows, found, -1).astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """All of a run that the page shows, except the trajectories.

    ``pictures``: uint8 (m, channel, height, width); ``pictured``: int64 (m,), their positions in
    ``table``; both empty when the run kept no pictures.
    """

    folder: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    table: Table
    pictures: NDArray[np.uint8]
    pictured: NDArray[np.int64]
    unreadable: Sequence[str]

    @classmethod
    def read(cls, folder: Path) -> Findings:
        """Read a run directory; raises RunError when it has no summary or no scores."""
        if not (folder / "summary.json").exists():
            what = "holds no summary.json" if folder.is_dir() else "is no folder"
            raise RunError(
                f"{folder} {what}, so it is no finished run. Give the folder that a scan wrote, or let the scan finish."
            )
        told = run.read_json(folder / "summary.json")
        if not isinstance(told, dict):
            raise RunError(
                f"{folder / 'summary.json'} holds no settings but {type(told).__name__}. Remove it and score again."
            )
        table = Table.read(folder / "scores.parquet")
        pictures, pictured = _pictures(folder, table)
        settings = folder / "settings.json"
        unreadable = folder / "unreadable.txt"
        return cls(
            folder=folder,
            settings=run.read_sealed(settings) if settings.exists() else {},
            summary={**_ABSENT, **{key: value for key, value in told.items() if value is not None}},
            table=table,
            pictures=pictures,
            pictured=pictured,
            unreadable=run.read_keys(unreadable) if unreadable.exists() else [],
        )

    @property
    def total(self) -> int:
        """How many rows the data had."""
        return int(self.summary["rows"]) or len(self.table)

    @cached_property
    def rule(self) -> dict[str, str]:
        """The rule's ``text`` and ``note``, empty where the run tells none."""
        return {name: str(self.summary["rule"].get(name) or "") for name in ("text", "note")}

    @property
    def threshold(self) -> float:
        """The score from which on the rule rejects, nan where it has no single one."""
        value = self.summary["rule"].get("threshold")
        return float(value) if value is not None and math.isfinite(value) else math.nan

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """Every class with its ``name``, ``rows`` and ``rejected``, most rejected first."""
        parts = [
            {"name": str(c["name"]), "rows": int(c["rows"]), "rejected": int(c["rejected"])}
            for c in self.summary["per_class"]
        ]
        return sorted(parts, key=lambda c: (-c["rejected"], -c["rejected"] / max(c["rows"], 1)))


def _pictures(folder: Path, table: Table) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    paths = folder / "thumbnails.npy", folder / "thumbnails_rows.npy"
    if not all(path.exists() for path in paths):
        return np.zeros((0, 3, 1, 1), dtype=np.uint8), np.zeros(0, dtype=np.int64)
    pictures, rows = (run.load_array(path) for path in paths)
    if (
        pictures.ndim != 4
        or pictures.dtype != np.uint8
        or pictures.shape[1] not in (1, 3)
        or rows.shape != pictures.shape[:1]
    ):
        raise RunError(
            f"{paths[0]} holds {pictures.dtype} {pictures.shape} for {rows.size} rows, "
            "not one uint8 picture of 1 or 3 channels per row. Remove both thumbnail files and score again."
        )
    positions = table.positions(np.asarray(rows, dtype=np.int64))
    known = positions >= 0
    return (pictures if known.all() else pictures[known]), positions[known]
