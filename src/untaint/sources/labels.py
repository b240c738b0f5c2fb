"""Which column is the picture, which the label, and what classes the labels stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untaint.errors import SourceError, did_you_mean

__all__ = [
    "FILE_COLUMNS",
    "IMAGE_COLUMNS",
    "LABEL_COLUMNS",
    "classes_of",
    "fill",
    "guess",
    "integers",
    "natural",
    "number_classes",
]

IMAGE_COLUMNS = (
    "image",
    "images",
    "img",
    "picture",
    "photo",
    "pixels",
    "image_bytes",
    "bytes",
    "jpg",
    "jpeg",
    "png",
    "webp",
)
FILE_COLUMNS = (
    *("file_name", "filename", "file", "file_path", "filepath", "path", "image_path", "image_file", "image_id"),
    *("image", "img", "picture", "photo", "key", "name", "id"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "classname", "class_id", "classid", "category", "category_id"),
    *("target", "targets", "y", "cls", "fine_label", "fine_labels", "label_name"),
)
MOST_CLASSES = 100_000  # a larger number is an identifier, not a class


def guess(columns: Sequence[str], known: Iterable[str], given: str | None, what: str, where: str) -> str | None:
    """Return the column that was named, else the first known one (case does not matter), else None."""
    if given is not None:
        if given not in columns:
            raise SourceError(f"{where} has no column '{given}' for the {what}.{did_you_mean(given, columns)}")
        return given
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name] for name in known if name in lower), None)


def integers(
    values: NDArray[Any], names: Sequence[str] | None, key: Callable[[int], str], where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return int64 labels and class names of numbered labels; refuses negative, missing and broken ones."""
    numbers = np.asarray(values)
    if numbers.dtype.kind == "f":
        if (bad := np.flatnonzero(~np.isfinite(numbers))).size:
            raise SourceError(_at(bad, key, "has no label", where, "Label it or take it out."))
        if (bad := np.flatnonzero(numbers != np.rint(numbers))).size:
            raise SourceError(
                _at(bad, key, f"has the label {numbers[bad[0]]}", where, "Give whole numbers from 0, or names.")
            )
    labels = numbers.astype(np.int64)
    if (bad := np.flatnonzero(labels < 0)).size:
        advice = "Classes are numbered from 0 (-1 often means that the labels are withheld)."
        raise SourceError(_at(bad, key, f"has the label {labels[bad[0]]}", where, advice))
    top = int(labels.max(initial=-1)) + 1
    limit = MOST_CLASSES if names is None else len(names)
    if top > limit:
        bad = np.flatnonzero(labels >= limit)
        advice = (
            f"There are {limit:,} classes." if names else f"Numbers to {limit:,} can be classes; name another column."
        )
        raise SourceError(_at(bad, key, f"has the label {labels[bad[0]]}", where, advice))
    return labels, tuple(names) if names is not None else tuple(str(number) for number in range(top))


def classes_of(
    values: Sequence[Any], key: Callable[[int], str], where: str, *, typed: bool
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return int64 labels and class names of labels of any kind.

    ``typed``: text is text, as in Parquet; otherwise texts that all read as numbers are numbers, as in CSV.
    """
    missing = [i for i, value in enumerate(values) if _missing(value)]
    if missing:
        raise SourceError(_at(missing, key, "has no label", where, "Label it or take it out."))
    several = [i for i, value in enumerate(values) if isinstance(value, (list, tuple, dict, np.ndarray))]
    if several:
        advice = "untaint needs exactly one class per picture: multi-label data cannot be used."
        raise SourceError(_at(several, key, "has a list of labels", where, advice))
    if all(isinstance(value, (bool, np.bool_)) for value in values):
        return np.asarray(values, dtype=np.int64), ("false", "true")
    numeric = np.fromiter((_numeric(value, typed) for value in values), dtype=bool, count=len(values))
    if numeric.all():
        return integers(np.array([float(value) for value in values]), None, key, where)
    if not numeric.any():
        return number_classes([str(value) for value in values])
    texts = np.flatnonzero(~numeric)
    raise SourceError(
        _at(
            texts,
            key,
            f"has the label '{values[texts[0]]}'",
            where,
            f"{numeric.sum():,} other labels are numbers: give all names or all numbers.",
        )
    )


def number_classes(texts: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return int64 labels and the names, sorted (as numbers if they all are), of labels given as text."""
    names = tuple(natural(set(texts)))
    number = {name: i for i, name in enumerate(names)}
    return np.fromiter((number[text] for text in texts), dtype=np.int64, count=len(texts)), names


def natural(names: Iterable[str]) -> list[str]:
    """Return the names sorted: as numbers if all are plain digits, else as text."""
    listed = list(names)
    if all(name.isascii() and name.isdigit() for name in listed):
        return sorted(listed, key=lambda name: (int(name), name))
    return sorted(listed)


def _missing(value: Any) -> bool:
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return isinstance(value, float) and math.isnan(value)


def _numeric(value: Any, typed: bool) -> bool:
    if isinstance(value, (int, float, np.integer, np.floating)):
        return True
    if typed:
        return False
    try:
        float(value)
    except ValueError:
        return False
    return str(value).strip().lower().lstrip("+-") not in ("inf", "infinity", "nan")


def _at(rows: Sequence[int] | NDArray[Any], key: Callable[[int], str], what: str, where: str, advice: str) -> str:
    first = int(rows[0])
    others = f" (and {len(rows) - 1:,} others)" if len(rows) > 1 else ""
    return f"'{key(first)}' in {where}{others} {what}. {advice}"


def fill(numbers: Iterable[int]) -> NDArray[np.int64]:
    """Return int64 labels from any numbers."""
    return np.fromiter(numbers, dtype=np.int64)
