"""Attackers who choose whom to poison: a model of their own says which of many candidates will look least like poison."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from untaint import rng, run, spec
from untaint.attacks.base import Attack
from untaint.errors import InputError
from untaint.examples import Examples
from untaint.progress import Progress
from untaint.recipe import VERSION as RECIPES
from untaint.recipe import preset
from untaint.sources.cache import cache_folder
from untaint.training.loop import Watch, fit
from untaint.trajectories import Trajectories

__all__ = ["preferred"]

VERSION = 1  # raised by hand whenever the same settings choose others than before
BLOCK = 500  # pictures stamped at a time


def preferred(
    attack: Attack, examples: Examples, *, name: str, seed: int, spare: NDArray[np.integer], progress: Progress
) -> NDArray[np.int64] | None:
    """Return candidates, the one that looks least like poison first; None where the attack draws by lot.

    A model is trained for as long as a scan watches, and asked after every epoch how surely it sees the target in each candidate.
    ``clean-like``: it has trained on all candidates, and those come first that are learned most like the clean pictures of the
    target, epoch by epoch in units of the spread. ``near-target``: it has trained on none, and those that it takes for the target all
    the same come first. ``examples``: clean. ``spare``: rows that are left alone. What was computed is kept in the cache folder.
    """
    if attack.selection == "lot":
        return None
    recipe = preset("fast").watch
    text, free = spec.text(name, attack), np.setdiff1d(examples.rows, spare)
    facts = [
        examples.fingerprint,
        hashlib.sha256(free.tobytes()).hexdigest(),
        text,
        sorted(recipe.facts().items()),
        seed,
    ]
    code = hashlib.sha256(repr([*facts, attack.version, RECIPES, VERSION]).encode()).hexdigest()[:24]
    path = cache_folder() / "selection" / f"{code}.npy"
    if not path.exists():
        ready = attack.ready(examples, seed=seed, progress=progress)
        rows = attack.candidates(examples, free, seed=seed)
        target = attack.target_in(examples.class_names)
        dirty = _poisoned(examples, ready, rows)
        clean = np.setdiff1d(examples.rows[examples.labels[examples.rows] == target], rows)
        if attack.selection == "clean-like" and not len(clean):
            raise InputError(
                f"selection=clean-like of '{name}' compares with clean pictures of '{examples.class_names[target]}', but all {len(rows)} "
                "would be poisoned. Poison fewer, or give selection=lot."
            )
        taught = dirty if attack.selection == "clean-like" else dirty.take(np.setdiff1d(dirty.rows, rows))
        own, watch = rng.derive(seed, f"attacks/selection/{name}"), Watch(rows=np.union1d(rows, clean))
        with tempfile.TemporaryDirectory() as folder:
            fit(taught, recipe, Path(folder), seed=own, watch=watch, progress=progress, what=f"choose for {text}")
            margins = Trajectories(Path(folder) / "trajectories").read("margin")
        by = _unlike(margins[rows], margins[clean]) if attack.selection == "clean-like" else -margins[rows].mean(1)
        run.save_array(path, rows[np.argsort(by, kind="stable")])
    return np.asarray(run.load_array(path, mapped=False), dtype=np.int64)


def _poisoned(examples: Examples, attack: Attack, rows: NDArray[np.int64]) -> Examples:
    images, labels = np.array(examples.images), examples.labels.copy()
    for some in _blocks(rows):
        images[some] = attack.stamp(images[some], some)
    labels[rows] = attack.relabel(labels[rows], rows, examples.class_names)
    return replace(examples, images=images, labels=labels)


def _blocks(rows: NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]


def _unlike(candidates: NDArray[np.float32], clean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how far each line of margins is from the mean of clean ones, in units of their spread at each epoch."""
    spread = np.maximum(clean.std(0), np.float32(1e-6))
    return np.asarray(np.square((candidates - clean.mean(0)) / spread).sum(1))
