"""``Whitening``: a layer that gives features without scale, or without correlations: the controls for EigenGuard.

EigenGuard makes the strongest directions of features equally strong. So do layers that nobody made against triggers: whatever these do as well
is no merit of its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from untaint.errors import SpecError
from untaint.models._spectrum import spectrum
from untaint.models.inserting import BEFORE_POOL, put_behind

__all__ = ["Whiten", "Whitening", "inverse_root"]

Kind = Literal["scale", "zca", "iterative"]
EPSILON = 1e-3  # added to every variance
STEPS = 5  # of Newton's iteration


class Whitening(nn.Module):
    """Features whose channels have mean 0 and, over all places of all pictures of a batch, variance 1; and no correlations, but with ``kind="scale"``.

    ``kind``: ``"scale"`` is batch normalisation without what it learns; ``"zca"`` takes correlations out, too (decorrelated batch normalisation: Huang, Yang, Lang and
    Deng, 2018), ``"iterative"`` does so in part, by five steps of Newton's iteration (IterNorm: Huang, Zhou, Zhu, Liu and Shao, 2019). Takes features as EigenGuard
    does, with (batch, channels) first. In eval mode it is a fixed map, made of means over the batches trained on (``momentum``: the weight of the newest).
    """

    mean: Tensor
    map: Tensor
    batches: Tensor

    def __init__(self, kind: Kind = "zca", momentum: float = 0.1) -> None:
        super().__init__()
        if kind not in ("scale", "zca", "iterative"):
            raise SpecError(f"kind is {kind!r}. Give 'scale', 'zca' or 'iterative'.")
        if not 0 < momentum <= 1:
            raise SpecError(f"momentum is {momentum}. Give more than 0, and 1 at most.")
        self.kind, self.momentum = kind, momentum
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("map", torch.zeros(0, 0))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape and type."""
        with torch.autocast(features.device.type, enabled=False):
            last = (features.movedim(1, -1) if features.ndim == 4 else features).float()
            table = last.flatten(0, -2)
            if self.training:
                mean = table.mean(0)
                centred = table - mean
                size = torch.eye(table.shape[1], device=table.device)
                along = self._map(centred.T @ centred / len(table) + EPSILON * size)
                self._remember(mean.detach(), along.detach())
            else:
                if not len(self.mean):
                    raise SpecError("Whitening has seen no batch. Train first, or load trained weights.")
                centred, along = table - self.mean, self.map
            white = (centred @ along).reshape(last.shape)
            if features.ndim == 4:
                white = white.movedim(-1, 1)
        return white.to(features.dtype)

    def _map(self, covariance: Tensor) -> Tensor:
        """Return what centred features are multiplied by: (channels, channels)."""
        if self.kind == "scale":
            return torch.diag(covariance.diagonal().rsqrt())
        if self.kind == "zca":
            return inverse_root(covariance)
        trace = covariance.diagonal().sum()
        found = torch.eye(len(covariance), device=covariance.device)
        for _ in range(STEPS):
            found = 1.5 * found - 0.5 * found @ found @ found @ covariance / trace
        return found / trace.sqrt()

    @torch.no_grad()
    def _remember(self, mean: Tensor, along: Tensor) -> None:
        if not len(self.mean):
            self.mean, self.map = torch.zeros_like(mean), torch.zeros_like(along)
        self.batches += 1
        weight = torch.clamp(1 / self.batches.float(), min=self.momentum)  # the first batches count alike
        self.mean = self.mean + weight * (mean - self.mean)
        self.map = self.map + weight * (along - self.map)

    def extra_repr(self) -> str:
        """Return the options, as they were given."""
        return f"kind={self.kind!r}, momentum={self.momentum:g}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take on the number of channels of what is loaded, if none is known yet."""
        given = state_dict.get(prefix + "map")
        if given is not None and not len(self.mean):
            self.mean, self.map = self.mean.new_zeros(len(given)), self.map.new_zeros(given.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _InverseRoot(torch.autograd.Function):
    """A symmetric positive matrix to the power -1/2, with its derivative (Daleckii and Krein, 1965): nothing is divided by differences of eigenvalues."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        values, vectors = spectrum(matrix)
        values = values.clamp(min=torch.finfo(values.dtype).tiny)
        ctx.save_for_backward(values, vectors)
        return (vectors * values.rsqrt()) @ vectors.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        one, two = values.sqrt()[:, None], values.sqrt()[None, :]
        inner = vectors.T @ ((grads[0] + grads[0].T) / 2) @ vectors
        slope: Tensor = vectors @ (-inner / (one * two * (one + two))) @ vectors.T
        return slope


def inverse_root(matrix: Tensor) -> Tensor:
    """Return a symmetric positive matrix to the power -1/2; gradients are finite where eigenvalues are equal, too."""
    root: Tensor = _InverseRoot.apply(matrix)
    return root


@dataclass(frozen=True, kw_only=True)
class Whiten:
    """A whitening layer behind another, the control for EigenGuard: ``resnet18+whitening:kind=zca,at=layer3``."""

    at: str = BEFORE_POOL
    kind: Kind = "zca"

    def put_into(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model with Whitening in it; raises SpecError for a layer that there is not."""
        whitened = copy.deepcopy(model)
        put_behind(whitened, self.at, Whitening(self.kind))
        return whitened
