"""Whom the witness may be trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from untaint import run
from untaint.defenses.base import Task

__all__ = ["trust", "trusted_rows"]


def trust(
    task: Task, suspicion: NDArray[np.float32], share: float, floor: float, name: str = "trusted"
) -> NDArray[np.int64]:
    """Choose the trusted rows, once: what was chosen stays with the run, under this name."""
    path = task.scratch / f"{name}.npy"
    sealed = path.with_suffix(".json")
    if path.exists() and sealed.exists():
        run.check(path.parent, {path.name: run.read_sealed(sealed)["sha256"]})
        return np.asarray(run.load_array(path))
    trusted = trusted_rows(suspicion, task.examples.labels, task.examples.rows, share, floor)
    run.save_array(path, trusted)
    run.write_sealed(sealed, {"sha256": run.digest(path)})
    return trusted


def trusted_rows(
    suspicion: NDArray[np.float32], labels: NDArray[np.int64], rows: NDArray[np.int64], share: float, floor: float
) -> NDArray[np.int64]:
    """Return the least suspicious rows: ``share`` of all, and at least ``floor`` of each class; ascending."""
    order = rows[np.argsort(suspicion[rows], kind="stable")]
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[rows]):
        members = order[labels[order] == label]
        chosen[members[: int(np.ceil(floor * len(members)))]] = True
    rest = order[~chosen[order]]
    chosen[rest[: max(0, round(share * len(rows)) - int(chosen.sum()))]] = True
    return np.flatnonzero(chosen)
