"""What a person sees at the terminal: bars with rate and time left, remarks, tables, errors."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from untaint.progress import Progress, Silent, Step

__all__ = ["plain", "progress", "table"]

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


def plain(text: str) -> str:
    """Return text with what a terminal would obey (line breaks, escape sequences) spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def progress(quiet: bool) -> Progress:
    """Return bars at a terminal, plain lines elsewhere, nothing if asked to be quiet; all on standard error."""
    if quiet:
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()


class Bars:
    """Draws a bar per step with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)

    def say(self, remark: str) -> None:
        """Print one line."""
        self.console.print(plain(remark), markup=False, soft_wrap=True)

    @contextmanager
    def step(self, what: str, total: float, done: float = 0, unit: str = "images") -> Iterator[Step]:
        """Open a bar."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f} %", markup=False),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(what, total=total, rate="", note="")
            bars.update(task, completed=done)
            begin, count = time.monotonic(), 0.0

            class Bar:
                def advance(self, more: float, note: str = "") -> None:
                    nonlocal count
                    count += more
                    rate = count / max(time.monotonic() - begin, 1e-9)
                    bars.update(task, advance=more, rate=f"{rate:,.0f} {unit}/s", note=note)

            yield Bar()


class Lines:
    """Writes a line now and then, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def say(self, remark: str) -> None:
        """Print one line."""
        print(plain(remark), file=self.stream, flush=True)

    @contextmanager
    def step(self, what: str, total: float, done: float = 0, unit: str = "images") -> Iterator[Step]:
        """Open a step; it says how long it took when it is over, and lines in between if it is long."""
        begin = last = time.monotonic()
        count = 0.0
        outer = self

        class Line:
            def advance(self, more: float, note: str = "") -> None:
                nonlocal count, last
                count += more
                now = time.monotonic()
                if now - last >= PLAIN_EVERY and count:
                    last = now
                    rate = count / (now - begin)
                    left = max(0, total - done - count) / rate
                    share = (done + count) / max(total, 1)
                    outer.say(f"{what}: {share:.0%}, {rate:,.0f} {unit}/s, {left:.0f} s left {note}".rstrip())

        yield Line()
        spent = time.monotonic() - begin
        if spent >= 2:
            self.say(f"{what}: done in {spent:.0f} s")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Return a plain table: the first column to the left, the others to the right unless ``left``."""
    head, rows = [plain(cell) for cell in head], [[plain(cell) for cell in line] for line in rows]
    widths = [max(len(str(line[place])) for line in [head, *rows]) for place in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = str(cells[0]).ljust(widths[0])
        rest = [
            str(cell).ljust(width) if left else str(cell).rjust(width)
            for cell, width in zip(cells[1:], widths[1:], strict=True)
        ]
        return "  ".join(["", first, *rest]).rstrip()

    return "\n".join([line(head), "  " + "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, rows)])


def glossary(rows: Sequence[tuple[str, str, str]], width: int = 100) -> str:
    """Return a line for each name with what it is, and below, if there are any, its options; broken to fit into a width."""
    first = 4 + max((len(name) for name, *_ in rows), default=0)
    lines = []
    for name, said, options in rows:
        own = [
            part
            for text in (said, options)
            for part in textwrap.wrap(plain(text).replace("``", ""), max(20, width - first), break_on_hyphens=False)
        ]
        starts = [f"  {plain(name)}".ljust(first), *[" " * first] * len(own)]
        lines += [(start + part).rstrip() for start, part in zip(starts, own or [""], strict=False)]
    return "\n".join(lines)
