"""Results of one defence in one setting, over its seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from untaint import spec

__all__ = [
    "Group",
    "attack_success",
    "attackers",
    "attackers_of",
    "clean_accuracy",
    "core_minutes",
    "grouped",
    "labels",
    "mean_asr",
    "own",
    "spread",
]

Result = dict[str, Any]
CONTROLS = ("none", "oracle", "random")


@dataclass(frozen=True, kw_only=True)
class Group:
    """One row of a table: ``results`` of every seed, failed ones among them; ``defence``: its full text."""

    title: str
    defence: str
    results: tuple[Result, ...]

    @property
    def called(self) -> str:
        """What the grid calls the defence; its text where it has no shorter name."""
        return str(next((result["called"] for result in self.results if "called" in result), self.defence))

    @property
    def finished(self) -> list[Result]:
        """The results of cells that did not fail."""
        return [result for result in self.results if "error" not in result]

    @property
    def share(self) -> list[float]:
        """The share rejected, of each seed; nothing is where a defence removes nothing."""
        return [float(result.get("removal", {}).get("share", 0.0)) for result in self.finished]

    @property
    def seeds(self) -> set[int]:
        """The seeds of cells that did not fail."""
        return {int(result["origin"]["setting"]["seed"]) for result in self.finished}

    def at(self, seeds: Collection[int]) -> Group:
        """Return the results of these seeds alone, to be compared with a group that has no others."""
        chosen = tuple(result for result in self.results if result["origin"]["setting"]["seed"] in seeds)
        return dataclasses.replace(self, results=chosen)

    def values(self, measure: Callable[[Result], float | None]) -> list[float]:
        """Return a measure of every seed that has it."""
        found = [measure(result) for result in self.finished]
        return [value for value in found if value is not None]


def grouped(results: Sequence[Result]) -> list[Group]:
    """Return the groups, settings and defences in order of appearance, the controls of each setting first."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault((result["title"], result["defence"]), []).append(result)
    titles = list(dict.fromkeys(title for title, _ in found))
    ordered = sorted(found.items(), key=lambda item: (titles.index(item[0][0]), _rank(item[0][1])))
    return [Group(title=title, defence=defence, results=tuple(some)) for (title, defence), some in ordered]


def _rank(defence: str) -> int:
    name = defence.split(" ")[0].split(":")[0]
    return CONTROLS.index(name) if name in CONTROLS else len(CONTROLS)


def attackers(groups: Sequence[Group]) -> list[str]:
    """Return the texts of all attacks of some groups, each once, in order."""
    return list(dict.fromkeys(text for group in groups for result in group.results for text in attackers_of(result)))


def labels(texts: Sequence[str]) -> list[str]:
    """Return what tables call some attacks: the name, and of several with one name what differs: ``blend lattice``, ``blend kitty.png``."""
    parsed = [spec.parse(text) for text in texts]
    found = []
    for name, options in parsed:
        same = [other for kind, other in parsed if kind == name]
        keys = dict.fromkeys(key for other in same for key in other)
        odd = [key for key in keys if any(other.get(key) != options.get(key) for other in same)]
        plain = [key for key in odd if key not in ("rate", "class_rate", "target")] or odd
        found.append(" ".join([name, *(Path(options[key]).name for key in plain[:1] if key in options)]))
    return [
        f"{label} {found[:place].count(label) + 1}" if found[:place].count(label) else label
        for place, label in enumerate(found)
    ]


def own(result: Result, text: str) -> str | None:
    """Return what a result calls the attack with this text; None if it has no such attack."""
    texts = attackers_of(result)
    return list(result["poisoned"])[texts.index(text)] if text in texts else None


def attackers_of(result: Result) -> list[str]:
    """Return the texts of a result's attacks, in the order of its figures."""
    return list(result["origin"]["setting"]["attackers"])


def clean_accuracy(result: Result) -> float | None:
    """Return the clean accuracy of a result's model; None if none was trained."""
    return float(result["model"]["clean accuracy"]) if "model" in result else None


def attack_success(result: Result, name: str) -> float | None:
    """Return the success rate of the attack that a result calls so; None if no model was trained, and for a control."""
    found = result["model"]["attacks"][name].get("asr") if "model" in result else None
    return None if found is None else float(found)


def mean_asr(result: Result) -> float | None:
    """Return the mean attack success rate over a result's attacks; None without attacks or model."""
    rates = [rate for name in result["poisoned"] if (rate := attack_success(result, name)) is not None]
    return fmean(rates) if rates else None


def core_minutes(result: Result) -> float:
    """Return the processor minutes, of all threads, of all the models of a cell, those that it shares with others too.

    Unlike the clock's, they hardly depend on what else the machine has to do.
    """
    return sum(float(stage["core_seconds"]) for stage in result["stages"].values()) / 60


def spread(values: Sequence[float]) -> tuple[float, float | None] | None:
    """Return mean and standard deviation (of a sample; None for one value), or None for no value."""
    if not values:
        return None
    return fmean(values), stdev(values) if len(values) > 1 else None
