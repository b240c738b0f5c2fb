"""Where examples come from: folders, tables, archives, hub ids, torch data sets, arrays."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from untaint.sources.base import EncodedSource, Source, Unreadable
    from untaint.sources.loading import load
    from untaint.sources.opening import open_source

__all__ = ["EncodedSource", "Source", "Unreadable", "load", "open_source"]

# Looked up when first used: a decoding process needs base and decode alone, and is to start fast.
_PLACES = {"EncodedSource": "base", "Source": "base", "Unreadable": "base", "load": "loading", "open_source": "opening"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
