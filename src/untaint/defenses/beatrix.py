"""Beatrix: rows whose features go together otherwise than in clean pictures of their class, by Gram matrices (Ma, Wang, Sun, Xue, Wen and Xiang, 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.defenses._inside import inner_layers, inputs_of, places
from untaint.defenses._perturbed import above_probes, beside, finite, need_probes, parts, reference
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import SpecError
from untaint.models.build import head_of
from untaint.scores import Scores
from untaint.training.pixels import PixelStore

__all__ = ["Beatrix", "Bounds", "anomalies", "deviations", "gram", "mean_discrepancy"]

FEWEST = 10  # probes in all
ENOUGH = 10  # pictures by which a class's bounds are learned: where it has fewer probes, rows of the class drawn by lot are taken too
MOST = 50  # of them
SMALLEST = 5  # a class with fewer rows is not looked at
AT_ONCE = 250  # pictures whose Gram matrices are held at once
GROUP = 300  # rows of each group of a class that are compared, at most
REGULAR = 0.01  # of the groups' mean embeddings, which is taken off their discrepancy
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, times the median squared distance


@dataclass(frozen=True, kw_only=True)
class Beatrix(Detector):
    """By how much the correlations of a row's features leave the bounds of clean pictures of its class: 0 as the median of the probes, above 1 more than all but a share ``false_positives`` of them.

    The features come from the inside of the undefended model, at a ``depth`` between what comes into its second layer with weights (0) and into its head (1). Their Gram matrices of the orders 1 to ``orders`` are those of the features' p-th powers, of which the p-th root is
    taken. A class's bounds are the median of its clean pictures plus and minus ``within`` median absolute deviations, for each entry; the part ``deviation`` is by how much entries are beyond, in units of the bound plus the class's mean entry, mean over all entries and orders. The
    rule taken here is the paper's, the deviation that a share of clean pictures exceeds. The part ``index`` says of a row's class whether it holds a group apart: the regularised maximum mean discrepancy, in penultimate features, between those of its rows that are above 1 and the others, in median
    absolute deviations above the median class. With ``classes=infected`` rows score below 1 unless that is more than e squared, the paper's limit, which is for few targets among many classes.

    Ma et al. (NDSS 2023) look at what a model is asked, with features of one layer, 10 deviations and 8 orders. Ours are the middle of the network (what comes before its head is more alike in poison than in clean pictures, where a trigger is learned well), the mean entry in the unit (else
    entries decide that are next to nothing), the kernels, Gaussian ones of five widths, and that only the ``channels`` that vary the most over the probes are taken, for the time it costs. Where a class has fewer than 10 probes, rows of it drawn by lot make up the number; pictures by which
    bounds are learned are measured by bounds without them. Raises SpecError for fewer than 10 probes in all.
    """

    orders: int = 8
    within: float = 10.0
    depth: float = 0.6
    channels: int = 128
    false_positives: float = 0.05
    classes: Literal["all", "infected"] = "all"

    card: ClassVar[Card | None] = Card(
        paper="Ma, Wang, Sun, Xue, Wen and Xiang: Beatrix, NDSS 2023",
        assumes="features of poison go together in ways in which those of clean pictures of the class do not",
        clean=FEWEST,
        rate="threshold",
        claim="91 % (F1) of triggers that differ from picture to picture found, where others reach 37",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=1"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 1 <= self.orders <= 16:
            raise SpecError(f"orders is {self.orders}; give a number from 1 to 16, such as 8.")
        if not 0 < self.within < math.inf:
            raise SpecError(f"within is {self.within}; give a number of deviations above 0, such as 10.")
        if not 0 <= self.depth <= 1:
            raise SpecError(f"depth is {self.depth}; give a number from 0 to 1, such as 0.6.")
        if self.channels < 2:
            raise SpecError(f"channels is {self.channels}; give at least 2, such as 128.")
        if not 0 < self.false_positives < 0.5:
            raise SpecError(f"false_positives is {self.false_positives}; give a share above 0 and below 0.5.")
        if self.classes not in ("all", "infected"):
            raise SpecError(f"classes is '{self.classes}'; give all or infected.")

    def score(self, task: Task) -> Scores:
        """Return by how much each row is beyond its class's bounds; as the median of the probes in classes with fewer than 5 rows."""
        need_probes(task, "beatrix", FEWEST)
        options = f"{self.orders}-{self.within:g}-{self.depth:g}-{self.channels}"
        folder = beside(task, f"beatrix-{options}-{task.seed}", task.probes)
        deviation = task.once(folder, lambda: deviations(task, self))
        values = _measured(deviation, task, self.false_positives)
        index = anomalies(values > 1, task)
        if self.classes == "infected":
            values = np.where(index > math.e**2, values, values / (1 + np.maximum(values, 0)))
        return Scores(
            values=values.astype(np.float32), name="beatrix", parts={"deviation": np.array(deviation), "index": index}
        )

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model."""
        count = len(task.examples)
        return [(UNDEFENDED, task.preset.retrain.epochs * count, 2 * count)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row by how much it is beyond the bounds, and whether its class holds a group apart."""
        return [
            f"its features go together unlike those of clean pictures of its class (deviation {scores.parts['deviation'][row]:.3g}, index of the class {scores.parts['index'][row]:.1f})"
            for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what Beatrix cannot tell."""
        return [
            "Pictures that are unusual in their class score as poison does; about as many clean pictures as the option false_positives says are set aside, poison or not.",
            "Where a class has fewer than 10 probes, poison that is most of it is taken for clean. Classes with fewer than 5 pictures are not looked at.",
        ]


@dataclass(frozen=True)
class Bounds:
    """Between which entries of Gram matrices lie, float32 (entries,), and the class's mean entry, for one order; or (pictures, entries) and (pictures, 1), for each picture its own."""

    low: Tensor
    high: Tensor
    usual: Tensor

    @classmethod
    def of(cls, clean: Tensor, within: float) -> Bounds:
        """Return those of some Gram matrices, (pictures, entries)."""
        middle = _median(clean)
        apart = within * _median((clean - middle).abs())
        return cls(middle - apart, middle + apart, clean.abs().mean())

    @classmethod
    def without(cls, clean: Tensor, within: float) -> Bounds:
        """Return for each of some Gram matrices those of the others, of which there is one at least."""
        middle = _medians_without(clean)
        apart = torch.full_like(middle, math.nan)
        for one in _possible(clean):
            apart = torch.where(middle == one, _medians_without((clean - one).abs()), apart)
        sizes = clean.abs().mean(dim=1, keepdim=True)
        return cls(middle - within * apart, middle + within * apart, (sizes.sum() - sizes) / (len(clean) - 1))

    def beyond(self, matrices: Tensor) -> Tensor:
        """Return by how much some matrices are beyond, mean over their entries: (pictures,)."""
        least = torch.finfo(torch.float32).tiny
        below = (self.low - matrices).clamp_min(0) / (self.low.abs() + self.usual + least)
        above = (matrices - self.high).clamp_min(0) / (self.high.abs() + self.usual + least)
        return (below + above).mean(dim=1)


def gram(features: Tensor, order: int) -> Tensor:
    """Return the upper triangles of Gram matrices of one order, float32 (batch, channels * (channels + 1) / 2), of features (batch, channels, places).

    An entry has the sign of the sum of which the root is taken.
    """
    largest = features.abs().amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    powers = (features / largest) ** order  # else they are soon too large for a float
    sums = powers @ powers.transpose(1, 2)
    roots = sums.sign() * sums.abs() ** (1 / order) * largest**2
    first, second = torch.triu_indices(*roots.shape[1:], device=roots.device)
    return roots[:, first, second]


def _median(values: Tensor) -> Tensor:
    """Return the median over the first dimension, of two in the middle their mean (torch takes the lower, or cannot take many)."""
    ordered = values.sort(dim=0).values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def _medians_without(values: Tensor) -> Tensor:
    """Return for each row the median over all others, of the shape of the values."""
    ordered, low, high = values.sort(dim=0).values, (len(values) - 2) // 2, (len(values) - 1) // 2
    lower, upper = (torch.where(values <= ordered[place], ordered[place + 1], ordered[place]) for place in (low, high))
    return (lower + upper) / 2


def _possible(values: Tensor) -> list[Tensor]:
    """Return all that the median over all rows but one can be: two or three, each of the shape of a row."""
    ordered, low, high = values.sort(dim=0).values, (len(values) - 2) // 2, (len(values) - 1) // 2
    pairs = {(low, high), (low, high + 1), (low + 1, high + 1)} if low < high else {(low, low), (high + 1, high + 1)}
    return [(ordered[one] + ordered[other]) / 2 for one, other in pairs]


def deviations(task: Task, options: Beatrix) -> NDArray[np.float32]:
    """Return by how much each row's Gram matrices are beyond the bounds of its class: float32 (all rows,), nan for no members and in classes with few rows.

    Raises InputError if the model's features are not finite numbers.
    """
    view = _View(*reference(task), options, rng.choose(task.seed, "defenses/beatrix/channels", task.probes, GROUP))
    rows, labels = task.examples.rows, task.examples.labels
    values = np.full(task.examples.total, np.nan, dtype=np.float32)
    with task.progress.step("look at Gram matrices", len(rows)) as step, torch.inference_mode():
        for label in np.unique(labels[rows]):
            own = rows[labels[rows] == label]
            if len(own) >= SMALLEST:
                clean = _clean(own, task)
                bounds, values[clean] = _learned(torch.cat([block for _, block in view(clean)]), options)
                for block, features in view(np.setdiff1d(own, clean)):
                    beyond = [one.beyond(gram(features, order)) for order, one in enumerate(bounds, start=1)]
                    values[block] = finite(torch.stack(beyond).mean(dim=0))
            step.advance(len(own))
    return values


def _clean(own: NDArray[np.int64], task: Task) -> NDArray[np.int64]:
    """Return the rows of a class by which its bounds are learned: probes, and others where these are few."""
    probes, others = np.intersect1d(own, task.probes), np.setdiff1d(own, task.probes)
    drawn = rng.choose(task.seed, "defenses/beatrix/clean", others, max(0, ENOUGH - len(probes)))
    return np.concatenate([rng.choose(task.seed, "defenses/beatrix/clean", probes, MOST), drawn])


def _learned(features: Tensor, options: Beatrix) -> tuple[list[Bounds], NDArray[np.float32]]:
    """Return the bounds of each order by all these pictures, and by how much each of them is beyond those by the others: float32 (pictures,)."""
    bounds, beyond = [], torch.zeros(len(features), device=features.device)
    for order in range(1, options.orders + 1):
        matrices = gram(features, order)
        bounds.append(Bounds.of(matrices, options.within))
        beyond += Bounds.without(matrices, options.within).beyond(matrices) / options.orders
    return bounds, finite(beyond)


class _View:
    """Shows what comes into one layer of the model for some rows, in the channels that vary the most over the probes."""

    def __init__(self, model: nn.Module, store: PixelStore, options: Beatrix, probes: NDArray[np.int64]) -> None:
        self.model, self.store = model, store
        layers = inner_layers(model, store.gather(probes[:1])[0])
        head = head_of(model)
        layers += [head] if head is not None and head not in layers else []
        self.layer = layers[round(options.depth * (len(layers) - 1))]
        self.channels: Tensor | None = None
        with torch.inference_mode():
            seen = torch.cat([features.abs().mean(dim=2) for _, features in self(probes)])
            order = torch.argsort(seen.var(dim=0, correction=0), descending=True, stable=True)
        self.channels = order[: options.channels].sort().values

    def __call__(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Return for each block of rows its features: float32 (rows, channels, places)."""
        for block in parts(rows, self.store.images.shape, AT_ONCE):
            with inputs_of([self.layer]) as latest:
                self.model(self.store.gather(block)[0])
            features = places(latest[self.layer].float())
            yield block, features if self.channels is None else features[:, self.channels]


def _measured(deviation: NDArray[np.float32], task: Task, share: float) -> NDArray[np.float64]:
    """Return deviations on the scale of the probes'; 0 for members that were not looked at, nan for no members."""
    members = task.examples.rows
    looked = members[np.isfinite(deviation[members])]
    probes = np.intersect1d(task.probes, looked)
    values = np.full(task.examples.total, np.nan)
    values[members] = 0
    if not len(probes):
        return values
    known = deviation[probes]
    if np.quantile(known, 1 - share) > 0:
        values[looked] = above_probes(deviation, probes, share)[looked]
    else:  # no clean picture is beyond the bounds: all who are, are suspicious
        values[looked] = np.where(deviation[looked] > 0, 1 + deviation[looked], 0)
    return values


def anomalies(suspicious: NDArray[np.bool_], task: Task) -> NDArray[np.float32]:
    """Return for each row by how many median absolute deviations the discrepancy between the suspicious rows of its class and the others is above that of the median class: float32 (all rows,), nan for no members.

    ``suspicious``: bool (all rows,). 0 in classes with fewer than two of either.
    """
    features, labels, members = task.features(), task.examples.labels, task.examples.rows
    found: dict[int, float] = {}
    for label in np.unique(labels[members]):
        own = np.setdiff1d(members[labels[members] == label], task.probes)
        groups = [
            rng.choose(task.seed, "defenses/beatrix/group", own[suspicious[own] == which], GROUP)
            for which in (True, False)
        ]
        if min(map(len, groups)) > 1:
            found[int(label)] = mean_discrepancy(*(features[group].astype(np.float64) for group in groups))
    sizes = np.array(list(found.values()))
    index = np.full(task.examples.total, np.nan, dtype=np.float32)
    index[members] = 0
    usual = 1.4826 * float(np.median(np.abs(sizes - np.median(sizes)))) if len(sizes) else 0.0
    for label, size in found.items():
        index[members[labels[members] == label]] = (size - np.median(sizes)) / usual if usual > 0 else 0
    return index


def mean_discrepancy(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the regularised maximum mean discrepancy of two groups of at least two points, (rows, width), squared, unbiased: less a hundredth of the squared norms of their mean embeddings (Danafar et al., 2014)."""
    points = np.concatenate([one, other])
    squares = np.square(points).sum(axis=1)
    apart = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    typical = float(np.median(apart[np.triu_indices(len(points), 1)])) or 1.0
    kernel = np.mean([np.exp(-apart / (width * typical)) for width in WIDTHS], axis=0)
    np.fill_diagonal(kernel, 0)
    first, count, rest = kernel[: len(one)], len(one), len(other)
    within = first[:, :count].sum() / (count * (count - 1)), kernel[count:, count:].sum() / (rest * (rest - 1))
    return float((1 - REGULAR) * sum(within) - 2 * first[:, count:].mean())
