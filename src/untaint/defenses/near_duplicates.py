"""Near-duplicates: pictures that lie in the data more than once, perhaps a little changed (after Barz and Denzler, 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn
from torch import Tensor

from untaint.defenses.base import Card, Detector, Task
from untaint.errors import SpecError
from untaint.progress import Progress, Silent
from untaint.scores import Scores
from untaint.training.device import device
from untaint.training.pixels import PixelStore

__all__ = ["NearDuplicates", "edges", "likest"]

ALIKE = 0.8  # pictures of CIFAR-10 that are as like as this show the same
BLOCK = 1_024  # rows that are compared with as many others at once
PICTURES = 2_000_000  # values of pictures that are made smaller at once
FLAT = 1.0  # levels of 255: steps in brightness of this size count for as much as what all pictures share
NEAR, COPIES, TWIN = range(3)


@dataclass(frozen=True, kw_only=True)
class NearDuplicates(Detector):
    """How like the likest other picture is: 1 for a copy, about 0.4 for what is usual in CIFAR-10. Labels play no part.

    Compared are the steps in brightness between neighbouring pixels of grey pictures shrunk to ``side``: the score is their correlation, which JPEG, noise, another brightness, or a small patch lower little, and a crop much.
    In the 49,918 pictures of CIFAR-10's training set that we have, 1.9 % are above 0.8, the rule taken here, and look the same to the eye; with another side, another limit holds. ``keep``: with ``first`` a row is
    compared with rows before it alone, so that of all copies of a picture the first stays. The part ``copies`` counts the others above 0.8, ``twin`` is the likest row.

    No defence but a control, and a step of cleaning: poison that was made by copying is found, other poison is not. Barz and Denzler (Journal of Imaging 2020), who found a thirtieth of CIFAR-10's test set in its training set, compare
    features of a network; pixels are ours, as are all figures. Time grows with the square of the rows: about 10 seconds of one core for 50,000. It keeps 1 KB a picture while it works.
    """

    side: int = 16
    keep: Literal["none", "first"] = "none"

    card: ClassVar[Card | None] = Card(
        paper="Barz and Denzler: Do we train on test data? Purging CIFAR of near-duplicates, Journal of Imaging 2020",
        assumes="poison lies in the data as copies of a few pictures",
        rate="threshold",
        claim="3 % of the test pictures of CIFAR-10 have near-duplicates in its training part; of triggers it says nothing",
    )
    usual_rule: ClassVar[str | None] = f"above:score={ALIKE}"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 4 <= self.side <= 64:
            raise SpecError(f"side is {self.side}; give pixels from 4 to 64, such as 16.")
        if self.keep not in ("none", "first"):
            raise SpecError(f"keep is '{self.keep}'; give none or first.")

    def score(self, task: Task) -> Scores:
        """Return how like each row's likest other is."""
        folder = task.scratch / f"near-duplicates-{self.side}-{self.keep}"
        found = task.once(folder, lambda: _compared(task, self))
        return Scores(values=found[NEAR], name="near-duplicates", parts={"copies": found[COPIES], "twin": found[TWIN]})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return nothing: no model is trained in order to score."""
        return []

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row which it is most like."""
        copies, twin = scores.parts["copies"], scores.parts["twin"]
        return [
            f"nearly the same picture as row {twin[row]:.0f} (likeness {scores.values[row]:.2f}; {copies[row]:.0f} such in all)"
            if copies[row]
            else f"like no other picture (likeness {scores.values[row]:.2f})"
            for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what copies cannot tell."""
        return [
            "Only what lies in the data more than once is found, poison or not: a trigger on different pictures is not. Mirrored and strongly cropped copies are missed, and pictures within the same frame are taken for copies.",
            "All copies are set aside, with the picture that they are copies of, unless the option keep=first lets the first stay.",
        ]


def edges(images: Tensor, side: int) -> NDArray[np.float32]:
    """Return the steps in brightness of pictures, as vectors of length 1 whose products are correlations: float32 (batch, at most ``side`` times ``side``).

    ``images``: float32 (batch, channel, height, width) in [0, 1]. The sum over all pairs of neighbouring pixels of the products of their steps in two pictures is that of the pictures' cosines (DCT-II), each times
    how fast it swings; there are half as many of these. In place of the constant, which has no steps, stands what pictures share that are flat: they are all alike.
    """
    height, width = min(side, images.shape[2]), min(side, images.shape[3])
    small = torch.nn.functional.adaptive_avg_pool2d(images.mean(dim=1), (height, width))
    waves = dctn(small.double().cpu().numpy() * 255, axes=(1, 2), norm="ortho")
    down, across = (2 - 2 * np.cos(np.pi * np.arange(count) / count) for count in (height, width))
    waves *= np.sqrt(down[:, None] + across[None, :])
    waves[:, 0, 0] = FLAT * np.sqrt(height * width)
    flat = waves.reshape(len(waves), -1)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True), dtype=np.float32)


def likest(
    vectors: Tensor, *, earlier: bool = False, progress: Progress | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return for each vector of length 1 its largest product with another, how many are above 0.8, and which is the likest of these; -1 if there is none.

    ``vectors``: float32 (rows, width). ``earlier``: only with those before it. Memory does not grow with the square of the rows.
    """
    parts = [
        torch.arange(len(vectors), device=vectors.device)[start : start + BLOCK]
        for start in range(0, len(vectors), BLOCK)
    ]
    best = torch.full((len(vectors),), -1.0, device=vectors.device)
    copies, twin = torch.zeros_like(best, dtype=torch.int64), torch.full_like(best, -1, dtype=torch.int64)
    with (progress or Silent()).step("compare pictures", len(vectors)) as step:
        for place, before in enumerate(parts):
            for own in parts[place:]:
                products = vectors[before] @ vectors[own].T
                if own is before:
                    _strike(products, before, own, earlier)
                best[own] = torch.maximum(best[own], products.amax(dim=0))
                if not earlier:
                    best[before] = torch.maximum(best[before], products.amax(dim=1))
            step.advance(len(before))
    alike = (best > ALIKE).nonzero()[:, 0]
    for start in range(0, len(alike), BLOCK):
        own = alike[start : start + BLOCK]
        nearest = torch.full_like(best[own], ALIKE)
        for others in parts:
            products = _strike(vectors[others] @ vectors[own].T, others, own, earlier)
            copies[own] += (products > ALIKE).sum(dim=0)
            most, which = products.max(dim=0)
            twin[own] = torch.where(most > nearest, others[which], twin[own])
            nearest = torch.maximum(most, nearest)
    return best.clamp_(max=1).cpu().numpy(), copies.cpu().numpy(), twin.cpu().numpy()


def _strike(products: Tensor, others: Tensor, own: Tensor, earlier: bool) -> Tensor:
    """Put -1 for the products, (others, own), of a row with itself, or (``earlier``) with one that does not come before it."""
    out = others[:, None] >= own[None, :] if earlier else others[:, None] == own[None, :]
    return products.masked_fill_(out, -1)


def _compared(task: Task, options: NearDuplicates) -> NDArray[np.float32]:
    """Return likeness, copies and twin of all rows: float32 (3, all rows), nan for no members."""
    rows, where = task.examples.rows, task.where or device()
    store = PixelStore(task.examples, where)
    most = max(1, PICTURES // int(np.prod(task.examples.images.shape[1:])))
    parts = [edges(store.gather(rows[start : start + most])[0], options.side) for start in range(0, len(rows), most)]
    found = np.full((3, task.examples.total), np.nan, dtype=np.float32)
    if parts:
        vectors = torch.from_numpy(np.concatenate(parts)).to(where)
        best, copies, twin = likest(vectors, earlier=options.keep == "first", progress=task.progress)
        found[:, rows] = best, copies, np.where(twin < 0, -1, rows[twin])
    return found
