"""What the pages' parts share: tables and figures in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from untaint.bench.groups import spread


def table(head: list[str], rows: list[list[str]]) -> str:
    assert all(len(row) == len(head) for row in rows), f"a line of {head} has another number of cells"
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def percent(values: Sequence[float]) -> str:
    found = spread(values)
    if found is None:
        return ""
    mean, deviation = found
    return f"{100 * mean:.1f} %" if deviation is None else f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def machines(hardware: Iterable[str]) -> str:
    """On what some results were made, from what each says of it."""
    told = sorted(set(hardware))
    parted = [re.fullmatch(r"(\d+) threads? of (.+)", text) for text in told]
    if not all(parted):
        return "; ".join(told)
    counts = sorted({int(found[1]) for found in parted if found})
    names = " or ".join(dict.fromkeys(found[2] for found in parted if found))
    return f"{' or '.join(map(str, counts))} thread{'' if counts == [1] else 's'} of {names}"
