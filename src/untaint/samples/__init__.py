"""The small real data set that the demo and the tests use: 6,000 pictures of CIFAR-10 (Krizhevsky, 2009)."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """Return the folder with ``train-*.parquet`` (500 pictures of each class) and ``test-*.parquet`` (100 of each)."""
    return Path(str(importlib.resources.files(__name__)))
