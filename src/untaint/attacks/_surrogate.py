"""What optimised attacks share: a model of the attacker's own, and triggers that are computed once and kept as files."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng, run, spec
from untaint.attacks.base import Attack
from untaint.examples import Examples
from untaint.progress import Progress
from untaint.recipe import VERSION, Recipe
from untaint.sources.cache import cache_folder
from untaint.training.loop import fit, predict

__all__ = ["array_once", "place", "surrogate", "tensors_once"]

ASKED = 2000  # pictures on which a surrogate is tried
ABOVE = 1.5  # times as many as by naming the largest class should be right


def surrogate(examples: Examples, recipe: Recipe, name: str, seed: int, progress: Progress) -> nn.Module:
    """Return a model of the attacker's own, trained on these pictures, in eval mode; says so where it learned hardly anything, since such a trigger is weak.

    ``name``: of the attack.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = rng.derive(seed, f"attacks/{name}")
        model = fit(examples, recipe, Path(folder), seed=own, progress=progress, what="train a surrogate")
    some = examples.take(rng.choose(seed, "attacks/surrogate", examples.rows, ASKED))
    labels = some.labels[some.rows]
    right, usual = (
        float((predict(model, some).argmax(1) == labels).mean()),
        float(np.bincount(labels).max() / len(some)),
    )
    if right < min(ABOVE * usual, (1 + usual) / 2):
        progress.say(
            f"{name}: the surrogate knows {right:.0%} of its own training pictures, and {usual:.0%} are of the largest class, so that the trigger will be weak. Raise epochs."
        )
    return model.eval()


def place(name: str, attack: Attack, examples: Examples, recipe: Recipe, seed: int, suffix: str) -> Path:
    """Return the file in the cache folder that holds what was computed: another for other pictures, settings, recipes or seeds."""
    text = spec.text(name, attack)
    made_from = [examples.fingerprint, text, sorted(recipe.facts().items()), seed, attack.version, VERSION]
    code = hashlib.sha256(repr(made_from).encode()).hexdigest()[:24]
    return cache_folder() / name / f"{code}{suffix}"


def array_once(path: Path, make: Callable[[], NDArray[np.generic]]) -> NDArray[np.generic]:
    """Return an array that is computed the first time and then read from its ``.npy`` file."""
    if not path.exists():
        run.save_array(path, make())
    return np.asarray(run.load_array(path, mapped=False))


def tensors_once(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors, such as a generator's weights, that are computed the first time and then read from their ``.safetensors`` file."""
    from safetensors.torch import load, save

    if not path.exists():
        made = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
        with run.written(path) as file:
            file.write(save(made))
    return load(path.read_bytes())
