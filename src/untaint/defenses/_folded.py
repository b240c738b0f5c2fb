"""What two watchers recorded, seen as one: each row from the one that trained on it, or from the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from untaint.trajectories import BLOCK, Observable, Trajectories

__all__ = ["Folded"]


@dataclass(frozen=True)
class Folded:
    """Trajectories that take each row from one of two watchers: ``first`` where the mask is set, else ``second``."""

    first: Trajectories
    second: Trajectories
    mask: NDArray[np.bool_]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.first.rows

    @property
    def epochs(self) -> int:
        """How many epochs both have."""
        return min(self.first.epochs, self.second.epochs)

    def block(
        self, observable: Observable, rows: slice | NDArray[np.int64], epochs: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Return float32 (rows, epochs), each row from its own watcher."""
        own = self.mask[rows][:, None]
        return np.where(own, self.first.block(observable, rows, epochs), self.second.block(observable, rows, epochs))

    def predicted(self) -> NDArray[np.int32]:
        """Return the class predicted at the last epoch, of each row by its own watcher: int32 (rows,), -1 where not seen."""
        return np.where(self.mask, self.first.predicted(), self.second.predicted()).astype(np.int32)

    def blocks(
        self, observable: Observable, epochs: Sequence[int] | None = None, size: int = BLOCK
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Go through the rows in blocks."""
        for start in range(0, self.rows, size):
            rows = slice(start, min(start + size, self.rows))
            yield rows, self.block(observable, rows, epochs)
