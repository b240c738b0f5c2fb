"""``TriggerGate``: a layer that takes out of features what only a few pictures of one class have."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from untaint.errors import SpecError
from untaint.models.inserting import BEFORE_POOL, Behind, layer_named, put_behind

__all__ = ["Gate", "TriggerGate"]

NAMES = ("reading", "level", "rest", "cut", "change")


class TriggerGate(nn.Module):
    """Features without some components, each taken out only of pictures that have it: of all others nothing is changed.

    A component is read off the flattened features of a picture, ``score = reading . features - level``. Where the score is above ``cut``, what it is
    above ``rest`` is taken back along ``change``. ``reading``, ``change``: (components, width); ``level``, ``rest``, ``cut``: (components,). One component after the
    other. A fixed map of each picture by itself, in training and eval mode alike; ``untaint.repair`` finds the components. Empty, it changes nothing.
    """

    reading: Tensor
    level: Tensor
    rest: Tensor
    cut: Tensor
    change: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            self.register_buffer(name, torch.zeros((0, 0) if name in ("reading", "change") else 0))

    def __len__(self) -> int:
        """Return how many components are taken out."""
        return len(self.level)

    def add(self, reading: Tensor, level: float, rest: float, cut: float, change: Tensor) -> None:
        """Take out one component more, after those that are."""
        first = not len(self)
        for name, value in zip(NAMES, (reading, level, rest, cut, change), strict=True):
            own = getattr(self, name)
            new = torch.as_tensor(value, dtype=torch.float32, device=own.device)[None]
            setattr(self, name, new.clone() if first else torch.cat([own, new]))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape and type."""
        if not len(self):
            return features
        with torch.autocast(features.device.type, enabled=False):
            flat = features.flatten(1).float()
            if flat.shape[1] != self.reading.shape[1]:
                raise SpecError(
                    f"TriggerGate knows components of {self.reading.shape[1]:,} features, but was given {flat.shape[1]:,}. Give pictures of the size that it was made with."
                )
            for reading, level, rest, cut, change in zip(*(getattr(self, name) for name in NAMES), strict=True):
                score = flat @ reading - level
                flat = flat - torch.where(score > cut, score - rest, 0)[:, None] * change
        return flat.reshape(features.shape).to(features.dtype)

    def extra_repr(self) -> str:
        """Return how many components it takes out."""
        return f"components={len(self)}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take on as many components as what is loaded has."""
        if not len(self):
            for name in NAMES:
                if (given := state_dict.get(prefix + name)) is not None:
                    setattr(self, name, getattr(self, name).new_zeros(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A TriggerGate behind a layer, which ``repair`` fills: ``resnet18+gate:at=layer3``."""

    at: str = BEFORE_POOL

    def put_into(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model with an empty TriggerGate behind a layer, or the one that is there already; raises SpecError for a layer that there is not."""
        gated = copy.deepcopy(model)
        inside = layer_named(gated, self.at)[1]
        if not (isinstance(inside, Behind) and isinstance(inside.added, TriggerGate)):
            put_behind(gated, self.at, TriggerGate())
        return gated
