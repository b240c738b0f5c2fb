"""Probes: pictures that somebody has looked at, and candidates for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.errors import ProbeError
from untaint.examples import Examples
from untaint.progress import Progress
from untaint.sources import load

__all__ = ["append", "suggest_probes", "with_probes"]

FEWEST_PROBES = 10


def with_probes(
    examples: Examples, probes: Any, told: Progress
) -> tuple[Examples, NDArray[np.int64], NDArray[np.int64]]:
    """Return the examples, the probes' rows, and which of these were appended from a separate folder.

    ``probes``: None for none at all.
    """
    nothing = np.empty(0, dtype=np.int64)
    if probes is None:
        told.say(
            "No probes: pictures drawn by lot stand in for them, and may be poisoned themselves. Nothing that is known to be clean speaks for or "
            "against what is set aside. `untaint probes DATA --suggest 250` draws candidates to look at."
        )
        return examples, nothing, nothing
    folder = isinstance(probes, (str, Path)) and Path(probes).is_dir()
    if folder or isinstance(probes, Examples):
        trusted = load(probes, size=examples.images.shape[2], progress=told) if folder else probes
        examples, rows = append(examples, trusted)
        outside = rows
    else:
        rows, outside = np.intersect1d(examples.find(probes), examples.rows), nothing
    if len(rows) < FEWEST_PROBES:
        raise ProbeError(
            f"there are {len(rows)} probes; give at least {FEWEST_PROBES}, better 250. `untaint probes DATA --suggest 250` draws candidates."
        )
    classes = np.unique(examples.labels[rows])
    if len(classes) == 1:
        only = examples.class_names[int(classes[0])]
        raise ProbeError(
            f"all {len(rows)} probes are of the class '{only}', but the data has {len(examples.class_names)}. Give probes drawn from all of it."
        )
    if len(rows) < 100:
        told.say(f"{len(rows)} probes are few: 250 make the comparison steadier.")
    return examples, rows, outside


def suggest_probes(examples: Examples, count: int, *, balanced: bool = False, seed: int = 0) -> NDArray[np.int64]:
    """Return candidates for probes: drawn uniformly, or the same number of each class; ascending."""
    if not 1 <= count <= len(examples):
        raise ProbeError(
            f"{count} probes were asked for, of {len(examples)} pictures. Give a number between 1 and {len(examples)}."
        )
    if not balanced:
        return rng.choose(seed, "probes", examples.rows, count)
    labels = examples.labels[examples.rows]
    shuffled = rng.order(seed, "probes", 0, examples.rows)
    turn = np.zeros(examples.total, dtype=np.int64)  # the how manieth of its class each row is
    for label in np.unique(labels):
        members = shuffled[examples.labels[shuffled] == label]
        turn[members] = np.arange(len(members))
    return np.sort(shuffled[np.argsort(turn[shuffled], kind="stable")][:count])


def append(examples: Examples, trusted: Examples) -> tuple[Examples, NDArray[np.int64]]:
    """Return the examples with trusted pictures as further rows, and these rows."""
    number = {name: label for label, name in enumerate(examples.class_names)}
    unknown = [name for name in trusted.class_names if name not in number]
    if unknown:
        raise ProbeError(
            f"the trusted pictures have a class '{unknown[0]}', which the data has not ({', '.join(examples.class_names[:5])}, ...). Name the folders as the data's classes."
        )
    if trusted.images.shape[1:] != examples.images.shape[1:]:
        raise ProbeError(
            f"the trusted pictures are {trusted.images.shape[1:]}, the data's {examples.images.shape[1:]}. Load both at one size."
        )
    labels = np.array([number[trusted.class_names[label]] for label in trusted.labels[trusted.rows]], dtype=np.int64)
    rows = np.arange(examples.total, examples.total + len(trusted))
    return replace(
        examples,
        images=np.concatenate([examples.images, trusted.images[trusted.rows]]),
        labels=np.concatenate([examples.labels, labels]),
        keys=[*examples.keys, *(f"probes/{trusted.keys[row]}" for row in trusted.rows)],
        rows=np.concatenate([examples.rows, rows]),
    ), rows
