"""Which units of a network some pictures of a label excite apart from all others of it, and how far each picture does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.defenses._perturbed import finite, parts
from untaint.examples import Examples
from untaint.models.build import head_of
from untaint.progress import Progress
from untaint.training.pixels import PixelStore

__all__ = ["FEW", "Layer", "Split", "compromised", "excited", "positions", "split", "units_of"]

FIGURES = 3  # of each unit: the largest, the smallest and the mean value
LOOKED_AT = 500  # pictures of a label, at most, by which units are judged
FEW = 50  # of a label; of fewer nothing is said
GROUP, SMALLEST = 0.01, 5  # a group is at least such a share of a label, and so many pictures
UNITS, SHARE = 3, 0.01  # as many units, and as large a share of all, are a label's, or it is chance
SPREAD = 0.005  # of the explained variance, at least, whatever is found
NORMAL = 1.4826  # a normal deviation in median absolute ones


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Two groups of the values of each unit: ``explained``, the share of the variance that is between them; ``low`` and ``high``, their means: float32 (units,)."""

    explained: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Layer:
    """What was found of a layer; each array is (labels, 3 x units): of the largest, the smallest and the mean values over all places.

    ``apart``: how far a label's pictures are in two groups there, in deviations; 0 where they are in one, or nothing is said of the label. ``usual`` and ``excited``: the groups' means; the second one lies
    further from the middle of the labels.
    """

    apart: NDArray[np.float32]
    usual: NDArray[np.float32]
    excited: NDArray[np.float32]

    def units(self) -> NDArray[np.float32]:
        """Return how far each unit parts pictures at most, of whatever label: float32 (units,)."""
        return np.asarray(self.apart.max(axis=0).reshape(FIGURES, -1).max(axis=0))


def split(values: NDArray[np.floating[Any]]) -> Split:
    """Return the two groups between which most of the variance of each column of values (rows, units) is (Fisher, 1958).

    A normal distribution that is cut so has 2 / pi = 64 % of its variance between the halves, two distributions have more. There must be ten rows at least.
    """
    ordered = np.sort(values.astype(np.float64), axis=0)
    rows, unit = len(ordered), np.arange(ordered.shape[1])
    fewest = max(SMALLEST, int(GROUP * rows))
    below = np.arange(fewest, rows - fewest + 1)  # how many are in the lower group
    sums = np.cumsum(ordered, axis=0)
    part = below[:, None]
    low, high = sums[below - 1] / part, (sums[-1] - sums[below - 1]) / (rows - part)
    between = part * (rows - part) / rows**2 * (high - low) ** 2
    best, whole = between.argmax(axis=0), ordered.var(axis=0)
    explained = np.where(whole > 1e-12, between[best, unit] / np.maximum(whole, 1e-12), 0)
    columns = [np.asarray(one, dtype=np.float32) for one in (explained, low[best, unit], high[best, unit])]
    return Split(explained=columns[0], low=columns[1], high=columns[2])


def units_of(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the convolutions and linear layers but the head, by their names; each channel of them is a unit."""
    head = head_of(model)
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer is not head
    }


@contextmanager
def excited(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Give a dictionary that holds, for each layer with units, the largest, the smallest and the mean value of each over all places in the latest pass: float32 (batch, 3 x units)."""
    latest: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _: Any, out: Tensor) -> None:
            places = out.detach().float()
            if isinstance(layer, nn.Conv2d):
                places = places.flatten(2)
            else:
                places = places.reshape(len(places), -1, places.shape[-1]).transpose(1, 2)
            latest[name] = torch.cat([places.amax(dim=2), places.amin(dim=2), places.mean(dim=2)], dim=1)

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in units_of(model).items()]
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()


def compromised(
    model: nn.Module, examples: Examples, limit: float, *, seed: int, where: torch.device, progress: Progress
) -> dict[str, Layer]:
    """Return for each layer of a model in eval mode, by its name, which units part the pictures of which label in two groups.

    A unit does where its split explains more of the variance than the median unit of its layer by ``limit`` deviations, over all units and labels. Labels of fewer than 50 pictures are passed over,
    and so is one with next to no such unit. Of large labels some pictures are drawn by the seed.
    """
    store, labels = PixelStore(examples, where), examples.labels[examples.rows]
    counts = np.bincount(labels, minlength=len(examples.class_names))
    judged = np.flatnonzero(counts >= FEW)
    looked_at = np.minimum(counts, LOOKED_AT)
    found: dict[str, list[Split]] = {}
    with progress.step("look at its units", int(looked_at[judged].sum())) as step:
        for label in judged:
            own = rng.choose(seed, "excited", examples.rows[labels == label], LOOKED_AT)
            values: dict[str, list[NDArray[np.float32]]] = {}
            for rows in parts(own, examples.images.shape):
                for name, shown in _pass(model, store, rows).items():
                    values.setdefault(name, []).append(finite(shown))
                step.advance(len(rows))
            for name, blocks in values.items():
                found.setdefault(name, []).append(split(np.concatenate(blocks)))
    layers = {name: _judged(some, judged, looked_at, limit) for name, some in found.items()}
    return _without_chance(layers)


def positions(
    model: nn.Module, examples: Examples, layers: dict[str, Layer], *, where: torch.device, progress: Progress
) -> NDArray[np.float32]:
    """Return where a row is between the usual group (0) and the excited one (1) of its label, on average over what parts the label: float32 (all rows,); 0 for labels that nothing parts, nan for no members."""
    store, values = PixelStore(examples, where), np.full(examples.total, np.nan, dtype=np.float32)
    known = {
        name: [torch.from_numpy(array).to(where) for array in (layer.apart > 0, layer.usual, layer.excited)]
        for name, layer in layers.items()
        if (layer.apart > 0).any()
    }
    with progress.step("look at who excites them", len(examples)) as step:
        for rows in parts(examples.rows, examples.images.shape):
            labels = torch.from_numpy(examples.labels[rows]).to(where)
            total, count = torch.zeros(len(rows), device=where), torch.zeros(len(rows), device=where)
            for name, shown in _pass(model, store, rows).items() if known else ():
                if name in known:
                    counts, usual, most = (array[labels] for array in known[name])
                    place = ((shown - usual) / torch.where(counts, most - usual, 1)).clamp(0, 1)
                    total += (place * counts).sum(dim=1)
                    count += counts.sum(dim=1)
            values[rows] = finite(total / count.clamp(min=1))
            step.advance(len(rows))
    return values


def _pass(model: nn.Module, store: PixelStore, rows: NDArray[np.int64]) -> dict[str, Tensor]:
    """Return what is excited by each of these rows; layers that see parts of pictures by themselves are left out."""
    with torch.inference_mode(), excited(model) as latest:
        model(store.gather(rows)[0])
    return {name: values for name, values in latest.items() if len(values) == len(rows)}


def _judged(found: list[Split], judged: NDArray[np.int64], counts: NDArray[np.int64], limit: float) -> Layer:
    """Return a layer's units: of few pictures a split explains more by chance, by the root of their number."""
    explained = np.array([one.explained for one in found])
    living = explained > 0
    usual = np.median(explained[living]) if living.any() else 0.0
    beyond = (explained - usual) * np.sqrt(counts[judged] / counts.max())[:, None]
    spread = max(NORMAL * float(np.median(np.abs(beyond[living]))) if living.any() else 0.0, SPREAD)
    low, high = np.array([one.low for one in found]), np.array([one.high for one in found])
    middle = np.median((low + high) / 2, axis=0)
    upper = np.abs(high - middle) >= np.abs(low - middle)
    layer = Layer(*(np.zeros((len(counts), explained.shape[1]), dtype=np.float32) for _ in range(3)))
    layer.apart[judged] = np.where(living & (beyond > limit * spread), beyond / spread, 0)
    layer.usual[judged], layer.excited[judged] = np.where(upper, low, high), np.where(upper, high, low)
    return layer


def _without_chance(layers: dict[str, Layer]) -> dict[str, Layer]:
    """Leave out labels that so few units part that it may be chance."""
    if not layers:
        return layers
    many = sum((layer.apart > 0).sum(axis=1) for layer in layers.values())
    everything = sum(layer.apart.shape[1] for layer in layers.values())
    few = np.asarray(many) < max(UNITS, SHARE * everything)
    for layer in layers.values():
        layer.apart[few] = 0
    return layers
