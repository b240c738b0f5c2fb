"""Clean accuracy and attack success rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from untaint.errors import InputError
from untaint.examples import Examples
from untaint.training.loop import predict

__all__ = ["accuracy", "evaluate", "relabelled"]


def accuracy(model: nn.Module, examples: Examples, where: torch.device | None = None) -> float:
    """Return the share of pictures that a model labels as they are labelled.

    On triggered pictures labelled with the attack's target this is the attack success rate.
    """
    return float(evaluate(model, examples, where)["accuracy"])


def evaluate(model: nn.Module, examples: Examples, where: torch.device | None = None) -> dict[str, Any]:
    """Return accuracy over all and per class (None for a class with no picture), and the count."""
    if not len(examples):
        raise InputError("there is no picture to evaluate on. Give at least one.")
    right = predict(model, examples, where).argmax(1) == examples.labels[examples.rows]
    labels = examples.labels[examples.rows]
    per_class = {
        name: float(right[labels == number].mean()) if (labels == number).any() else None
        for number, name in enumerate(examples.class_names)
    }
    return {"accuracy": float(right.mean()), "pictures": len(examples), "per_class": per_class}


def relabelled(examples: Examples, class_names: Sequence[str]) -> Examples:
    """Return the examples with labels numbered as a model numbers its classes."""
    if tuple(class_names) == examples.class_names:
        return examples
    number = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in examples.class_names if name not in number]
    if unknown:
        raise InputError(
            f"the data has a class '{unknown[0]}' that the model does not know ({', '.join(list(class_names)[:5])}, ...). "
            "Give data with the model's classes."
        )
    to = np.array([number[name] for name in examples.class_names], dtype=np.int64)
    return replace(examples, labels=to[examples.labels], class_names=tuple(class_names))
