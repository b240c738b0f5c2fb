"""Pictures of what a layer sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from untaint import drawing
from untaint.errors import InputError
from untaint.spectra.looking import Shown, Spectrum

__all__ = ["draw", "draw_through"]


def draw(found: Spectrum, path: str | Path) -> Path:
    """Write an SVG with a line of five plots for each trigger: spectra, where energy lies, what taking directions out does, and pictures in strong directions and outside."""
    if not found.shown:
        raise InputError("there is no trigger to draw. Look with one at least.")
    title = f"{found.layer}: {found.pictures:,} clean pictures, {found.width:,} features"
    figure, axes = drawing.figure(title, len(PLOTS) * len(found.shown), across=len(PLOTS))
    for number, (name, one) in enumerate(found.shown.items()):
        for plot, axis in zip(PLOTS, axes[number * len(PLOTS) :], strict=False):
            plot(axis, found, name, one)
            axis.title.set_fontsize(9)
            axis.xaxis.label.set_fontsize(8)
    return drawing.save(figure, Path(path))


def draw_through(found: Sequence[Spectrum], path: str | Path) -> Path:
    """Write an SVG of what a layer sees after each epoch of a training: effective ranks, where the change lies that each trigger makes, and what it does.

    ``found``: one of ``look`` for each epoch, as ``untaint.train(..., after_epoch=...)`` lets one collect them.
    """
    if not found or not found[0].shown:
        raise InputError(
            "there is nothing to draw. Give what was looked at after one epoch at least, with one trigger."
        )
    epochs = np.arange(1, len(found) + 1)
    figure, (ranks, energy, success) = drawing.figure(f"{found[0].layer}, epoch by epoch", 3)
    ranks.plot(epochs, [one.rank for one in found], color=drawing.CLEAN, label="clean")
    first = next(iter(found[0].shown))
    success.plot(
        epochs, [100 * one.shown[first].accuracy[0] for one in found], color=drawing.CLEAN, label="clean accuracy"
    )
    for number, name in enumerate(found[0].shown):
        colour = drawing.COLOURS[(number + 1) % len(drawing.COLOURS)]
        own = [one.shown[name] for one in found]
        ranks.plot(epochs, [one.rank for one in own], color=colour, label=name)
        energy.plot(epochs, [100 * one.energy[: found[0].k].sum() for one in own], color=colour, label=name)
        success.plot(epochs, [100 * one.success[0] for one in own], color=colour, label=f"success of {name}")
    ranks.set(title="effective rank")
    energy.set(title=f"of the change, % in the {found[0].k} strongest directions", ylim=(0, 105))
    success.set(title="accuracy and success, %", ylim=(0, 105))
    for axis in (ranks, energy, success):
        axis.set(xlabel="epoch")
        axis.title.set_fontsize(9)
        axis.legend(fontsize=7)
    return drawing.save(figure, Path(path))


def _spectra(axis: Any, found: Spectrum, name: str, one: Shown) -> None:
    for label, values, rank, colour in (
        ("clean", found.values, found.rank, drawing.CLEAN),
        (name, one.values, one.rank, drawing.COLOURS[1]),
    ):
        there = values[values > 1e-6 * values.max(initial=0)]
        axis.plot(
            np.arange(1, len(there) + 1), there / there.max(initial=1), color=colour, label=f"{label}, rank {rank:.0f}"
        )
    axis.set(xscale="log", yscale="log", xlabel="direction", title="singular values, of the largest")
    axis.legend(fontsize=7)


def _energy(axis: Any, found: Spectrum, name: str, one: Shown) -> None:
    for label, shares, colour in (
        ("clean, less their mean", one.clean_energy, drawing.CLEAN),
        (f"{name}'s change", one.energy, drawing.COLOURS[1]),
    ):
        axis.plot(np.arange(1, len(shares) + 1), 100 * np.cumsum(shares), color=colour, label=label)
    axis.set(
        xscale="log",
        ylim=(0, 105),
        xlabel="strongest directions",
        title=f"energy in them, % ({100 * found.share:.0f} % triggered)",
    )
    axis.legend(fontsize=7)


def _removal(axis: Any, found: Spectrum, name: str, one: Shown) -> None:
    places = np.arange(len(found.removed))
    axis.plot(places, 100 * one.accuracy, color=drawing.CLEAN, marker="o", markersize=3, label="clean accuracy")
    axis.plot(places, 100 * one.success, color=drawing.COLOURS[1], marker="o", markersize=3, label=f"success of {name}")
    axis.set(ylim=(0, 105), xlabel="directions taken out", title="with these taken out, %")
    axis.set_xticks(places, [str(count) for count in found.removed])
    axis.legend(fontsize=7)


def _scatter(index: int) -> Callable[[Any, Spectrum, str, Shown], None]:
    def plot(axis: Any, found: Spectrum, name: str, one: Shown) -> None:
        for mask, colour, label in (
            (~one.is_triggered, drawing.CLEAN, "clean"),
            (one.is_triggered, drawing.COLOURS[1], name),
        ):
            axis.scatter(*one.scatter[index][mask].T, s=5, alpha=0.6, linewidths=0, color=colour, label=label)
        axis.set(
            title=f"in the {found.k} strongest directions" if index == 0 else "in all others", xticks=[], yticks=[]
        )
        axis.legend(fontsize=7, markerscale=2)

    return plot


PLOTS = (_spectra, _energy, _removal, _scatter(0), _scatter(1))
