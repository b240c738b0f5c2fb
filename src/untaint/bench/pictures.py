"""Plots of results, from the result files alone: no pictures, models or scores are needed any more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from untaint import drawing
from untaint.bench import sweeps
from untaint.bench.groups import Group, Result, attackers_of, clean_accuracy, core_minutes, grouped, labels, mean_asr
from untaint.bench.measures import CURVE

__all__ = ["draw"]

CONTROLS = {"none": "#000000", "oracle": "#666666", "random": "#aaaaaa"}
PROBES = "#000000"


def draw(results: Sequence[Result], folder: Path, kinds: Collection[str] | None = None) -> list[Path]:
    """Write an SVG per setting and kind of plot (roc, rejection, cost, scores, trajectories; default all), and one of sweeps; return their paths.

    ROC curves per attack (false positive rate on a log axis), attack success and clean accuracy
    against the share rejected, quality against seconds, histograms of scores and, from BaDLoss's
    watcher, quartiles of the loss per epoch for each kind of rows. ``sweep``: detection along each thing that takes three values
    and more while all else stays.
    """
    groups = [group for group in grouped(results) if group.finished]
    paths = []
    for title in dict.fromkeys(group.title for group in groups):
        own = [group for group in groups if group.title == title]
        for kind, plot in _PLOTS.items():
            figure = plot(title, own) if kinds is None or kind in kinds else None
            if figure is not None:
                paths.append(drawing.save(figure, folder / f"{_file(title)}-{kind}.svg"))
    if kinds is None or "sweep" in kinds:
        figure = sweeps.plot([result for group in groups for result in group.finished], drawing.COLOURS)
        if figure is not None:
            paths.append(drawing.save(figure, folder / "sweep.svg"))
    return paths


def _file(title: str) -> str:
    return "-".join("".join(one if one.isalnum() else " " for one in title.lower()).split())[:80]


def _colour(group: Group, groups: Sequence[Group]) -> str:
    """Return a defence's colour, the same in every plot of a setting; controls are grey."""
    name = group.defence.split(" ")[0]
    others = [one.defence for one in groups if one.defence.split(" ")[0] not in CONTROLS]
    return CONTROLS.get(name) or drawing.COLOURS[others[::-1].index(group.defence) % len(drawing.COLOURS)]


def _mean_curve(group: Group, attack: str) -> np.ndarray[Any, Any] | None:
    curves = [
        result["detection"][attack]["curve"]
        for result in group.finished
        if "curve" in result.get("detection", {}).get(attack, {})
    ]
    return np.mean(curves, axis=0) if curves else None


def _called(result: Result) -> dict[str, str]:
    """Return what plots call each kind of rows that a result names by attack."""
    return dict(zip(result["poisoned"], labels(attackers_of(result)), strict=True))


def _roc(title: str, groups: Sequence[Group]) -> Any:
    judged = [group for group in groups if group.defence != "oracle" and _mean_curve(group, "all") is not None]
    chance = [group for group in judged if group.defence.startswith("random")]
    judged = [group for group in judged if group not in chance[1:]]  # all draws by lot are one curve
    if not judged:
        return None
    attacks = {"all": "all", **_called(judged[0].finished[0])}
    figure, axes = drawing.figure(title, len(attacks))
    for axis, (attack, label) in zip(axes, attacks.items(), strict=True):
        for group in judged:
            curve = _mean_curve(group, attack)
            if curve is not None:
                axis.plot(CURVE, curve, color=_colour(group, groups), label=group.called, linewidth=1.4)
        axis.set(xscale="log", xlim=(1e-4, 1), ylim=(0, 1.02))
        axis.set_title(label, fontsize=9)
        axis.set_xlabel("false positive rate", fontsize=8)
    for axis in axes[:: drawing.ACROSS]:
        axis.set_ylabel("true positive rate", fontsize=8)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(len(judged), 4),
        fontsize=7,
        frameon=False,
    )
    return figure


def _against(measure: Callable[[Result], float], label: str) -> Callable[[str, Sequence[Group]], Any]:
    """Return a plot of mean ASR and clean accuracy against another measure, a point per defence."""

    def plot(title: str, groups: Sequence[Group]) -> Any:
        shown = [group for group in groups if group.values(mean_asr)]
        if len(shown) < 2:
            return None
        figure, axes = drawing.figure(title, 2)
        for axis, other, what in (
            (axes[0], mean_asr, "mean attack success, %"),
            (axes[1], clean_accuracy, "clean accuracy, %"),
        ):
            for group in shown:
                across = [measure(result) for result in group.finished]
                up = [100 * value for value in group.values(other)]
                colour = _colour(group, groups)
                axis.plot(across, up, ".", color=colour, markersize=4, alpha=0.5)
                axis.plot(fmean(across), fmean(up), "o", color=colour, label=group.called, markersize=6)
            axis.set_xlabel(label, fontsize=8)
            axis.set_ylabel(what, fontsize=8)
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7, frameon=False
        )
        return figure

    return plot


def _colours(kinds: Sequence[str]) -> dict[str, str]:
    others = [kind for kind in kinds if kind not in ("clean", "probes")]
    return {
        "clean": drawing.CLEAN,
        "probes": PROBES,
        **{kind: drawing.COLOURS[number % len(drawing.COLOURS)] for number, kind in enumerate(others)},
    }


def _histograms(title: str, groups: Sequence[Group]) -> Any:
    shown = [
        group
        for group in groups
        if "histogram" in group.finished[0] and group.defence.split(" ")[0] not in ("oracle", "random")
    ]
    if not shown:
        return None
    figure, axes = drawing.figure(title, len(shown))
    for axis, group in zip(axes, shown, strict=True):
        counts = dict(group.finished[0]["histogram"])
        edges = np.array(counts.pop("edges"))
        colours, called = _colours(list(counts)), _called(group.finished[0])
        for kind, heights in counts.items():
            axis.stairs(
                heights,
                edges,
                color=colours[kind],
                label=called.get(kind, kind),
                fill=kind == "clean",
                alpha=0.35 if kind == "clean" else 1,
            )
        axis.set_yscale("symlog", linthresh=1)
        axis.set_title(group.called, fontsize=8)
        axis.set_xlabel("score", fontsize=8)
    axes[0].set_ylabel("rows (first seed)", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    return figure


def _bands(title: str, groups: Sequence[Group]) -> Any:
    known = next((result for group in groups for result in group.finished if "bands" in result), None)
    if known is None:
        return None
    figure, (axis,) = drawing.figure(title, 1)
    figure.set_figwidth(6)
    colours, called = _colours(list(known["bands"])), _called(known)
    for kind, (low, middle, high) in known["bands"].items():
        epochs = np.arange(1, len(middle) + 1)
        axis.plot(
            epochs,
            middle,
            color=colours[kind],
            label=called.get(kind, kind),
            linewidth=1.4,
            linestyle="--" if kind == "probes" else "-",
        )
        axis.fill_between(epochs, low, high, color=colours[kind], alpha=0.12, linewidth=0)
    axis.set(yscale="log", xticks=epochs[:: max(1, len(epochs) // 10)])
    axis.set_xlabel("epoch", fontsize=8)
    axis.set_ylabel("cross-entropy: median and quartiles (first seed)", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    return figure


_PLOTS: dict[str, Callable[[str, Sequence[Group]], Any]] = {
    "roc": _roc,
    "rejection": _against(lambda result: 100 * float(result.get("removal", {}).get("share", 0.0)), "rejected, %"),
    "cost": _against(core_minutes, "processor minutes of training"),
    "scores": _histograms,
    "trajectories": _bands,
}
