"""Defences that train on everything, with a layer in the network."""

from __future__ import annotations

from dataclasses import replace

from untaint import spec
from untaint.defenses.base import Outcome, Task
from untaint.models.build import Inserted

__all__ = ["trained_with"]


def trained_with(name: str, layer: Inserted, task: Task) -> Outcome:
    """Return a model trained on everything with this layer in it, of the name that networks know it by; nothing is scored."""
    recipe, own = task.preset.retrain, task.model
    if own is not None:
        task = replace(task, model=lambda: layer.put_into(own()))
    else:
        recipe = replace(recipe, model=f"{recipe.model}+{spec.text(name, layer)}")
    return Outcome(scores=None, verdict=None, model=task.fit("model", recipe, what=f"train with {name}"))
