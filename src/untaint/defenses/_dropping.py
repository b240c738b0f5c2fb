"""Dropout put into a network that has none where it is wanted, without drawing for each picture anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from untaint.defenses._perturbed import scaling_layers
from untaint.models.build import head_of
from untaint.training.device import keyed

__all__ = ["PLACES", "Dropout", "dropped_layers", "dropping"]

PLACES = 2**16  # in a table of random numbers at which those of a row may begin


def dropped_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers behind which there shall be dropout: the blocks that follow one another, or else those of normalisation."""
    head, found = head_of(model), []

    def descend(parent: nn.Module) -> None:
        for child in parent.children():
            block = isinstance(parent, nn.ModuleList) or type(parent) is nn.Sequential
            whole = any(True for _ in child.children()) and any(True for _ in child.parameters())
            if (
                block
                and whole
                and type(child) is not nn.Sequential
                and all(part is not head for part in child.modules())
            ):
                found.append(child)
            else:
                descend(child)

    descend(model)
    return found or scaling_layers(model)


class Dropout:
    """Drops what layers give at a rate; ``begin``: for each row of the batch, where its random numbers begin in each layer's table of them."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rate, self.begin = seed, 0.0, torch.empty(0)
        self.tables: dict[tuple[int, int], Tensor] = {}

    def drop(self, layer: int, out: Tensor) -> Tensor:
        """Return what a layer gives, (batch, ...), with a share of it set to zero and the rest raised, so that its mean stays."""
        width = out[0].numel()
        if (layer, width) not in self.tables:
            with keyed(torch.device("cpu"), self.seed, "defenses/psbd", layer):
                self.tables[layer, width] = torch.rand(width + PLACES).to(out.device)
        kept = (self.tables[layer, width] >= self.rate).unfold(0, width, 1)[self.begin]
        shape = [out.shape[0], *out.shape[2:], out.shape[1]]  # as channels lie last in memory
        return out * kept.view(shape).movedim(-1, 1) / (1 - self.rate)


@contextmanager
def dropping(model: nn.Module, seed: int) -> Iterator[Dropout]:
    """Give the dropout that is put into a model for as long as this lasts; at first at the rate 0."""
    dropout = Dropout(seed)

    def hook(layer: int) -> Any:
        def drop(_: nn.Module, __: Any, out: Any) -> Any:
            return dropout.drop(layer, out) if dropout.rate and isinstance(out, Tensor) else None

        return drop

    handles = [layer.register_forward_hook(hook(place)) for place, layer in enumerate(dropped_layers(model))]
    try:
        yield dropout
    finally:
        for handle in handles:
            handle.remove()
