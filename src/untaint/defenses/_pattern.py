"""Which pictures of a class share a pattern, by their pixels alone.

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
from untaint.defenses._tails import LEAST, Side, apart, directions_of, once_each, sides_of
from untaint.defenses.base import Task
from untaint.examples import Examples
from untaint.training.device import device

__all__ = ["DIRECTIONS", "HALFWAY", "LEAST", "SIDE", "Found", "Pixels", "SharedPattern", "patterns"]

DIRECTIONS = 16  # that are looked along in each class
SIDE = 32  # pixels: larger pictures are averaged down
FAINT = 1e-3  # variance added in every direction: what is fainter (8 of 255 levels) is not lifted further
BLOCK = 2_000  # pictures read at a time
MOST = 5_000  # rows of a class by which its directions are found
OTHERS = 8_000  # rows of other classes with which a class is compared
FEWEST = 20  # a class with fewer rows has no patterns
FIGURES = ("excess", "alike", "expected", "deviations")  # of each row
KEPT = 2**28  # bytes of a table of a class that is kept while it is looked at, and not made anew each time
SPARE = 10  # directions more than are asked for, dropped afterwards
AGAIN = 2  # times that a pattern is looked at along the mean of those who have it
HALFWAY = 1.0  # rows halfway out, for each that is near the median of those who have a pattern: with more, it comes by degrees
DEGREES = 0.5  # what the excess of a pattern that comes by degrees counts
TELLING = 0.05  # variance of pictures in a direction in which half of a change is taken for a trigger's


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
class SharedPattern:
    """What a part of a class has in common.

    ``label``: the class. ``excess``: as of a tail. ``between``: how many of the class lie about halfway out to those who have
    it, for each of these that lies near their median. ``home``: where the middle of the other classes lies, as a part of the way out to
    those who have it, from the rest of the class on. ``rows``: who has it, int64. ``change``: float32 (channel, side, side),
    by how much their pictures differ from the rest of the class. ``most``: they are a third of the class and more, seen from the other classes. ``doubtful``: rows in its tail that are not so far out, int64, and
    ``nearly``: their excess as a part of the whole, float32. ``many``: how many have it, near-duplicates counted once.
    """

    label: int
    excess: float
    between: float
    rows: NDArray[np.int64]
    change: NDArray[np.float32]
    doubtful: NDArray[np.int64]
    nearly: NDArray[np.float32]
    home: float = 0.0
    most: bool = False
    many: float = 0.0


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
    ``whole``: all members, whitened, and ``product``: of these with the points, where there is room to keep them.
    """

    pixels: Pixels
    factor: Tensor
    members: NDArray[np.int64]
    others: NDArray[np.int64]
    probes: NDArray[np.int64]
    points: Tensor
    whole: Tensor | None
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
        one = cls(pixels, factor, members, others, np.empty(0, np.int64), points, None, None)
        if len(looked) == len(members):
            return dataclasses.replace(one, whole=points, product=points @ points.T)
        if len(members) * max(points.shape) * points.element_size() > KEPT:
            return one
        whole, product = points.new_empty(len(members), points.shape[1]), points.new_empty(len(members), len(points))
        for part, some in one.whitened():
            whole[part], product[part] = some, some @ points.T
        return dataclasses.replace(one, whole=whole, product=product)

    def whitened(self) -> Iterator[tuple[slice, Tensor]]:
        """Go through the members, whitened, some at a time."""
        at_once = len(self.members) if len(self.points) == len(self.members) else BLOCK
        for start in range(0, len(self.members), at_once):
            part = slice(start, start + at_once)
            if self.whole is not None:
                yield part, self.whole[part]
            else:
                yield part, _whitened(self.pixels.read(self.members[part]), self.factor)

    def tails(self, along: Tensor, made_of: Sequence[NDArray[np.int64]] | None = None) -> list[list[Side]]:
        """Return the sides of each direction, (width, directions) of length one.

        ``made_of``: places among the members whose mean each direction is: they are judged by the mean of the others of them, and
        right sides alone are looked at.
        """
        back = torch.linalg.solve_triangular(self.factor.T, along, upper=True)  # whitening and looking along, in one
        counts, mine = torch.empty(2, len(self.members), along.shape[1], device=along.device)
        squares = torch.empty(len(self.members), device=along.device)
        for part, points in self.whitened():
            product = None if self.product is None else self.product[part]
            counts[part] = once_each(points, self.points, along, len(self.members), product)
            mine[part] = points @ along
            squares[part] = points.square().sum(1)
        for index, places in enumerate(made_of or ()):
            own = torch.from_numpy(places).to(along.device)
            many, length = len(places), mine[own, index].mean().clamp(min=1e-6)  # of the mean that the direction is
            mine[own, index] = (many * mine[own, index] - squares[own] / length) / max(1, many - 1)
        theirs, vouched = (
            np.concatenate(
                [
                    np.empty((0, along.shape[1]), np.float32),
                    *((table @ back).cpu().numpy() for _, table in self.pixels.blocks(rows)),
                ]
            )
            for rows in (self.others, self.probes)
        )
        home = self._home(back.cpu().numpy(), theirs)
        signs = (1, -1) if made_of is None else (1,)
        return sides_of(mine.cpu().numpy(), counts.cpu().numpy(), theirs, vouched, home, signs)

    def _home(self, back: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the middle of the others along each direction, as they are, less the mean of this class. ``theirs``: less the means of their own."""
        labels, means = self.pixels.examples.labels, self.pixels.means
        assert means is not None
        if not len(theirs):
            return np.zeros(back.shape[1], np.float32)
        place = means.cpu().numpy() @ back
        return np.asarray(np.median(theirs + place[labels[self.others]], axis=0) - place[labels[self.members[0]]])

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


def _of_class(one: _Class, along: Tensor) -> tuple[dict[str, NDArray[np.float32]], list[SharedPattern]]:
    """Return the most telling tail of each member of a class, and the patterns that there are.

    Directions in which the class varies most are where to begin. What has a tail there is looked at again along the mean of those who have it,
    each judged by the others' mean: chance falls away, and a trigger stands out in full.
    """
    sides = [side for some in one.tails(along) for side in some]
    plain = [side for side in sides if not side.most and side.tail.excess.max(initial=0) < LEAST]
    found = [side for side in sides if side.stands_out()]
    for _ in range(AGAIN):
        made_of = [side.having() for side in found]
        again = one.tails(one.means(made_of), made_of) if found else []
        sides = []
        for before, some in zip(found, again, strict=True):
            same = [side for side in some if side.most == before.most]
            if not any(side.stands_out() for side in same):
                same = [before] if before.most else some  # of which one may be most of the class
            sides += same
        plain += [side for side in sides if not side.most and side.tail.excess.max() < LEAST]
        sides = [side for side in sides if side.stands_out()]
        some = apart([side for side in sides if not side.most])
        of_a_kind = [
            side for side in some if side.between() < HALFWAY
        ]  # what most have beside such a pattern, says less
        found = some + apart([side for side in sides if side.most], of_a_kind)
    best = {name: np.zeros(len(one.members), np.float32) for name in FIGURES}
    surely = [side for side in found if not side.most]  # only models can tell whether most of a class is poisoned
    counts = [1.0] * len(plain) + [1.0 if side.between() < HALFWAY else DEGREES for side in surely]
    for side, count in zip(plain + surely, counts, strict=True):
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
        home=side.home / side.place(),
        most=side.most,
        many=side.tail.many,
    )


def _whitened(table: Tensor, factor: Tensor) -> Tensor:
    """Return float32 (rows, width), in which what pictures have within their classes has variance one."""
    whitened: Tensor = torch.linalg.solve_triangular(factor, table.T, upper=False)
    return whitened.T.contiguous()
