"""A network with directions taken out of what comes out of one of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint.errors import InputError
from untaint.models.inserting import BEFORE_POOL, layer_named, tensor_of

__all__ = ["removing"]


@contextmanager
def removing(model: nn.Module, directions: NDArray[np.float64], at: str = BEFORE_POOL) -> Iterator[nn.Module]:
    """Give the model with some directions taken out of what comes out of a layer (of each picture, flattened), for the time of the context.

    The control "remove the top k": a trigger that lies in these directions alone fails, and so does all else that needs them.
    """
    along: Tensor | None = None

    def project(_: nn.Module, __: Any, out: Any) -> Tensor:
        nonlocal along
        features = tensor_of(out, at)
        flat = features.flatten(1)
        if along is None or along.device != flat.device:
            along = torch.from_numpy(np.asarray(directions, dtype=np.float32)).to(flat.device)
        if along.shape[1] != flat.shape[1]:
            raise InputError(
                f"directions have {along.shape[1]:,} entries, features of {at} {flat.shape[1]:,}. Give those of this layer."
            )
        return (flat - (flat @ along.T.to(flat.dtype)) @ along.to(flat.dtype)).reshape(features.shape)

    handle = layer_named(model, at)[1].register_forward_hook(project)
    try:
        yield model
    finally:
        handle.remove()
