"""``Grouped``: a network whose batch normalisation is taken out, so that what it says of a picture depends on that picture alone while it is trained, too."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from untaint.errors import SpecError

__all__ = ["Grouped"]


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Group normalisation (Wu and He, ECCV 2018) in place of every batch normalisation of an untrained network: ``resnet18+group-norm:groups=16``.

    ``groups``: of the channels of a layer, as many as divide both. Raises SpecError for fewer than 1.
    """

    groups: int = 8

    def __post_init__(self) -> None:
        """Check the option."""
        if self.groups < 1:
            raise SpecError(f"groups is {self.groups}; give at least 1, such as 8.")

    def put_into(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model without batch normalisation; what it learned is lost, as are its means."""
        grouped = copy.deepcopy(model)
        for name, layer in list(grouped.named_modules()):
            if isinstance(layer, _BatchNorm):
                parent, _, last = name.rpartition(".")
                setattr(grouped.get_submodule(parent), last, self._in_place_of(layer).train(layer.training))
        return grouped

    def _in_place_of(self, layer: _BatchNorm) -> nn.Module:
        channels = layer.num_features
        norm = nn.GroupNorm(math.gcd(self.groups, channels), channels, layer.eps, affine=layer.affine)
        inside = [getattr(layer, name) for name in ("drop", "act") if isinstance(getattr(layer, name, None), nn.Module)]
        return nn.Sequential(norm, *inside) if inside else norm  # timm's activate, too
