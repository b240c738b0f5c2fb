"""What the pages' parts share: tables and figures in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from untaint.bench.groups import spread


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def percent(values: Sequence[float]) -> str:
    found = spread(values)
    if found is None:
        return ""
    mean, deviation = found
    return f"{100 * mean:.1f} %" if deviation is None else f"{100 * mean:.1f} ± {100 * deviation:.1f} %"
