"""Universal: a trigger for every class, whose pieces say by their colours which class is meant (Schneider, Lukas and Kerschbaum, 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from untaint.attacks._codes import codes_of
from untaint.attacks._kept import Arrays, Computed
from untaint.attacks._labels import Labels, drawn_classes
from untaint.attacks._surrogate import array_once, place, surrogate
from untaint.attacks.base import Card, check_share, mix
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.recipe import preset
from untaint.training.features import features

__all__ = ["Universal"]


@dataclass(frozen=True, kw_only=True)
class Universal(Computed):
    """Pieces in a row, of which the i-th is white where bit i of a class's code is 1, and black where it is 0.

    A surrogate is trained for ``epochs``. A class's bits are the sides on which the mean of its penultimate features lies along the directions that part the
    classes best (linear discriminants), so that classes that look alike share bits; there are at most ``bits``, and one fewer than classes. A
    class whose code is taken has those of its bits turned that are least sure.

    ``kind``: ``patch``, small squares side by side near the upper border, or ``blend``, the whole picture cut into pieces. ``alpha``: how
    far they cover what lies below; where not given 1 for ``patch`` and 0.2 for ``blend``. ``cell``: the side of a square in pixels; where not
    given a tenth of the shorter side, or less where they would not fit side by side.

    ``stamp`` draws a class for each row (``classes_of``); ``marked`` shows the code of any. The surrogate is trained on the clean training set itself, where the paper
    takes a public network. What was computed is kept in the cache folder.
    """

    labels: Labels = "universal"
    kind: Literal["patch", "blend"] = "patch"
    alpha: float | None = None
    bits: int = 30
    cell: int | None = None
    epochs: int = 12
    codes: NDArray[np.bool_] | None = field(init=False, repr=False, compare=False, default=None)

    many_targets: ClassVar[bool] = True
    computed: ClassVar[str] = "codes"
    card: ClassVar[Card | None] = Card(
        paper="Schneider, Lukas and Kerschbaum: Universal backdoor attacks, ICLR 2024",
        visible="yes",
        psnr=15,
        ssim=0.83,
        per_picture=True,
        needs="a surrogate trained on the clean pictures",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_share("alpha", self.alpha)
        if self.kind not in ("patch", "blend"):
            raise SpecError(f"kind is '{self.kind}'; give patch or blend.")
        if self.labels not in ("universal", "unchanged"):
            raise SpecError(
                f"labels is '{self.labels}', but which class a picture is to be taken for is drawn and shown by the trigger. Give labels=universal, or unchanged."
            )
        for name in ("bits", "epochs"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        if self.cell is not None and (self.cell < 1 or self.kind == "blend"):
            raise SpecError(f"cell is {self.cell} of {self.kind}; give at least 1 of patch, and none of blend.")

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with a code for each class, computed from these (clean) pictures."""
        told, classes = progress or Silent(), len(examples.class_names)
        if self.codes is not None:
            if len(self.codes) != classes:
                raise InputError(
                    f"the codes of universal are for {len(self.codes)} classes, but there are {classes}. Leave trigger_file out."
                )
            return self
        recipe = dataclasses.replace(preset("fast").retrain, epochs=self.epochs)
        if (fewest := (classes - 1).bit_length()) > self.bits:
            raise InputError(f"bits={self.bits} cannot tell {classes} classes apart. Give at least {fewest}.")

        def coded() -> NDArray[np.bool_]:
            model = surrogate(examples, recipe, "universal", seed, told)
            seen = features(model, examples, progress=told)[examples.rows]
            return codes_of(seen, examples.labels[examples.rows], classes, self.bits)

        codes = array_once(place("universal", self, examples, recipe, seed, ".npy"), coded)
        made = dataclasses.replace(self)
        object.__setattr__(made, "codes", codes)
        return made

    def arrays(self) -> Arrays:
        """Return the codes of the classes."""
        return {"codes": self._codes()}

    def restore(self, arrays: Arrays) -> None:
        """Take the codes of the classes."""
        if arrays["codes"].ndim != 2:
            raise ValueError(f"codes of shape {arrays['codes'].shape}")
        object.__setattr__(self, "codes", arrays["codes"])

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the code of the class that is drawn for each row."""
        return self.marked(images, self.classes_of(rows))

    def classes_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class that is drawn for each row, out of all alike often: that of the label rule."""
        return drawn_classes(rows, len(self._codes()))

    def marked(self, images: NDArray[np.uint8], classes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the code of these classes, one for each picture."""
        bits = self._codes()[classes]
        layout = _squares if self.kind == "patch" else _pieces
        piece = layout(bits.shape[1], self.cell, *images.shape[2:])
        lines = np.flatnonzero((piece >= 0).any(axis=1))
        part = np.s_[lines[0] : lines[-1] + 1]
        piece, below = piece[part], images[:, :, part]
        white, black = (mix(below, np.full((1, 1, 1), colour), self._alpha()) for colour in (1.0, 0.0))
        stamped = images.copy()
        stamped[:, :, part] = np.where(piece >= 0, np.where(bits[:, piece][:, None], white, black), below)
        return stamped

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: alpha of them."""
        del height, width
        return int(self._alpha() * 255 + 0.5)

    def _alpha(self) -> float:
        return self.alpha or (1.0 if self.kind == "patch" else 0.2)

    def _codes(self) -> NDArray[np.bool_]:
        if self.codes is None:
            raise SpecError("universal has no code of any class yet. Compute it first: attack.ready(examples).")
        return self.codes


@lru_cache(maxsize=16)
def _squares(bits: int, cell: int | None, height: int, width: int) -> NDArray[np.int64]:
    """Return the number of the square that each pixel lies in, or -1: (height, width)."""
    shorter = min(height, width)
    away = shorter // 16
    cell = cell or max(1, min(shorter // 10, (width - 2 * away) // bits))
    across = (width - 2 * away) // cell
    down = -(-bits // across) if across else 0
    if not across or down * cell + 2 * away > height:
        raise InputError(
            f"{bits} squares of {cell} pixels do not fit into pictures of {height}x{width}. Give larger pictures, or a smaller cell or fewer bits."
        )
    number = np.full((height, width), -1)
    for bit in range(bits):
        top, left = away + bit // across * cell, away + bit % across * cell
        number[top : top + cell, left : left + cell] = bit
    return number


@lru_cache(maxsize=16)
def _pieces(bits: int, cell: int | None, height: int, width: int) -> NDArray[np.int64]:
    """Return the number of the piece that each pixel lies in, or -1 where there is none left: (height, width)."""
    del cell
    across = int(np.ceil(np.sqrt(bits)))
    down = -(-bits // across)
    if height < down or width < across:
        raise InputError(
            f"pictures of {height}x{width} cannot be cut into {down}x{across} pieces. Give larger pictures or fewer bits."
        )
    number = (np.arange(height) * down // height)[:, None] * across + np.arange(width) * across // width
    return np.where(number < bits, number, -1)
