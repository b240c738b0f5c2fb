"""AGPD: rows for which the gradient at the model's features points another way than for clean pictures of their class (Yuan, Zhang, Wei, Li and Wu, 2025)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, normalize

from untaint import rng
from untaint.defenses._inside import inner_layers, inputs_of, spread
from untaint.defenses._perturbed import beside, finite, need_probes, parts, reference
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import InputError, SpecError
from untaint.scores import Scores
from untaint.training.pixels import PixelStore

__all__ = ["AGPD", "basis", "indices", "scatters", "transitions", "way"]

Floats = NDArray[np.float64]

FEWEST = 10  # probes in all, the paper's number for one class
SMALLEST = 10  # a class with fewer rows that nobody vouches for is not looked at
AT_ONCE = 250  # pictures whose gradients are held at once
MOST = 1_000  # rows of a class by which its two directions are found
FAR = 0.05  # of a class, at least ten rows: the most dissimilar, by which the second direction is first found
ROUNDS = 20  # in which the two directions are found anew
LEAST = 5  # rows that make a direction
PRIOR = 12.0  # so many probes that scatter as all do are counted to each class
USUAL = 0.1  # ratios of clean classes scatter by this at least
NOTHING = 1e-5  # a scatter of cosines below this is none
HALF = 3.0  # deviations that count half in a class in which nothing was found


@dataclass(frozen=True, kw_only=True)
class AGPD(Detector):
    """How far a row lies on the way from the clean to the strange direction of its class: above 1 nearer to the strange one, in a class in which that is no chance; below 1 in others.

    The direction is that of the gradient of the label's logit with respect to what comes into a layer, mean over ``grid`` x ``grid`` parts of the picture (``grid=1``: over all of it). In each class and up to ``layers`` layers, evenly
    spread, one direction is that of the class's probes, the other that of the rows that are most dissimilar from them; both are found anew from the rows that are nearest to each until that changes nothing. The part ``transition`` is
    by how much the cosine grows from the first to the second. A class is a target if transitions are more dispersed than clean ones in some layer: its ``index`` is above e squared, and the layer where it is largest is taken.
    Rows of a target that are nearer to the second direction are poison, however many targets there are.

    Yuan et al. (ICLR 2025) have the directions, the change of the cosine from one basis to a dissimilar one as measure of dispersion, e squared, and 10 clean pictures of each class. Ours are the parts of the picture (the place of a patch tells
    more), that both directions are found anew, and with ``against=probes`` the index: by how much the deviation of a class's transitions is larger than its probes', in units of how far such ratios usually lie below 1. Other targets cannot spoil it, as they can that of
    ``against=classes``, which is nearer to the paper: median absolute deviations above the median class. They filter step by step, until what is left is distributed as clean pictures are; here the nearer direction decides. A class's probes are
    reckoned with 12 more that scatter as those of all classes do, so that it may have few; without any, most of its rows stand for them. Raises SpecError for fewer than 10 probes in all.
    """

    grid: int = 2
    layers: int = 16
    against: Literal["probes", "classes"] = "probes"
    index: float = math.e**2

    card: ClassVar[Card | None] = Card(
        paper="Yuan, Zhang, Wei, Li and Wu: AGPD, ICLR 2025",
        assumes="a model has other reasons for the label of poison than for that of clean pictures of the class, so that gradients inside it point another way",
        clean=FEWEST,
        claim="97 % found on CIFAR-10 at 10 %, on average over twelve attacks, with next to no clean pictures, by 10 clean ones of each class; about 90 % at 0.5 %",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=1"

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("grid", "layers"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        if self.against not in ("probes", "classes"):
            raise SpecError(f"against is '{self.against}'; give probes or classes.")
        if not 0 < self.index < math.inf:
            raise SpecError(f"index is {self.index}; give a number above 0, such as 7.39.")

    def score(self, task: Task) -> Scores:
        """Return how far each row lies on the way to the strange direction of its class; 0 in classes with fewer than 10 rows that nobody vouches for."""
        need_probes(task, "agpd", FEWEST)
        folder = beside(task, f"agpd-{self.grid}-{self.layers}-{task.seed}", task.probes)
        steps = task.once(folder, lambda: transitions(task, self))
        labels, members = task.examples.labels, task.examples.rows
        scatter = scatters(steps, labels, task.probes)
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        values[members] = 0
        transition, index = values.copy(), values.copy()
        for label, by_layer in indices(steps, labels, members, task.probes, scatter, self.against).items():
            rows, layer = members[labels[members] == label], int(np.argmax(by_layer))
            own, clean = steps[rows, layer].astype(np.float64), np.isin(rows, task.probes)
            middle = float(np.median(own[clean] if clean.any() else own))
            index[rows], transition[rows] = by_layer[layer], own
            values[rows] = way(own, middle, float(scatter[label][layer]), target=by_layer[layer] > self.index)
        return Scores(values=values, name="agpd", parts={"transition": transition, "index": index})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model, there and back."""
        count = len(task.examples)
        return [(UNDEFENDED, task.preset.retrain.epochs * count, 3 * count)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how its class is dispersed and where it lies."""
        return [
            f"the model's reasons for its label are {'others than' if scores.values[row] > 1 else 'somewhat unlike'} those for clean pictures of it (transition {scores.parts['transition'][row]:.2f}, index of its class {scores.parts['index'][row]:.1f})"
            for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what AGPD cannot tell."""
        return [
            "Poison of which a class has a few rows only, and triggers that the model did not learn, are not found.",
            "A class of two kinds of pictures of which the probes show one is taken for a target. Classes with fewer than 10 rows that nobody vouches for are not looked at.",
        ]


def transitions(task: Task, options: AGPD) -> NDArray[np.float32]:
    """Return each row's cosine with the strange direction of its class less that with the clean one, in each layer: float32 (all rows, layers), nan for no members and in classes with few rows.

    Raises InputError if gradients are not finite numbers, or do not reach any layer.
    """
    model, store = reference(task)
    rows, labels = task.examples.rows, task.examples.labels
    layers = spread(inner_layers(model, store.gather(rows[:1])[0]), options.layers)
    steps = np.full((task.examples.total, len(layers)), np.nan, dtype=np.float32)
    with task.progress.step("look at gradients", len(rows)) as step:
        for label in np.unique(labels[rows]):
            own = rows[labels[rows] == label]
            unknown, known = np.setdiff1d(own, task.probes), np.intersect1d(own, task.probes)
            if len(unknown) >= SMALLEST:
                drawn = rng.choose(task.seed, "defenses/agpd", unknown, MOST)
                first = np.concatenate([drawn, known])
                seen = [block for _, block in _directions(model, store, layers, first, options.grid)]
                found = [np.concatenate([block[layer] for block in seen]) for layer in range(len(layers))]
                pairs = [basis(each[: len(drawn)], each[len(drawn) :]) for each in found]
                steps[first] = _steps(found, pairs)
                for block, directions in _directions(model, store, layers, np.setdiff1d(unknown, drawn), options.grid):
                    steps[block] = _steps(directions, pairs)
            step.advance(len(own))
    return steps


def basis(rows: NDArray[np.float32], clean: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Return the clean and the strange direction of a class, float64 (width,) each, of unit length.

    ``rows``: unit directions of the rows that nobody vouches for, (rows, width); ``clean``: those of its probes, perhaps of none, (probes, width). The strange direction is first that of the rows least like the probes (least like all, where there are none);
    then both are those of the rows that are nearer to the one or the other, until this changes nothing or leaves fewer than 5 to one.
    """
    plain = _unit((clean if len(clean) else rows).mean(axis=0, dtype=np.float64))
    far = np.argsort(rows @ plain, kind="stable")[: max(SMALLEST, round(FAR * len(rows)))]
    strange = _unit(rows[far].mean(axis=0, dtype=np.float64))
    before = None
    for _ in range(ROUNDS):
        beyond = rows @ strange > rows @ plain
        if min(beyond.sum(), (~beyond).sum()) < LEAST or (before is not None and np.array_equal(beyond, before)):
            break
        strange = _unit(rows[beyond].mean(axis=0, dtype=np.float64))
        plain = _unit(rows[~beyond].mean(axis=0, dtype=np.float64))
        before = beyond
    return plain, strange


def scatters(steps: NDArray[np.float32], labels: NDArray[np.int64], probes: NDArray[np.int64]) -> dict[int, Floats]:
    """Return by class the standard deviation of its probes' transitions in each layer, (layers,), drawn towards that of all probes in their classes, by as much as 12 probes weigh."""
    known = probes[np.isfinite(steps[probes]).all(axis=1)]
    squares: dict[int, Floats] = {}
    freedom: dict[int, int] = {}
    for label in np.unique(labels[known]):
        own = steps[known[labels[known] == label]].astype(np.float64)
        squares[int(label)] = np.square(own - own.mean(axis=0)).sum(axis=0)
        freedom[int(label)] = len(own) - 1
    total = np.sum(list(squares.values()), axis=0) if squares else np.zeros(steps.shape[1])
    usual = total / max(1, sum(freedom.values()))
    nothing = np.zeros(steps.shape[1])
    return {
        int(label): np.sqrt((squares.get(int(label), nothing) + PRIOR * usual) / (freedom.get(int(label), 0) + PRIOR))
        for label in np.unique(labels)
    }


def indices(
    steps: NDArray[np.float32],
    labels: NDArray[np.int64],
    members: NDArray[np.int64],
    probes: NDArray[np.int64],
    scatter: dict[int, Floats],
    against: str,
) -> dict[int, Floats]:
    """Return how unusually dispersed the transitions of each class are in each layer, (layers,), by class; classes that were not looked at are left out.

    ``against``: ``probes``, deviations of the rows' transitions over those of clean ones (``scatter``), less 1, in units of how far such ratios usually lie below 1; ``classes``: their mean size, in median absolute deviations above
    the median class.
    """
    looked = members[np.isfinite(steps[members]).all(axis=1)]
    names = np.unique(labels[looked])
    if not len(names):
        return {}
    by_class = [looked[labels[looked] == label] for label in names]
    if against == "classes":
        sizes = np.stack([np.abs(steps[rows], dtype=np.float64).mean(axis=0) for rows in by_class])
        beyond = sizes - np.median(sizes, axis=0)
        found = beyond / np.maximum(NOTHING, 1.4826 * np.median(np.abs(beyond), axis=0))
    else:
        clean = np.stack([scatter[int(label)] for label in names])
        wide = np.stack([steps[np.setdiff1d(rows, probes)].std(axis=0, dtype=np.float64) for rows in by_class])
        beyond = np.maximum(wide, NOTHING) / np.maximum(clean, NOTHING) - 1
        less = -beyond[beyond < 0]
        found = beyond / max(USUAL, 1.4826 * float(np.median(less)) if len(less) else 0.0)
    return {int(label): values for label, values in zip(names, found, strict=True)}


def way(steps: Floats, middle: float, deviation: float, *, target: bool) -> Floats:
    """Return how far transitions of one class lie on the way from the ``middle`` of clean ones, 0; in a ``target`` it is 1 half way between the directions, else it stays below 1.

    In others it is 1/2 at 3 deviations of clean ones; in a target half way is no less than one.
    """
    deviation = max(deviation, NOTHING)
    beyond = (steps - middle) / deviation
    return np.asarray(beyond / (max(1.0, -middle / deviation) if target else HALF + np.maximum(beyond, 0)))


def _directions(
    model: nn.Module, store: PixelStore, layers: Sequence[nn.Module], rows: NDArray[np.int64], grid: int
) -> Iterator[tuple[NDArray[np.int64], list[NDArray[np.float32]]]]:
    """Return for each block of rows the directions of their gradients: float32 (rows, width) for each layer."""
    for block in parts(rows, store.images.shape, AT_ONCE):
        images, labels = store.gather(block)
        with torch.enable_grad(), inputs_of(layers) as seen:
            logits = model(images.requires_grad_())
            inputs = [seen[layer] for layer in layers]
            reached = [each for each in inputs if each.requires_grad]
            if not reached or not logits.requires_grad:
                raise InputError("no gradient reaches the layers of the model. Give one that can be trained.")
            gradients = torch.autograd.grad(
                logits.float().gather(1, labels[:, None]).sum(), reached, materialize_grads=True
            )
        found = dict(zip(map(id, reached), gradients, strict=True))
        yield block, [_direction(found.get(id(each), torch.zeros_like(each)), grid) for each in inputs]


def _direction(gradient: Tensor, grid: int) -> NDArray[np.float32]:
    """Return gradients, mean over some parts of the picture, of unit length: float32 (batch, channels * parts)."""
    gradient = gradient.float()
    if gradient.dim() == 3:  # a transformer's: (batch, tokens, channels)
        gradient = adaptive_avg_pool1d(gradient.transpose(1, 2), min(grid**2, gradient.shape[1]))
    elif gradient.dim() == 4:
        height, width = gradient.shape[2:]
        gradient = adaptive_avg_pool2d(gradient, (min(grid, height), min(grid, width)))
    return finite(normalize(gradient.flatten(1), dim=1, eps=1e-30))


def _steps(directions: list[NDArray[np.float32]], pairs: list[tuple[Floats, Floats]]) -> NDArray[np.float32]:
    """Return transitions in each layer: float32 (rows, layers)."""
    return np.stack(
        [each @ strange - each @ plain for each, (plain, strange) in zip(directions, pairs, strict=True)], axis=1
    ).astype(np.float32)


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), np.finfo(float).tiny))
