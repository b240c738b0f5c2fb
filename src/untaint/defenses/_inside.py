"""What goes on inside a network: what comes into its layers, and which layers that is worth asking of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from untaint.errors import InputError
from untaint.models.build import head_of

__all__ = ["inner_layers", "inputs_of", "places", "spread"]


@contextmanager
def inputs_of(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Give a dictionary that holds what came into each layer in the latest forward pass, in the order in which they were called."""
    latest: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            latest[layer] = inputs[0]

    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()


def inner_layers(model: nn.Module, images: Tensor) -> list[nn.Module]:
    """Return the layers with weights into which something else comes than the picture, in the order in which they are called, each input once and the head's left out.

    ``images``: a batch to call them with, of one picture at least. If there is none but the head and the first, that one is returned. Raises InputError for a model that calls no layer with weights.
    """
    head = head_of(model)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | _ConvNd)]
    with inputs_of(layers) as latest, torch.no_grad():
        model(images)
    if not latest:
        raise InputError("the model calls no linear and no convolutional layer, so that nobody can look inside it.")
    first, *others = latest
    seen = {id(latest[first])}
    inner = []
    for layer in others:
        if layer is not head and id(latest[layer]) not in seen:
            inner.append(layer)
        seen.add(id(latest[layer]))
    return inner or [first]


def spread(layers: Sequence[nn.Module], most: int) -> list[nn.Module]:
    """Return at most so many of the layers, evenly spread from the first to the last."""
    chosen = np.unique(np.linspace(0, len(layers) - 1, min(most, len(layers))).round().astype(int))
    return [layers[place] for place in chosen]


def places(features: Tensor) -> Tensor:
    """Return features with the places where they were seen last: (batch, channels, places) of (batch, channels, height, width), (batch, tokens, channels) or (batch, channels)."""
    if features.dim() == 3:  # a transformer's
        return features.transpose(1, 2)
    return features.flatten(2) if features.dim() > 3 else features[:, :, None]
