"""The words that name the same data again on a command line."""

from __future__ import annotations

import shlex

__all__ = ["words"]


def words(data: str, **reading: str | int | None) -> str:
    """Return what to type to have ``data`` read the same way again, quoted for a shell.

    ``reading``: ``split``, ``size``, ``image_column``, ``label_column`` as ``untaint.load`` takes them.
    """
    parts = [data]
    for name, value in reading.items():
        if value is not None and (name, value) != ("split", "train"):
            parts += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(parts)
