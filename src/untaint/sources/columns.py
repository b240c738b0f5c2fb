"""What the columns of an Arrow schema hold: pictures, labels, class names."""

from __future__ import annotations

import json
from typing import Any

from untaint.errors import SourceError
from untaint.sources import labels

__all__ = ["class_names", "descend", "fields_of", "is_text", "label_column", "line", "picture_column"]


def _features(schema: Any) -> dict[str, Any]:
    """Return what the Hugging Face library noted about the columns in a schema."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {k: v for k, v in noted.items() if isinstance(v, dict)} if isinstance(noted, dict) else {}


def class_names(schema: Any) -> dict[str, list[str]]:
    """Return the class names of each column that has them."""
    return {
        k: [str(n) for n in v["names"]]
        for k, v in _features(schema).items()
        if v.get("_type") == "ClassLabel" and v.get("names")
    }


def fields_of(schema: Any) -> dict[str, Any]:
    """Return column name -> type; fields of a column ``json`` (webdataset) are named ``json.label``."""
    import pyarrow as pa

    fields: dict[str, Any] = {}
    for field in schema:
        fields[field.name] = field.type
        if field.name == "json" and pa.types.is_struct(field.type):
            fields.update({f"json.{inner.name}": inner.type for inner in field.type})
    return fields


def descend(table: Any, path: str) -> Any:
    """Return a column, or a field of one (``image.path``), of an Arrow table or batch."""
    import pyarrow.compute as pc

    if path in table.schema.names:
        return table.column(path)
    first, *rest = path.split(".")
    array = table.column(first)
    for name in rest:
        array = pc.struct_field(array, name)
    return array


def is_text(kind: Any) -> bool:
    """Return whether an Arrow type is text."""
    import pyarrow as pa

    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _coding(kind: Any) -> str | None:
    """Return the column of labels, or None: the named one, the only one with class names, else by its name."""
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "binary"
    return "struct" if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind] else None


def picture_column(fields: dict[str, Any], given: str | None, name: str) -> tuple[str, str]:
    """Return the column of encoded pictures and whether it holds them as ``binary`` or in a ``struct``."""
    codings = {column: coding for column, kind in fields.items() if (coding := _coding(kind))}
    column = labels.guess(list(fields if given else codings), labels.IMAGE_COLUMNS, given, "pictures", name)
    if column is None and len(codings) == 1:
        column = next(iter(codings))
    if column is None or column not in codings:
        listed = ", ".join(f"{c} ({kind})" for c, kind in fields.items())
        problem = (
            "several columns of pictures"
            if column is None and codings
            else f"no pictures in column '{column}'"
            if column
            else "no column of pictures"
        )
        raise SourceError(
            f"{name} has {problem}: it has {listed}. Name one that holds encoded pictures with image_column."
        )
    return column, codings[column]


def label_column(
    fields: dict[str, Any], named: dict[str, list[str]], given: str | None, image: str, name: str
) -> str | None:
    """Return the column of labels, or None: the named one, the only one with class names, else by its name."""
    if given is None and len(named) == 1:
        return next(iter(named))
    words = (*labels.LABEL_COLUMNS, *(f"json.{word}" for word in labels.LABEL_COLUMNS), "txt", "text")
    return labels.guess([column for column in fields if column != image], words, given, "labels", name)


def line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return str(error).strip().partition("\n")[0][:200]
