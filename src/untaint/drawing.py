"""Figures of matplotlib in one style, and how they are written: the same file for the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from untaint import run

__all__ = ["ACROSS", "CLEAN", "COLOURS", "figure", "save"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#bcbd22")
CLEAN = "#444444"
ACROSS = 4  # axes side by side


def figure(title: str, count: int, *, across: int = ACROSS) -> tuple[Any, Any]:
    """Return a figure with so many axes, at most so many side by side; needs no display."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "untaint"  # the same file for the same results
    wide = min(count, across)
    down = -(-count // wide)
    made = Figure(figsize=(3.6 * wide + 0.6, 2.6 * down + 0.8), layout="constrained")
    axes = made.subplots(down, wide, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    axes = axes[:count]
    made.suptitle(title, fontsize=10)
    for one in axes:
        one.grid(True, color="#e6e6e6", linewidth=0.6)
        one.tick_params(labelsize=8)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    return made, axes


def save(made: Any, path: Path) -> Path:
    """Write a figure as SVG."""
    with run.written(path) as file:
        made.savefig(file, format="svg", metadata={"Date": None})
    return path
