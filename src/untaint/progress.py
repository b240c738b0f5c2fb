"""How long work tells that it is under way: a protocol, and the silent version.

The library never prints. The command line hands in something that draws bars.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Progress", "Silent", "Step"]


class Step(Protocol):
    """One bar: ``advance`` by a count of units, or parts of one."""

    def advance(self, count: float, note: str = "") -> None:
        """Say that ``count`` more units are done; ``note`` is a short current figure."""
        ...


class Progress(Protocol):
    """Opens bars and takes remarks."""

    def step(self, what: str, total: float, done: float = 0, unit: str = "images") -> AbstractContextManager[Step]:
        """Open a bar for ``total`` units of which ``done`` were done before."""
        ...

    def say(self, remark: str) -> None:
        """Pass on one line for people."""
        ...


class _Nothing:
    def advance(self, count: float, note: str = "") -> None:
        pass


class Silent:
    """Shows nothing."""

    @contextmanager
    def step(self, what: str, total: float, done: float = 0, unit: str = "images") -> Iterator[Step]:
        """Open a bar that shows nothing."""
        yield _Nothing()

    def say(self, remark: str) -> None:
        """Drop the remark."""
