"""``Examples``: labelled pictures, addressed by row.

Every example has one integer, its row, for life. Arrays are indexed by it; a subset carries rows
and renumbers nothing; people see keys.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untaint import run
from untaint.errors import InputError, ProbeError

__all__ = ["Examples"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Labelled pictures, or a subset of them.

    ``images``: uint8 (all rows, channel, height, width), in memory or memory-mapped.
    ``labels``: int64 (all rows,). ``keys``: one text per row. ``class_names``: one per label.
    ``rows``: int64, the rows that belong to this subset, ascending. ``source``: where they came
    from, for people. ``unreadable``: key -> reason, for pictures that were set aside.

    ``len`` counts the subset. ``examples[i]`` gives the i-th member as (uint8 array (channel,
    height, width), label), so it can be handed to ``torch.utils.data.DataLoader``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    keys: Sequence[str]
    class_names: tuple[str, ...]
    rows: NDArray[np.int64]
    source: str = "memory"
    unreadable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        images: NDArray[np.uint8],
        labels: Iterable[int],
        *,
        class_names: Sequence[str] | None = None,
        keys: Sequence[str] | None = None,
        source: str = "memory",
        unreadable: dict[str, str] | None = None,
    ) -> Examples:
        """Make examples of all the given pictures; checks shapes, labels and keys."""
        numbers = np.asarray(labels, dtype=np.int64)
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] not in (1, 3):
            raise InputError(
                f"images are {images.dtype} {images.shape}; give uint8 of (count, channels, height, width) with 1 or 3 channels."
            )
        if len(numbers) != len(images):
            raise InputError(f"there are {len(images)} images but {len(numbers)} labels. Give one label per image.")
        if class_names is None:
            class_names = [str(i) for i in range(int(numbers.max(initial=-1)) + 1)]
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(class_names)):
            raise InputError(
                f"labels run from {numbers.min()} to {numbers.max()}, but there are {len(class_names)} classes. Number them from 0."
            )
        if keys is None:
            width = len(str(max(len(numbers) - 1, 0)))
            keys = [f"{row:0{width}d}" for row in range(len(numbers))]
        if len(keys) != len(numbers):
            raise InputError(f"there are {len(numbers)} images but {len(keys)} keys. Give one key per image.")
        seen: set[str] = set()
        for key in keys:
            if key in seen:
                raise InputError(f"the key '{key}' occurs twice. Keys must be unique: rename one of the two.")
            seen.add(key)
        return cls(
            images=images,
            labels=numbers,
            keys=keys,
            class_names=tuple(class_names),
            rows=np.arange(len(numbers), dtype=np.int64),
            source=source,
            unreadable=unreadable or {},
        )

    def __len__(self) -> int:
        """Count the members of this subset."""
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Return the index-th member: (picture, label)."""
        row = self.rows[index]
        return np.array(self.images[row]), int(self.labels[row])

    def __repr__(self) -> str:
        """Say how many pictures of how many classes there are, and from where."""
        part = "" if len(self) == len(self.labels) else f" of {len(self.labels):,}"
        size = "x".join(map(str, self.images.shape[1:]))
        return f"<{len(self):,}{part} pictures ({size}) of {len(self.class_names)} classes from {self.source}>"

    @property
    def total(self) -> int:
        """How many rows the arrays have, members of this subset or not."""
        return len(self.labels)

    def take(self, rows: Any) -> Examples:
        """Return the subset of these rows (numbers, or a mask over all rows)."""
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            if chosen.shape != (self.total,):
                raise InputError(f"the mask has {chosen.size} entries for {self.total} rows. Give one per row.")
            chosen = np.flatnonzero(chosen)
        rows = np.unique(chosen.astype(np.int64))
        if rows.size and (rows[0] < 0 or rows[-1] >= self.total):
            wrong = rows[0] if rows[0] < 0 else rows[-1]
            raise InputError(f"row {wrong} is not among the {self.total} rows (0 to {self.total - 1}).")
        return replace(self, rows=rows)

    def without(self, rows: Any) -> Examples:
        """Return the members that are not among these rows."""
        return replace(self, rows=np.setdiff1d(self.rows, self.take(rows).rows))

    def counts(self) -> NDArray[np.int64]:
        """Return how many members each class has: int64 (classes,)."""
        return np.bincount(self.labels[self.rows], minlength=len(self.class_names)).astype(np.int64)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def find(self, wanted: str | Path | Iterable[Any]) -> NDArray[np.int64]:
        """Return the rows of a text file of keys, or of keys, row numbers, or a mask; ascending.

        A line of the file may be ``key<TAB>label``; the label must then be the data's. Raises
        ProbeError naming the first key that is not there, with the nearest ones.
        """
        if isinstance(wanted, (str, Path)):
            path = Path(wanted)
            if not path.exists():
                raise ProbeError(
                    f"{path} does not exist. Give a text file with one key a line, or a folder of trusted pictures."
                )
            told = run.read_labelled_keys(path)
            rows = self._rows_of([key for key, _ in told], str(path))
            self._compare_labels(told, path)
            return rows
        given = wanted if isinstance(wanted, np.ndarray) else list(wanted)
        things = np.asarray(given)
        if things.dtype == bool or np.issubdtype(things.dtype, np.integer):
            if things.dtype != bool and things.size and (things.min() < 0 or things.max() >= self.total):
                raise ProbeError(
                    f"row {things.max() if things.min() >= 0 else things.min()} is not among the {self.total} rows (0 to {self.total - 1})."
                )
            return self.take(things).rows
        return self._rows_of([str(thing) for thing in given], "the list given")  # numpy cuts keys at a final NUL

    def _rows_of(self, keys: list[str], where: str) -> NDArray[np.int64]:
        rows, missing = [], []
        for key in keys:
            row = self._row_of.get(key)
            if row is None and key.isdecimal() and int(key) < self.total:
                row = int(key)
            if row is None:
                missing.append(key)
            else:
                rows.append(row)
        if missing:
            near = difflib.get_close_matches(missing[0], self._row_of, n=3, cutoff=0.5) if self.total <= 200_000 else []
            hint = (
                f" Nearest: {', '.join(near)}." if near else f" Keys look like '{self.keys[0]}'." if self.total else ""
            )
            raise ProbeError(
                f"{len(missing)} of {len(keys)} keys in {where} are not in the data, first '{missing[0]}'.{hint}"
            )
        return np.unique(np.asarray(rows, dtype=np.int64))

    def _compare_labels(self, told: list[tuple[str, str | None]], path: Path) -> None:
        """Refuse labels beside keys that are not the data's."""
        for key, label in told:
            if label is None:
                continue
            number = int(self.labels[self._row_of[key] if key in self._row_of else int(key)])
            name = self.class_names[number]
            if label != name and label != str(number):
                hint = "" if label in self.class_names else " The data has no such class."
                raise ProbeError(
                    f"{path} says that '{key}' is '{label}', but the data labels it '{name}'.{hint} "
                    "Correct one of the two, or take the line out."
                )

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 over pictures, labels, keys, class names and the rows of this subset."""
        sha = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        for start in range(0, self.total, 65_536):
            sha.update(np.ascontiguousarray(self.images[start : start + 65_536]).data)
        sha.update(self.labels.tobytes())
        sha.update("\0".join(self.keys).encode("utf-8", "surrogateescape"))
        sha.update(self.rows.tobytes())
        return sha.hexdigest()
