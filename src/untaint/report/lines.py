"""The trajectories that the page draws: margins of the shown pictures beside the probes' band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untaint.trajectories import Trajectories

__all__ = ["band", "watchers"]

EPOCHS = 60  # at most this many are drawn, evenly spaced

_NAMES = {
    "watcher-a": "Watcher A",
    "watcher-b": "Watcher B",
    "whitened-a": "Watcher A, whitened",
    "whitened-b": "Watcher B, whitened",
    "witness": "Witness",
    ".": "Your training",
}


def band(margins: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the 10 %, 50 % and 90 % quantile of each column: float64 (3, epochs), nan for a column without numbers."""
    result = np.full((3, margins.shape[1]), np.nan)
    for epoch, column in enumerate(margins.T):
        finite = column[np.isfinite(column)]
        if finite.size:
            result[:, epoch] = np.quantile(finite, (0.1, 0.5, 0.9))
    return result


def _rounded(values: NDArray[Any]) -> list[float | None]:
    """Return numbers of two decimals, None where there is none."""
    return [round(float(value), 2) if np.isfinite(value) else None for value in values]


def watchers(
    folder: Path, rows: NDArray[np.int64], probes: NDArray[np.int64], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one entry per watcher that left trajectories, ready for JSON.

    ``epochs``: numbers from 1; ``low``, ``middle``, ``high``: the probes' band; ``margins``: one
    list per given row; ``says``: the class each row was last taken for, empty where unknown.
    """
    found = []
    for name, title in _NAMES.items():
        stored = folder / name / "trajectories"
        if not (stored / "scaled-logit").is_dir():
            continue
        trajectories = Trajectories(stored)
        epochs = np.unique(np.linspace(0, trajectories.epochs - 1, EPOCHS).round().astype(int)).tolist()
        low, middle, high = band(trajectories.block("margin", probes, epochs))
        predicted = trajectories.predicted()[rows]
        found.append(
            {
                "name": title,
                "epochs": [epoch + 1 for epoch in epochs],
                "low": _rounded(low),
                "middle": _rounded(middle),
                "high": _rounded(high),
                "margins": [_rounded(line) for line in trajectories.block("margin", rows, epochs)],
                "says": [class_names[label] if 0 <= label < len(class_names) else "" for label in predicted.tolist()],
            }
        )
    return found
