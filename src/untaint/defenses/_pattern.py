"""Which pictures of a class share a pattern: the mathematics of ``pattern``, on pixels alone.

What is laid over a picture moves it by about the same vector, whatever it shows. Pixels are first whitened: what
is left of a picture after its class's mean has variance one in every direction, so that faint stripes, which pictures
hardly ever have, count for as much as a bright sky, which many have. A pattern that a part of a class shares is then
a direction in which that class varies more than it should; and along it, those pictures are a tail that is on one side,
that other classes do not have, and that the class's probes do not have. What a tail counts is pictures that are alike in
nothing else: frames of one track share all that they have, and count for few.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from untaint import rng
from untaint.defenses.base import Task
from untaint.examples import Examples
from untaint.training.device import device

__all__ = [
    "DIRECTIONS",
    "SIDE",
    "Found",
    "Pixels",
    "SharedPattern",
    "Tail",
    "directions_of",
    "once_each",
    "patterns",
    "tail",
]

DIRECTIONS = 16  # that are looked along in each class
SIDE = 32  # pixels: larger pictures are averaged down
FAINT = 1e-3  # variance added in every direction: what is fainter (8 of 255 levels) is not lifted further
BLOCK = 2_000  # pictures read at a time
MOST = 5_000  # rows of a class by which its directions are found
OTHERS = 8_000  # rows of other classes with which a class is compared
FEWEST = 20  # a class with fewer rows has no patterns
TURNS = 8  # of the search for directions
FIGURES = ("excess", "alike", "expected", "deviations")  # of each row
SPARE = 10  # directions more than are asked for, dropped afterwards
ALONG = 0.01  # of a row's squared length that is taken to be beside any direction, at least
LIKELIER = 10.0  # times as many as are to be expected must be there for rows further in than the most telling place to have it too
AGAIN = 2  # times that a pattern is looked at along the mean of those who have it
SAME = 0.5  # share of the smaller of two patterns of a class that the other has too, from which on they are one
HALFWAY = 1.0  # rows halfway out, for each that is near the median of those who have a pattern: with more, it comes by degrees
DEGREES = 0.5  # what the excess of a pattern that comes by degrees counts
LEAST = 1.0  # excess from which on a tail is a pattern: e times as many as are to be expected
AROUND = 0.15  # of the way out to the median of those who have a pattern: what is near a place
TELLING = 0.05  # variance of pictures in a direction in which half of a change is taken for a trigger's
STRAGGLING = 5.0  # deviations of those who have a pattern, by which a row may be nearer to the middle than their median
NEAR = 1.0  # deviations: what lies nearer to the middle is in no tail
NARROW = 0.05  # no deviation is taken for smaller (about .6 is usual)
VOUCHED = 3  # so many probes of a class can say where its middle is
APART = 4.0  # deviations from its median by which they are believed: three probes are often wrong by two


@dataclass(frozen=True)
class Pixels:
    """Pictures as rows of a table: float32 in [0, 1], averaged down to at most ``side`` pixels a side, less their class's mean."""

    examples: Examples
    side: int
    where: torch.device
    means: Tensor | None = None

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Return float32 (rows, channels x side x side)."""
        images = torch.from_numpy(np.ascontiguousarray(self.examples.images[rows])).to(self.where).float().div_(255)
        if images.shape[-1] > self.side:
            images = torch.nn.functional.interpolate(images, size=(self.side, self.side), mode="area")
        table = images.flatten(1)
        if self.means is not None:
            table -= self.means[torch.from_numpy(self.examples.labels[rows]).to(self.where)]
        return table

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Go through rows, some at a time."""
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            yield part, self.read(part)

    def centred(self) -> Pixels:
        """Return the same less the mean of each class."""
        labels = self.examples.labels
        counts = np.bincount(labels[self.examples.rows], minlength=int(labels.max()) + 1)
        means: Tensor | None = None
        for part, table in self.blocks(self.examples.rows):
            if means is None:
                means = torch.zeros(len(counts), table.shape[1], device=self.where)
            means.index_add_(0, torch.from_numpy(labels[part]).to(self.where), table)
        assert means is not None
        means /= torch.from_numpy(np.maximum(counts, 1)).to(self.where)[:, None]
        return Pixels(self.examples, self.side, self.where, means)

    def spread(self) -> Tensor:
        """Return the lower Cholesky factor of the covariance within classes, a little widened: (width, width)."""
        total: Tensor | None = None
        for _, table in self.blocks(self.examples.rows):
            product = table.T @ table
            total = product if total is None else total.add_(product)
        assert total is not None
        total /= len(self.examples)
        total.diagonal().add_(FAINT)
        factor: Tensor = torch.linalg.cholesky(total)
        return factor


@dataclass(frozen=True)
class Tail:
    """How far out in a tail each row is.

    ``excess``: the logarithm of how many times as many rows lie at least as far out as are to be expected there.
    ``alike``: how many do, and ``expected``. All (rows,). ``cut``: the deviations from which on rows are taken to have what makes the tail.
    """

    excess: NDArray[np.float32]
    alike: NDArray[np.float32]
    expected: NDArray[np.float32]
    cut: float


@dataclass(frozen=True)
class SharedPattern:
    """What a part of a class has in common.

    ``label``: the class. ``excess``: as of a tail. ``between``: how many of the class lie about halfway out to those who have
    it, for each of these that lies near their median. ``rows``: who has it, int64. ``change``: float32 (channel, side, side),
    by how much their pictures differ from the rest of the class. ``doubtful``: rows in its tail that are not so far out, int64, and
    ``nearly``: their excess as a part of the whole, float32.
    """

    label: int
    excess: float
    between: float
    rows: NDArray[np.int64]
    change: NDArray[np.float32]
    doubtful: NDArray[np.int64]
    nearly: NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """Each row's most telling tail (``excess``, ``alike``, ``expected``, ``deviations``: float32 (all rows,)), all patterns, and by how
    much pictures vary within their classes: the lower Cholesky factor of their covariance.
    """

    figures: dict[str, NDArray[np.float32]]
    patterns: list[SharedPattern]
    factor: Tensor

    def sharpened(self, patterns: Sequence[SharedPattern]) -> NDArray[np.float32]:
        """Return the changes of some patterns less what pictures naturally differ by, float32 (patterns, channel, side, side).

        Wiener's filter: what is left of a change in a direction is one half where pictures of a class vary by ``TELLING``, less where they
        vary by more, nearly all where they vary by less.
        """
        if not patterns:
            return np.empty((0, 1, 1, 1), dtype=np.float32)
        changes = np.stack([pattern.change for pattern in patterns])
        table = torch.from_numpy(changes).flatten(1).to(self.factor.device)
        both = self.factor @ self.factor.T / TELLING
        both.diagonal().add_(1)
        sharp: NDArray[np.float32] = torch.linalg.solve(both, table.T).T.cpu().numpy()
        return sharp.reshape(changes.shape)


def patterns(
    task: Task, vouching: Sequence[NDArray[np.int64]], directions: int = DIRECTIONS, side: int = SIDE
) -> list[Found]:
    """Return what the rows of each class have in common, and how far out in it each row is: once for each set of probes.

    ``vouching``: sets of probes that say where the middle of a class is, and that a tail is natural if they lie in it too.
    ``directions``: how many are looked along in each class. ``side``: larger pictures are averaged down to so many pixels a side.
    Figures are nan where a row is no member; 0 for classes with fewer than 20 rows.
    """
    place = task.where or device()
    if place.type == "mps":  # which has no Cholesky factors
        place = torch.device("cpu")
    examples, seed = task.examples, task.seed
    labels, rows = examples.labels, examples.rows
    blank = np.full(examples.total, np.nan, np.float32)
    blank[rows] = 0
    with task.progress.step("look for patterns", 2 * len(rows)) as step:
        pixels = Pixels(examples, side, place).centred()
        factor = pixels.spread()
        step.advance(len(rows))
        told = [Found({name: blank.copy() for name in FIGURES}, [], factor) for _ in vouching]
        generator = torch.Generator().manual_seed(rng.derive(seed, "defenses/pattern"))
        start = torch.randn(len(factor), directions + SPARE, generator=generator).to(pixels.where)
        for label in np.unique(labels[rows]):
            members = rows[labels[rows] == label]
            if len(members) >= FEWEST:
                others = rng.choose(seed, "defenses/pattern/others", rows[labels[rows] != label], OTHERS)
                one = _Class.of(
                    pixels, factor, members, others, rng.choose(seed, "defenses/pattern/looked at", members, MOST)
                )
                many = min(directions, len(one.points) // 4)
                along = directions_of(one.points, start[:, : many + SPARE])[:, :many]
                for found, probes in zip(told, vouching, strict=True):
                    best, shared = _of_class(dataclasses.replace(one, probes=probes[labels[probes] == label]), along)
                    for name, values in best.items():
                        found.figures[name][members] = values
                    found.patterns.extend(shared)
            step.advance(len(members))
    return told


@dataclass(frozen=True)
class _Class:
    """The rows of a class, and those with which they are compared.

    ``points``: of rows by which directions are found, whitened: all members, or some of many. ``others``: rows of other classes.
    ``product``: of all points with each other, where they are all members.
    """

    pixels: Pixels
    factor: Tensor
    members: NDArray[np.int64]
    others: NDArray[np.int64]
    probes: NDArray[np.int64]
    points: Tensor
    product: Tensor | None

    @classmethod
    def of(
        cls,
        pixels: Pixels,
        factor: Tensor,
        members: NDArray[np.int64],
        others: NDArray[np.int64],
        looked: NDArray[np.int64],
    ) -> _Class:
        """Return a class of which nobody vouches for anything. ``looked``: members by which directions are found."""
        points = _whitened(pixels.read(looked), factor)
        product = points @ points.T if len(looked) == len(members) else None
        return cls(pixels, factor, members, others, np.empty(0, np.int64), points, product)

    def whitened(self) -> Iterator[tuple[slice, Tensor]]:
        """Go through the members, whitened, some at a time."""
        if len(self.points) == len(self.members):
            yield slice(0, len(self.members)), self.points
            return
        for start in range(0, len(self.members), BLOCK):
            part = slice(start, start + BLOCK)
            yield part, _whitened(self.pixels.read(self.members[part]), self.factor)

    def tails(self, along: Tensor, made_of: Sequence[NDArray[np.int64]] | None = None) -> list[list[Side]]:
        """Return both sides of each direction, (width, directions) of length one.

        ``made_of``: places among the members whose mean each direction is: they are judged by the mean of the others of them, and
        right sides alone are looked at.
        """
        back = torch.linalg.solve_triangular(self.factor.T, along, upper=True)  # whitening and looking along, in one
        counts, mine = torch.empty(2, len(self.members), along.shape[1], device=along.device)
        squares = torch.empty(len(self.members), device=along.device)
        for part, points in self.whitened():
            counts[part] = once_each(points, self.points, along, len(self.members), self.product)
            mine[part] = points @ along
            squares[part] = points.square().sum(1)
        for index, places in enumerate(made_of or ()):
            own = torch.from_numpy(places).to(along.device)
            many, length = len(places), mine[own, index].mean().clamp(min=1e-6)  # of the mean that the direction is
            mine[own, index] = (many * mine[own, index] - squares[own] / length) / max(1, many - 1)
        seen = []
        for rows in (self.others, self.probes):
            parts = [(table @ back).cpu().numpy() for _, table in self.pixels.blocks(rows)]
            seen.append(np.concatenate([np.empty((0, along.shape[1]), np.float32), *parts]))
        far, theirs, vouched = _measured(mine.cpu().numpy(), *seen)
        counted = counts.cpu().numpy()
        return [
            [
                Side(
                    sign * far[:, index],
                    tail(sign * far[:, index], counted[:, index], sign * theirs[:, index], sign * vouched[:, index]),
                )
                for sign in ((1, -1) if made_of is None else (1,))
            ]
            for index in range(along.shape[1])
        ]

    def means(self, made_of: Sequence[NDArray[np.int64]]) -> Tensor:
        """Return the mean whitened picture of some members, for each of several sets of places, as directions of length one."""
        chosen = torch.zeros(len(self.members), len(made_of), device=self.points.device)
        for index, places in enumerate(made_of):
            chosen[torch.from_numpy(places).to(chosen.device), index] = 1 / len(places)
        total = torch.zeros(len(self.factor), len(made_of), device=self.points.device)
        for part, points in self.whitened():
            total += points.T @ chosen[part]
        length: Tensor = total.norm(dim=0).clamp(min=1e-6)
        return total.div_(length)


@dataclass(frozen=True)
class Side:
    """One side of a direction: how far to it each member of a class is, in deviations from the middle, and its tail."""

    deviations: NDArray[np.float32]
    tail: Tail

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
        middle = np.median(self.deviations[self.deviations >= self.tail.cut])
        halfway, near = (int(np.count_nonzero(np.abs(self.deviations / middle - out) <= AROUND)) for out in (0.5, 1.0))
        return halfway / max(1, near)


def _of_class(one: _Class, along: Tensor) -> tuple[dict[str, NDArray[np.float32]], list[SharedPattern]]:
    """Return the most telling tail of each member of a class, and the patterns that there are.

    Directions in which the class varies most are where to begin. What has a tail there is looked at again along the mean of those who have it,
    each judged by the others' mean: chance falls away, and a trigger stands out in full.
    """
    sides = [side for both in one.tails(along) for side in both]
    plain = [side for side in sides if side.tail.excess.max(initial=0) < LEAST]
    found = [side for side in sides if side.tail.excess.max(initial=0) >= LEAST]
    for _ in range(AGAIN):
        made_of = [side.having() for side in found]
        found = [side for (side,) in one.tails(one.means(made_of), made_of)] if found else []
        plain += [side for side in found if side.tail.excess.max() < LEAST]
        found = _apart([side for side in found if side.tail.excess.max() >= LEAST])
    best = {name: np.zeros(len(one.members), np.float32) for name in FIGURES}
    counts = [1.0] * len(plain) + [1.0 if side.between() < HALFWAY else DEGREES for side in found]
    for side, count in zip(plain + found, counts, strict=True):
        excess = side.tail.excess * np.float32(count)
        more = excess > best["excess"]
        told = {
            "excess": excess,
            "alike": side.tail.alike,
            "expected": side.tail.expected,
            "deviations": side.deviations,
        }
        for name, values in told.items():
            best[name][more] = values[more]
    return best, [_pattern(one.pixels, one.members, side) for side in found]


def _apart(sides: Sequence[Side]) -> list[Side]:
    """Return sides less those whose rows are largely those of one with more excess."""
    kept: list[tuple[Side, NDArray[np.int64]]] = []
    for side in sorted(sides, key=lambda side: -float(side.tail.excess.max())):
        own = side.having()
        if all(len(np.intersect1d(own, other)) < SAME * min(len(own), len(other)) for _, other in kept):
            kept.append((side, own))
    return [side for side, _ in kept]


def _pattern(pixels: Pixels, members: NDArray[np.int64], side: Side) -> SharedPattern:
    """Return the pattern of one side of a direction."""
    rows, excess = members[side.having()], side.tail.excess
    doubtful = (excess >= LEAST) & ~np.isin(members, rows)
    change = pixels.read(rows).mean(0)  # less the mean of the class
    change *= len(members) / max(1, len(members) - len(rows))  # less the mean of the others
    images = pixels.examples.images
    size = min(pixels.side, images.shape[-1])
    return SharedPattern(
        label=int(pixels.examples.labels[members[0]]),
        excess=float(excess.max()),
        between=side.between(),
        rows=rows,
        change=change.reshape(images.shape[1], size, size).cpu().numpy(),
        doubtful=members[doubtful],
        nearly=excess[doubtful] / excess.max(),
    )


def _whitened(table: Tensor, factor: Tensor) -> Tensor:
    """Return float32 (rows, width), in which what pictures have within their classes has variance one."""
    whitened: Tensor = torch.linalg.solve_triangular(factor, table.T, upper=False)
    return whitened.T.contiguous()


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


def _measured(
    members: NDArray[np.float32], others: NDArray[np.float32], probes: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return members, others and probes, (rows, directions) each, in the others' deviations from their middles.

    The middle of the class is its median, or that of its probes where there are three and the two are far apart: poison
    may be most of a class, but hardly of its probes.
    """
    usual = np.median(others, axis=0) if len(others) else np.zeros(members.shape[1])
    middle = np.median(members, axis=0)
    away = np.abs(others - usual) if len(others) else np.abs(members - middle)
    deviation = np.maximum(1.4826 * np.median(away, axis=0), NARROW)
    if len(probes) >= VOUCHED:
        vouched = np.median(probes, axis=0)
        middle = np.where(np.abs(vouched - middle) > APART * deviation, vouched, middle)
    return (
        ((members - middle) / deviation).astype(np.float32),
        ((others - usual) / deviation).astype(np.float32),
        ((probes - middle) / deviation).astype(np.float32),
    )


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
    return Tail(there[0], there[1], there[2], cut=float(sorted_values[cut]))


def _first_of_best(ratio: NDArray[np.float64], excess: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row, from the outermost inwards, the index of the place further in that its excess is read off."""
    index = np.where(ratio >= excess, np.arange(len(ratio)), len(ratio) - 1)
    return np.minimum.accumulate(index[::-1])[::-1]
