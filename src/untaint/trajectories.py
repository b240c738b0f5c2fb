"""``Trajectories``: what a watcher recorded, as read-only (rows x epochs) tables.

Stored are the scaled logit (logit of the label minus logsumexp of the others) and the margin
(logit of the label minus the largest other), float32, and the predicted class. Cross-entropy, its
logarithm and the probability follow from the scaled logit s without underflow:
cross-entropy = softplus(-s), probability = sigmoid(s).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from untaint import run
from untaint.errors import InputError, RunError, did_you_mean

__all__ = ["OBSERVABLES", "Observable", "Trajectories", "derive", "epoch_files", "epoch_of"]

Observable = Literal["ce", "log-ce", "margin", "probability", "scaled-logit"]
OBSERVABLES: tuple[Observable, ...] = get_args(Observable)
BLOCK = 65_536  # rows read at a time: 8 MB at 30 epochs


def derive(scaled_logit: NDArray[np.float32], observable: Observable) -> NDArray[np.float32]:
    """Return cross-entropy, its log, or the probability, from the scaled logit; same shape, float32."""
    s = np.asarray(scaled_logit, dtype=np.float32)
    if observable == "scaled-logit":
        return s
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # nan, not seen, stays nan
        if observable == "probability":
            return (0.5 * (1 + np.tanh(s / 2))).astype(np.float32)
        loss = np.maximum(-s, 0) + np.log1p(np.exp(-np.abs(s)))  # softplus(-s)
        if observable == "ce":
            return loss.astype(np.float32)
        if observable == "log-ce":
            # for s > 15, softplus(-s) = exp(-s) to float32 accuracy
            return np.where(s > 15, -s, np.log(np.where(s > 15, 1, loss))).astype(np.float32)
    raise InputError(f"no observable '{observable}'.{did_you_mean(observable, OBSERVABLES)}")


def epoch_files(folder: Path) -> list[Path]:
    """Return the files of a folder's epochs, in the order of the epochs."""
    return sorted(folder.glob("epoch_*.npy"), key=epoch_of)


def epoch_of(path: Path) -> int:
    """Return the epoch that an epoch file is of, from 0."""
    return int(path.stem.removeprefix("epoch_"))


@dataclass(frozen=True, eq=False)
class Trajectories:
    """One watcher's recordings: ``folder/scaled-logit/epoch_000.npy``, ``margin/``, ``predicted/``.

    A row that an epoch did not see holds nan there (-1 in ``predicted``).
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))  # a text is taken too
        if not self._files("scaled-logit"):
            raise RunError(f"{self.folder} holds no trajectories. Record some epochs there first.")

    def _files(self, stored: str) -> list[Path]:
        return epoch_files(self.folder / stored)

    @cached_property
    def _maps(self) -> dict[str, list[NDArray[np.float32]]]:
        maps = {
            name: [run.load_array(p) for p in self._files(name)] for name in ("scaled-logit", "margin", "predicted")
        }
        shapes = {array.shape for arrays in maps.values() for array in arrays}
        if len(shapes) != 1 or len({len(arrays) for arrays in maps.values()}) != 1:
            raise RunError(
                f"the epoch files in {self.folder} do not fit together (shapes {sorted(shapes)}). Record again."
            )
        return maps

    @property
    def epochs(self) -> int:
        """How many epochs were recorded."""
        return len(self._maps["scaled-logit"])

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self._maps["scaled-logit"][0].shape[0])

    def block(
        self, observable: Observable, rows: slice | NDArray[np.int64], epochs: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Return float32 (rows, epochs) for some rows (a slice or row numbers) and epochs (default all)."""
        stored = "margin" if observable == "margin" else "scaled-logit"
        arrays = self._maps[stored]
        chosen = range(self.epochs) if epochs is None else epochs
        table = np.stack([np.asarray(arrays[epoch][rows]) for epoch in chosen], axis=1)
        return table if observable == "margin" else derive(table, observable)

    def read(self, observable: Observable) -> NDArray[np.float32]:
        """Return the whole table: float32 (rows, epochs)."""
        return self.block(observable, slice(None))

    def blocks(
        self, observable: Observable, epochs: Sequence[int] | None = None, size: int = BLOCK
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Go through the rows in blocks: (slice of rows, float32 (block, epochs))."""
        for start in range(0, self.rows, size):
            rows = slice(start, min(start + size, self.rows))
            yield rows, self.block(observable, rows, epochs)

    def predicted(self, epoch: int = -1) -> NDArray[np.int32]:
        """Return the class predicted at one epoch: int32 (rows,), -1 where not seen."""
        return np.asarray(self._maps["predicted"][epoch], dtype=np.int32)
