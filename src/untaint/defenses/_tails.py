"""Tails: how many rows of a class lie further out along a direction than should; the mathematics of patterns, on arrays alone.

A pattern that a part of a class shares is a direction in which that class varies more than it should; along it, those rows are a
tail that is on one side, that other classes do not have, and that the class's probes do not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

__all__ = ["LEAST", "TOWARDS", "Side", "Tail", "apart", "directions_of", "measured", "once_each", "sides_of", "tail"]

TURNS = 8  # of the search for directions
ALONG = 0.01  # of a row's squared length that is taken to be beside any direction, at least
LIKELIER = 10.0  # times as many as are to be expected must be there for rows further in than the most telling place to have it too
SAME = 0.5  # share of the smaller of two patterns of a class that the other has too, from which on they are one
PARTLY = (
    1 / 3
)  # share of a pattern that may be of most of a class, which one that is plain must have in order to explain it
AROUND = 0.15  # of the way out to the median of those who have a pattern: what is near a place
STRAGGLING = 5.0  # deviations of those who have a pattern, by which a row may be nearer to the middle than their median
NEAR = 1.0  # deviations: what lies nearer to the middle is in no tail
NARROW = 0.05  # no deviation is taken for smaller (about .6 is usual)
CHANCE = (
    1e-3  # with which probes of a class may all lie on one side of its median, if they are to say where its middle is
)
APART = 4.0  # deviations from its median by which they, or other classes, must lie elsewhere
LEAST = 1.0  # excess from which on a tail is a pattern: e times as many as are to be expected
MOST = 1 / 3  # of a class, from which on its own middle may be that of poison
TOWARDS = 1 / 4  # of the way to a tail must the middle of other classes lie, if the tail may be what is natural
LEFT = 0.05  # of a class must lie where other classes do, if a tail is to be most of it


@dataclass(frozen=True)
class Tail:
    """How far out in a tail each row is.

    ``excess``: the logarithm of how many times as many rows lie at least as far out as are to be expected there.
    ``alike``: how many do, and ``expected``. All (rows,). ``cut``: the deviations from which on rows are taken to have what makes the tail;
    ``many``: how many that are, near-duplicates counted once.
    """

    excess: NDArray[np.float32]
    alike: NDArray[np.float32]
    expected: NDArray[np.float32]
    cut: float
    many: float


@dataclass(frozen=True)
class Side:
    """One side of a direction: how far to it each member of a class is, in deviations from the middle, and its tail.

    ``home``: where the middle of the other classes is, in the same deviations. ``most``: the middle is not the class's own, but the others': the tail
    may be most of the class.
    """

    deviations: NDArray[np.float32]
    tail: Tail
    home: float = 0.0
    most: bool = False

    def stands_out(self) -> bool:
        """Whether those in the tail are further from the other classes than the rest of the class is; of a tail that may be most of the class, some must be left."""
        if not self.has_excess():
            return False
        if self.most:
            left = np.abs(self.deviations) < np.median(self.deviations) / 2
            return bool(left.mean() >= LEFT and len(self.having()) >= MOST * len(left))
        return self.home <= self.place() / 2

    def has_excess(self) -> bool:
        """Whether there are e times as many as are to be expected."""
        return bool(self.tail.excess.max(initial=0) >= LEAST)

    def place(self) -> float:
        """Return the median of those in the tail, in deviations."""
        return float(np.median(self.deviations[self.deviations >= self.tail.cut]))

    def having(self) -> NDArray[np.int64]:
        """Return the places of those who have what makes the tail, less stragglers."""
        outermost = np.flatnonzero(self.deviations >= self.tail.cut)
        place = self.deviations[outermost]
        middle = np.median(place)
        width = 1.4826 * np.median(np.abs(place - middle))
        having: NDArray[np.int64] = outermost[place >= middle - STRAGGLING * max(width, NARROW)]
        return having

    def between(self) -> float:
        """Return how many members lie about halfway out to those who have it, for each that lies near these."""
        middle = self.place()
        halfway, near = (int(np.count_nonzero(np.abs(self.deviations / middle - out) <= AROUND)) for out in (0.5, 1.0))
        return halfway / max(1, near)


def tail(
    values: NDArray[np.float32],
    weights: NDArray[np.float32],
    others: NDArray[np.float32],
    probes: NDArray[np.float32],
) -> Tail:
    """Return how far out each row is in the right tail of its class, along one direction.

    ``values``: of the class's rows, in deviations from its middle; ``weights``: what each of them counts. So many at least as
    far out are expected as lie as far out on the left, as would if the class were like the ``others``, or like its
    ``probes``: whichever is most. A row counts as being as far out as the most telling place to its left. What is not so far out has
    it too, as long as ten times as many are there as are to be expected.
    """
    order = np.argsort(-values, kind="stable")
    sorted_values, counts, total = values[order], weights[order], float(weights.sum())
    alike = np.cumsum(counts)
    left = np.concatenate([[0.0], np.cumsum(counts[::-1])])  # counts from the leftmost row on
    expected = left[np.searchsorted(np.sort(values), -sorted_values, side="right")]
    for some in (others, probes):
        if len(some):
            beyond = len(some) - np.searchsorted(np.sort(some), sorted_values, side="left")
            expected = np.maximum(expected, beyond * (total / len(some)))
    ratio = np.where(sorted_values > NEAR, np.log((alike + 1) / (expected + 1)), 0.0)
    excess = np.maximum.accumulate(np.maximum(ratio, 0.0)[::-1])[::-1]
    place = _first_of_best(ratio, excess)
    there: list[NDArray[np.float32]] = []
    for made in (excess, alike[place], expected[place]):
        there.append(np.empty(len(values), np.float32))
        there[-1][order] = made
    telling = int(np.flatnonzero(ratio >= ratio.max())[-1])
    gain = (alike - LIKELIER * expected)[telling:]
    cut = telling + int(np.flatnonzero(gain >= gain.max())[-1])
    return Tail(there[0], there[1], there[2], cut=float(sorted_values[cut]), many=float(alike[cut]))


def sides_of(
    members: NDArray[np.float32],
    weights: NDArray[np.float32],
    others: NDArray[np.float32],
    probes: NDArray[np.float32],
    home: NDArray[np.float32],
    signs: Sequence[int] = (1, -1),
) -> list[list[Side]]:
    """Return the sides of each direction: both, or right ones alone; and those of which the tail may be most of the class.

    ``members``, ``others`` and ``probes``: how far along each direction rows are, less the mean of their class, (rows, directions). ``weights``: what
    each member counts. ``home``: the middle of the other classes, as they are, less the mean of this class: (directions,).
    """
    far, theirs, vouched, place = measured(members, others, probes, home)
    found: list[list[Side]] = []
    for index in range(far.shape[1]):
        found.append([])
        for sign in signs:
            out, some, own = (sign * values[:, index] for values in (far, theirs, vouched))
            at = sign * float(place[index])
            found[-1].append(Side(out, tail(out, weights[:, index], some, own), at))
            found[-1] += _most(out, weights[:, index], some, own, at)
    return found


def _most(
    out: NDArray[np.float32],
    weights: NDArray[np.float32],
    others: NDArray[np.float32],
    probes: NDArray[np.float32],
    home: float,
) -> list[Side]:
    """Return the side of which the tail may be most of the class, if the middle of the other classes says so: one or none.

    Where the class lies to the right of that middle, it is the right side, seen from there. Where the middle lies on the way to a right tail, or
    beyond it, those in this tail may be what is natural: it is the left side, seen from them. Whoever vouches for them makes them no less of a tail.
    """
    if home < -APART:
        return [Side(out - home, tail(out - home, weights, others, probes - home), most=True)]
    right = Side(out, tail(out, weights, others, probes[:0]), home) if home > APART else None
    if right is None or not right.has_excess() or home <= TOWARDS * right.place():
        return []
    place = np.float32(right.place())
    return [Side(place - out, tail(place - out, weights, -others, place - probes), most=True)]


def measured(
    members: NDArray[np.float32], others: NDArray[np.float32], probes: NDArray[np.float32], home: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return members, others, probes, (rows, directions) each, and home, in the others' deviations from their middles.

    The middle of the class is its median, or that of its probes where the two are far apart and so many more probes lie on one side of the
    class's median as chance does not do: poison may be most of a class, but hardly of its probes.
    """
    usual = np.median(others, axis=0) if len(others) else np.zeros(members.shape[1])
    middle = np.median(members, axis=0)
    away = np.abs(others - usual) if len(others) else np.abs(members - middle)
    deviation = np.maximum(1.4826 * np.median(away, axis=0), NARROW)
    if len(probes):
        vouched = np.median(probes, axis=0)
        below = np.count_nonzero(probes < middle, axis=0)
        chance = 2 * stats.binom.sf(np.maximum(below, len(probes) - below) - 1, len(probes), 0.5)
        believed = (chance < CHANCE) & (np.abs(vouched - middle) > APART * deviation)
        middle = np.where(believed, vouched, middle)
    return (
        ((members - middle) / deviation).astype(np.float32),
        ((others - usual) / deviation).astype(np.float32),
        ((probes - middle) / deviation).astype(np.float32),
        ((home - middle) / deviation).astype(np.float32),
    )


def apart(sides: Sequence[Side], kept: Sequence[Side] = ()) -> list[Side]:
    """Return sides less those whose rows are largely those of one with more excess, or to a third those of one that is ``kept``."""
    before = [side.having() for side in kept]
    known: list[tuple[Side, NDArray[np.int64]]] = []
    for side in sorted(sides, key=lambda side: -float(side.tail.excess.max())):
        own = side.having()
        new = all(len(np.intersect1d(own, other)) < SAME * min(len(own), len(other)) for _, other in known)
        if new and all(len(np.intersect1d(own, other)) < PARTLY * len(own) for other in before):
            known.append((side, own))
    return [side for side, _ in known]


def _first_of_best(ratio: NDArray[np.float64], excess: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row, from the outermost inwards, the index of the place further in that its excess is read off."""
    index = np.where(ratio >= excess, np.arange(len(ratio)), len(ratio) - 1)
    return np.minimum.accumulate(index[::-1])[::-1]


def once_each(points: Tensor, among: Tensor, along: Tensor, total: int, product: Tensor | None = None) -> Tensor:
    """Return what each row counts along each direction, (rows, directions): near-duplicates share one count, by their squared cosines.

    Cosines are of what rows have besides that direction: what is looked for makes no rows duplicates. ``among``: the rows that they may be
    duplicates of, which stand for ``total``. ``along``: (width, directions), of length one. ``product``: of these and those, if known.
    """
    (own, lengths), (theirs, widths) = ((table @ along, table.square().sum(1)[:, None]) for table in (points, among))
    left, right = (  # squared lengths besides the direction; nothing is taken to lie wholly along it
        (square - part.square()).maximum(ALONG * square).clamp(min=1e-12)
        for part, square in ((own, lengths), (theirs, widths))
    )
    product = points @ among.T if product is None else product
    squared = product @ (theirs / right)  # of (product - own x theirs), over all of the others at once
    squared = own.square() * (theirs.square() / right).sum(0) - 2 * own * squared
    squared += product.square() @ (1 / right)
    return 1 / (squared / left * (total / len(among))).clamp(min=1)


def directions_of(points: Tensor, start: Tensor) -> Tensor:
    """Return the directions in which rows of length one vary most, (width, directions), by subspace iteration.

    ``start``: (width, directions), any. Each row counts by direction only: one odd picture makes no pattern.
    """
    table = points / points.norm(dim=1, keepdim=True).clamp(min=1e-6)
    along: Tensor = start
    for _ in range(TURNS):
        along = torch.linalg.qr(table.T @ (table @ along)).Q
    _, _, right = torch.linalg.svd(table @ along, full_matrices=False)
    sorted_out: Tensor = along @ right.T
    return sorted_out
