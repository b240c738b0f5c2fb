"""What changes when one thing is changed: a plot of how well detectors do along everything that a grid sweeps over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from untaint import spec
from untaint.bench.groups import Result

__all__ = ["Sweep", "plot", "swept"]

FEWEST = 3  # values that make a line
SWEPT = {
    "rate": "poisoned by each attacker, % of the pictures",
    "number": "attackers",
    "label_noise": "wrong labels, share",
    "long_tail": "largest class : smallest",
    "overlap": "with a second trigger, share",
    "probes": "probes",
    "bad_probes": "poisoned probes, share",
    "epochs": "epochs at most",
    "rows": "pictures",
}
RATES = ("rate", "class_rate")


def _auroc(result: Result) -> float | None:
    value = result.get("detection", {}).get("all", {}).get("auroc")
    return None if value is None else float(value)


def _found(result: Result) -> float | None:
    removal, poisoned = result.get("removal"), sum(result["poisoned"].values())
    return removal["poisoned"] / poisoned if removal and poisoned else None


def _right(result: Result) -> float | None:
    removal = result.get("removal")
    return removal["poisoned"] / removal["rejected"] if removal and removal["rejected"] else None


MEASURES: dict[str, Callable[[Result], float | None]] = {
    "AUROC": _auroc,
    "poison that is set aside": _found,
    "poison among what is set aside": _right,
}


@dataclass(frozen=True)
class Sweep:
    """Results that differ in ``key`` alone: ``values`` in order, and the ``results`` of each."""

    key: str
    called: str
    values: tuple[float, ...]
    results: tuple[tuple[Result, ...], ...]


def swept(results: Sequence[Result]) -> list[Sweep]:
    """Return what can be compared along one thing, for each detector; of several sets along the same thing, the longest."""
    found: list[Sweep] = []
    judged = [result for result in results if "removal" in result and result["poisoned"]]
    for called in dict.fromkeys(str(result.get("called", result["defence"])) for result in judged):
        own = [result for result in judged if str(result.get("called", result["defence"])) == called]
        for key in SWEPT:
            sets: dict[str, dict[float, list[Result]]] = {}
            for result in own:
                for rest, value in _places(key, result, own):
                    sets.setdefault(rest, {}).setdefault(value, []).append(result)
            longest = max(sets.values(), key=len, default={})
            if len(longest) >= FEWEST:
                values = tuple(sorted(longest))
                found.append(Sweep(key, called, values, tuple(tuple(longest[value]) for value in values)))
    return found


def _places(key: str, result: Result, others: Sequence[Result]) -> Iterator[tuple[str, float]]:
    """Go through what a result has besides ``key``, as text, and its value along it."""
    setting = {
        name: value
        for name, value in result["origin"]["setting"].items()
        if name not in ("attacks", "seed", "detect_only")
    }
    attackers: list[str] = setting.pop("attackers")
    if key == "rate":
        kinds = [_without_rate(text) for text in attackers]
        share = 100 * sum(result["poisoned"].values()) / len(attackers) / result["rows"]
        yield repr((setting, kinds)), float(f"{share:.2g}")
    elif key == "number":
        for whole in {tuple(other["origin"]["setting"]["attackers"]) for other in others}:
            if list(whole[: len(attackers)]) == attackers:
                yield repr((setting, whole)), len(attackers)
    elif (value := setting.pop(key, None)) is not None or key == "epochs":
        value = result["origin"].get("watch", {}).get("epochs") if value is None else value
        if value is not None:
            yield repr((setting, attackers)), float(value)


def _without_rate(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    kind, options = spec.parse(text)
    return kind, tuple(sorted((name, str(value)) for name, value in options.items() if name not in RATES))


def plot(results: Sequence[Result], colours: Sequence[str]) -> Any:
    """Return a figure with a column for each thing that is swept over and a line for each detector; None if there is none."""
    import matplotlib
    from matplotlib.figure import Figure

    sweeps = swept(results)
    if not sweeps:
        return None
    matplotlib.rcParams["svg.hashsalt"] = "untaint"  # the same file for the same results
    keys = [key for key in SWEPT if any(sweep.key == key for sweep in sweeps)]
    names = list(dict.fromkeys(sweep.called for sweep in sweeps))
    figure = Figure(figsize=(2.9 * len(keys) + 1.2, 2.0 * len(MEASURES) + 0.8), layout="constrained")
    axes = figure.subplots(len(MEASURES), len(keys), squeeze=False, sharey="row", sharex="col")
    for column, key in enumerate(keys):
        own = [sweep for sweep in sweeps if sweep.key == key]
        ticks = sorted({value for sweep in own for value in sweep.values})
        for row, (what, measure) in enumerate(MEASURES.items()):
            axis = axes[row, column]
            for sweep in own:
                points = [
                    (ticks.index(value), [one for one in map(measure, some) if one is not None])
                    for value, some in zip(sweep.values, sweep.results, strict=True)
                ]
                shown = [(place, fmean(some)) for place, some in points if some]
                colour = colours[names.index(sweep.called) % len(colours)]
                across, up = [place for place, _ in shown], [value for _, value in shown]
                axis.plot(across, up, "o-", color=colour, label=sweep.called, linewidth=1.4, markersize=4)
            axis.set_xticks(range(len(ticks)), [f"{value:g}" for value in ticks])
            axis.set_ylim(-0.02, 1.02)
            axis.grid(True, color="#e6e6e6", linewidth=0.6)
            axis.tick_params(labelsize=8)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
            if column == 0:
                axis.set_ylabel(what, fontsize=8)
        axes[-1, column].set_xlabel(SWEPT[key], fontsize=8)
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(3, len(handles)),
        fontsize=7,
        frameon=False,
    )
    return figure
