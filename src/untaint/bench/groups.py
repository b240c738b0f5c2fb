"""Results of one defence in one setting, over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

__all__ = ["Group", "grouped", "mean_asr", "spread"]

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One row of a table: ``results`` of every seed, failed ones among them."""

    title: str
    defence: str
    results: tuple[Result, ...]

    @property
    def finished(self) -> list[Result]:
        """The results of cells that did not fail."""
        return [result for result in self.results if "error" not in result]

    @property
    def share(self) -> list[float]:
        """The share rejected, of each seed; nothing is where a defence removes nothing."""
        return [float(result.get("removal", {}).get("share", 0.0)) for result in self.finished]

    def values(self, measure: Callable[[Result], float | None]) -> list[float]:
        """Return a measure of every seed that has it."""
        found = [measure(result) for result in self.finished]
        return [value for value in found if value is not None]


def grouped(results: Sequence[Result]) -> list[Group]:
    """Return the groups in order of setting, then of appearance."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault((result["title"], result["defence"]), []).append(result)
    ordered = sorted(found.items(), key=lambda item: (item[0][0], _rank(item[0][1])))
    return [Group(title=title, defence=defence, results=tuple(some)) for (title, defence), some in ordered]


def _rank(defence: str) -> tuple[int, str]:
    first = ("none", "oracle", "random")
    place = next(
        (number for number, name in enumerate(first) if defence.split(" ")[0].split(":")[0] == name), len(first)
    )
    return place, defence


def mean_asr(result: Result) -> float | None:
    """Return the mean attack success rate over a result's attacks; None without attacks."""
    rates = [attack["asr"] for attack in result["model"]["attacks"].values()]
    return fmean(rates) if rates else None


def spread(values: Sequence[float]) -> tuple[float, float | None] | None:
    """Return mean and standard deviation (of a sample; None for one value), or None for no value."""
    if not values:
        return None
    return fmean(values), stdev(values) if len(values) > 1 else None
