"""Duplicate: pictures replaced by copies of others of their class. No attack but a control: a detector should not cry poison."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.attacks._labels import Labels
from untaint.attacks._levels import sized
from untaint.attacks.base import Attack, Card
from untaint.errors import SpecError
from untaint.examples import Examples
from untaint.progress import Progress

__all__ = ["Duplicate"]


@dataclass(frozen=True, kw_only=True)
class Duplicate(Attack):
    """Copies: each picture becomes one of ``originals`` pictures of its class, and keeps its label, which is the copy's too.

    What is scraped from the web often is there several times. Few originals make many copies of each. Pictures of another size than those that it was made ready for
    get the copy enlarged or shrunk; rows that it was not made ready for get that of a class drawn by row.
    """

    originals: int = 20
    labels: Labels = "unchanged"
    copies: NDArray[np.uint8] | None = field(init=False, repr=False, compare=False, default=None)
    number: NDArray[np.int64] | None = field(init=False, repr=False, compare=False, default=None)

    card: ClassVar[Card | None] = Card(
        paper="Barz and Denzler, Do we train on test data? Purging CIFAR of near-duplicates, J. Imaging 2020",
        visible="no",
        psnr=8,
        ssim=0.0,
        needs="the training pictures",
    )
    control: ClassVar[bool] = True
    trigger_from_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.originals < 1:
            raise SpecError(f"originals is {self.originals}; give a number of pictures of at least 1.")

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with the originals of every class, drawn by the seed, and which of them each row becomes."""
        del progress
        if self.copies is not None:
            return self
        kept: list[NDArray[np.int64]] = []
        number = np.full(examples.total, -1)
        labels, first = examples.labels[examples.rows], 0
        for label in range(len(examples.class_names)):
            own = examples.rows[labels == label]
            drawn = rng.choose(seed, f"attacks/duplicate/{label}", own, self.originals)
            if not len(drawn):
                continue
            place = (rng.uniform(seed, "attacks/duplicate/which", 0, own)[:, 0] * len(drawn)).astype(np.int64)
            itself = drawn[place] == own
            place[itself] = (place[itself] + 1) % len(drawn)  # a picture that stays as it is would be no copy
            number[own] = first + place
            kept.append(drawn)
            first += len(drawn)
        made = dataclasses.replace(self)
        object.__setattr__(made, "copies", np.array(examples.images[np.concatenate(kept)]))
        object.__setattr__(made, "number", number)
        return made

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the copies in the pictures' place."""
        if self.copies is None or self.number is None:
            raise SpecError("duplicate has no originals yet. Compute it first: attack.ready(examples).")
        known = np.where(rows < len(self.number), self.number[np.minimum(rows, len(self.number) - 1)], -1)
        drawn = (rng.uniform(0, "attacks/duplicate/other", 0, rows)[:, 0] * len(self.copies)).astype(np.int64)
        copies = self.copies[np.where(known < 0, drawn, known)]
        if copies.shape[1:] == images.shape[1:]:
            return copies
        return np.clip(sized(copies, images.shape[1:]) + 0.5, 0, 255).astype(np.uint8)
