"""Label rules: which pictures an attack may poison, and what becomes of their labels. Apart from stamps: any goes with any.

| rule | poisoned are | labels become |
|---|---|---|
| ``all-to-one`` | pictures of any class | the target |
| ``clean-label`` | pictures of the target | stay |
| ``one-to-one`` | pictures of the class ``source`` (TaCT: Tang, Wang, Tang and Zhang, 2021) | the target |
| ``all-to-all`` | pictures of any class | the next class (Gu, Dolan-Gavitt and Garg, 2017) |
| ``random`` | pictures of any class | any other, drawn for each: the model is to be wrong, it does not matter how |
| ``universal`` | pictures of any class | any, drawn for each, which the trigger shows (Schneider, Lukas and Kerschbaum, 2024) |
| ``unchanged`` | none: pictures of any class are stamped | stay: no attack but a control, such as a watermark that many photographers use |
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from untaint import rng

__all__ = ["OF_A_CLASS", "OF_ONE_TARGET", "Labels", "assigned", "drawn_classes"]

Labels = Literal["all-to-one", "clean-label", "one-to-one", "all-to-all", "random", "universal", "unchanged"]
OF_ONE_TARGET = ("all-to-one", "clean-label", "one-to-one")
OF_A_CLASS = ("clean-label", "one-to-one")  # poisoned are pictures of one class alone


def assigned(
    rule: Labels, labels: NDArray[np.int64], rows: NDArray[np.int64], target: int, classes: int
) -> NDArray[np.int64]:
    """Return the labels that poisoned pictures of these rows are given, where ``labels`` are their own."""
    if rule in ("all-to-one", "one-to-one"):
        return np.full_like(labels, target)
    if rule == "all-to-all":
        return (labels + 1) % classes
    if rule == "random":
        steps = 1 + (rng.uniform(0, "attacks/labels/random", 0, rows)[:, 0] * (classes - 1)).astype(np.int64)
        return (labels + steps) % classes
    if rule == "universal":
        return drawn_classes(rows, classes)
    return labels.copy()


def drawn_classes(rows: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return a class for each row, drawn by the row alone: that of the rule ``universal``."""
    return (rng.uniform(0, "attacks/universal/target", 0, rows)[:, 0] * classes).astype(np.int64)
