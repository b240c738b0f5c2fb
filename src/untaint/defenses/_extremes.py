"""What is extreme in a picture, in each of the undefended model's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from untaint import rng
from untaint.defenses._perturbed import finite, parts, reference, scaling_layers
from untaint.defenses.base import Task
from untaint.errors import InputError

__all__ = ["Pool", "extremes"]

Pool = Literal["map", "layer"]
KEPT = 10  # numbers that are kept of each layer
SAMPLE = 2_000  # rows by which is known in which directions the extremes of a layer vary
LEAST = 1e-6  # of a deviation
HIGH, LOW, MEAN, SQUARE = range(4)


def extremes(task: Task, pool: Pool) -> NDArray[np.float32]:
    """Return what is extreme in each row in each of the undefended model's layers: float32 (all rows, layers, numbers), zero for no members.

    The layers are those of batch normalisation, or what ``scaling_layers`` gives. What enters one is scaled as it scales it, before its weights: by its running mean and deviation, or where it has none by those
    over 2,000 rows. ``map``: the largest and the smallest value of each feature map, logarithms of one more than their sizes with their signs, in the 10 main directions of them in 2,000 rows. ``layer``: the
    logarithm of one more than the largest size of all.

    Raises InputError if one is not finite, or if the model has no such layer.
    """
    model, store = reference(task)
    layers, size, rows = scaling_layers(model), task.examples.images.shape, task.examples.rows
    sample = rng.choose(task.seed, "defenses/flare/sample", rows, SAMPLE)
    seen: dict[int, list[Tensor]] = {}
    entering: dict[int, Tensor] = {}
    with torch.inference_mode(), _kept(layers, entering):
        for block in parts(sample, size):
            model(store.gather(block)[0])
            for place, entered in entering.items():
                seen.setdefault(place, []).append(entered)
        if not seen:
            raise InputError("the model has no hidden layer to look into. Give another.")
        of_sample = {place: torch.cat(seen.pop(place), dim=1) for place in sorted(seen)}
        scales = {place: _scale(layers[place], entered) for place, entered in of_sample.items()}
        axes = {place: _axes(_ends(entered, scales[place], pool)) for place, entered in of_sample.items()}
        found = np.zeros((task.examples.total, len(axes), max(axis.shape[1] for axis in axes.values())), np.float32)
        with task.progress.step("look into all layers", len(rows)) as step:
            for block in parts(rows, size):
                model(store.gather(block)[0])
                for number, (place, axis) in enumerate(axes.items()):
                    ends = _ends(entering[place], scales[place], pool)
                    found[block, number, : axis.shape[1]] = finite(ends @ axis)
                step.advance(len(block))
    return found


@contextmanager
def _kept(layers: list[nn.Module], entering: dict[int, Tensor]) -> Iterator[None]:
    """Keep of what enters each layer, by its place, the largest value of each map, the smallest, the mean and the mean square: (4, batch, maps)."""

    def keep(place: int) -> Any:
        def hook(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            maps = _maps(given[0].detach().float(), layer)
            entering[place] = torch.stack([maps.amax(2), maps.amin(2), maps.mean(2), maps.square().mean(2)])

        return hook

    handles = [layer.register_forward_pre_hook(keep(place)) for place, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _maps(values: Tensor, layer: nn.Module) -> Tensor:
    """Return what enters a layer as (batch, maps, places)."""
    width = {nn.LayerNorm: "normalized_shape", nn.Linear: "in_features"}
    for kind, name in width.items():
        if isinstance(layer, kind) and values.shape[-1] == np.ravel(getattr(layer, name))[-1]:
            values = values.movedim(-1, 1)
            break
    return values.flatten(2) if values.dim() > 2 else values[..., None]


def _scale(layer: nn.Module, entered: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation of each map, the layer's own if it has them."""
    if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
        return layer.running_mean, (layer.running_var + layer.eps).sqrt()
    mean, square = entered[MEAN].double().mean(dim=0), entered[SQUARE].double().mean(dim=0)
    return mean.float(), (square - mean.square()).clamp(min=LEAST**2).sqrt().float()


def _ends(entered: Tensor, scale: tuple[Tensor, Tensor], pool: Pool) -> Tensor:
    """Return the extremes of each row: (batch, twice the maps), or (batch, 1) for all maps together."""
    ends = torch.cat([(entered[which] - scale[0]) / scale[1] for which in (HIGH, LOW)], dim=1)
    ends = ends.sign() * ends.abs().log1p()
    return ends if pool == "map" else ends.abs().amax(dim=1, keepdim=True)


def _axes(ends: Tensor) -> Tensor:
    """Return the main directions of the extremes of some rows: (width, at most 10)."""
    points = finite(ends).astype(np.float64)
    main = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][:KEPT]
    return torch.from_numpy(main.T.astype(np.float32)).to(ends.device)
