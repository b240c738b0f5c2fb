"""All of it for a trained model, clean pictures and triggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint import rng
from untaint.errors import InputError
from untaint.examples import Examples
from untaint.models.inserting import BEFORE_POOL, layer_named
from untaint.progress import Progress, Silent
from untaint.spectra.measures import effective_rank, energy_along, projected, singular_values, top_directions
from untaint.spectra.removing import removing
from untaint.training.features import layer_features
from untaint.training.loop import predict

__all__ = ["Shown", "Spectrum", "look"]

MOST = 1_000  # pictures of each kind that are looked at
SHARE = 0.05  # of triggered pictures among clean ones, where they are looked at as they come
REMOVED = (0, 1, 2, 5, 10, 20, 50, 100)  # so many of the strongest directions are taken out
DIRECTIONS = 100  # along which a trigger's energy is measured
SCATTERED = 150  # pictures of each kind in the picture


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """What a layer sees of one trigger.

    ``values``, ``rank``: singular values and effective rank of triggered pictures alone. ``clean_rank``: of the same pictures without the trigger.
    ``energy``: float64 (directions,), the share of the trigger's energy along each of the strongest directions of a batch as it comes, of which ``share`` has the trigger.
    ``clean_energy``: the same of what clean pictures differ from their mean by. ``success``: float64, the attack success rate with
    so many of these directions taken out as ``Spectrum.removed`` says; ``accuracy``: of clean pictures.
    ``scatter``: in the space of the ``k`` strongest and outside of it, two coordinates for each clean and each triggered picture: (2, pictures, 2); ``is_triggered``: which are.
    """

    values: NDArray[np.float64]
    rank: float
    clean_rank: float
    energy: NDArray[np.float64]
    clean_energy: NDArray[np.float64]
    success: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    scatter: NDArray[np.float64]
    is_triggered: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """What a layer sees: ``values``, ``rank`` of clean pictures; ``shown``: by the name of each trigger; ``removed``: how many directions were taken out; ``k``: how many make the strong part of ``Shown.scatter``."""

    layer: str
    pictures: int
    width: int
    share: float
    k: int
    values: NDArray[np.float64]
    rank: float
    removed: tuple[int, ...]
    shown: Mapping[str, Shown]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return every array by a name, as ``numpy.savez`` takes them."""
        found: dict[str, NDArray[Any]] = {"clean values": self.values, "removed": np.array(self.removed)}
        for name, one in self.shown.items():
            for what in ("values", "energy", "clean_energy", "success", "accuracy", "scatter", "is_triggered"):
                found[f"{name} {what.replace('_', ' ')}"] = getattr(one, what)
        return found


def look(
    model: nn.Module,
    clean: Examples,
    shown: Mapping[str, Examples],
    at: str = BEFORE_POOL,
    *,
    k: int = 10,
    share: float = SHARE,
    removed: Sequence[int] = REMOVED,
    most: int = MOST,
    seed: int = 0,
    where: torch.device | None = None,
    progress: Progress | None = None,
) -> Spectrum:
    """Return what a layer of a trained model sees of clean pictures, and of the same with each trigger.

    ``shown``: triggered pictures by a name, as ``untaint.triggered(clean, attack)`` makes them: the same rows, labelled with the target.
    ``share``: of a batch as it comes that has the trigger. ``k``: how many directions count as strong in the scatter plots.
    ``most``: pictures of each kind that are looked at, drawn by the seed.

    Raises InputError for triggered rows that are no clean ones, SpecError for a layer that there is not.
    """
    if not 0 < share < 1:
        raise InputError(f"share is {share}; give more than 0 and less than 1.")
    if k < 1 or most < 1:
        raise InputError(f"k is {k} and most {most}; give at least 1 of each.")
    told = progress or Silent()
    own = clean.take(rng.choose(seed, "spectra", clean.rows, most))
    features = layer_features(model, own, at, where=where, progress=told)
    there = min(features.shape)  # so many directions, at most
    counts = tuple(sorted({count for count in removed if 0 <= count <= there}))
    if not counts:
        raise InputError(f"removed is {list(removed)}, but there are {there} directions. Give fewer.")
    values = singular_values(features)
    found = {
        name: _seen(model, own, features, examples, at, _Asked(k, share, counts, most, seed, where, told))
        for name, examples in shown.items()
    }
    return Spectrum(
        layer=layer_named(model, at)[0],
        pictures=len(own),
        width=features.shape[1],
        share=share,
        k=k,
        values=values,
        rank=effective_rank(values),
        removed=counts,
        shown=found,
    )


@dataclass(frozen=True)
class _Asked:
    k: int
    share: float
    removed: tuple[int, ...]
    most: int
    seed: int
    where: torch.device | None
    progress: Progress


def _seen(
    model: nn.Module, clean: Examples, features: NDArray[np.float32], shown: Examples, at: str, asked: _Asked
) -> Shown:
    """Return what is seen of one trigger, beside clean pictures whose features are known."""
    rows = np.intersect1d(clean.rows, shown.rows)
    if not len(rows):
        raise InputError("no triggered picture is one of the clean ones. Give untaint.triggered(clean, attack).")
    triggered = shown.take(rows)
    with_trigger = layer_features(model, triggered, at, where=asked.where, progress=asked.progress)
    without = features[np.searchsorted(clean.rows, rows)]
    chosen = rng.choose(asked.seed, "spectra/mixed", rows, max(1, round(asked.share * len(clean))))
    mixed = features.copy()
    mixed[np.searchsorted(clean.rows, chosen)] = with_trigger[np.searchsorted(rows, chosen)]
    along = top_directions(mixed, max(DIRECTIONS, *asked.removed, asked.k))
    success, accuracy = [], []
    with asked.progress.step("take directions out", len(asked.removed) * (len(triggered) + len(clean))) as step:
        for count in asked.removed:
            with removing(model, along[:count], at):
                success.append(_right(model, triggered, asked.where))
                accuracy.append(_right(model, clean, asked.where))
            step.advance(len(triggered) + len(clean))
    values = singular_values(with_trigger)
    few = rng.choose(asked.seed, "spectra/scatter", np.arange(len(rows)), SCATTERED)
    both = np.concatenate([without[few], with_trigger[few]])
    strong = along[: asked.k]
    return Shown(
        values=values,
        rank=effective_rank(values),
        clean_rank=effective_rank(singular_values(without)),
        energy=energy_along(with_trigger - without, along[:DIRECTIONS]),
        clean_energy=energy_along(features - features.mean(axis=0), along[:DIRECTIONS]),
        success=np.array(success),
        accuracy=np.array(accuracy),
        scatter=np.stack([projected(both, strong, inside=inside) for inside in (True, False)]),
        is_triggered=np.arange(len(both)) >= len(few),
    )


def _right(model: nn.Module, examples: Examples, where: torch.device | None) -> float:
    return float((predict(model, examples, where).argmax(1) == examples.labels[examples.rows]).mean())
