"""What comes out of any layer of a network, and the same with directions taken out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.models.inserting import BEFORE_POOL, layer_named
from untaint.progress import Progress, Silent
from untaint.training.device import device
from untaint.training.loop import blocks
from untaint.training.pixels import PixelStore

__all__ = ["layer_features", "removing"]


def layer_features(
    model: nn.Module,
    examples: Examples,
    at: str = BEFORE_POOL,
    *,
    where: torch.device | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return what comes out of a layer, for the members of ``examples`` in their order: float32 (members, width), flattened.

    ``at``: as for ``insert_eigenguard``. The model is left in eval mode.
    """
    place = where or device()
    store = PixelStore(examples, place)
    model = model.to(place).eval()
    latest: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Any) -> None:
        latest[:] = [_tensor(out, at).detach()]

    handle = layer_named(model, at)[1].register_forward_hook(keep)
    found: list[NDArray[np.float32]] = []
    try:
        with (progress or Silent()).step(f"look at {at}", len(examples)) as step, torch.inference_mode():
            for rows in blocks(examples.rows):
                model(store.gather(rows)[0])
                found.append(latest[0].float().flatten(1).cpu().numpy())
                step.advance(len(rows))
    finally:
        handle.remove()
    if not found:
        raise InputError("there is no picture to look at. Give at least one.")
    return np.concatenate(found)


@contextmanager
def removing(model: nn.Module, directions: NDArray[np.float64], at: str = BEFORE_POOL) -> Iterator[nn.Module]:
    """Give the model with some directions taken out of what comes out of a layer (of each picture, flattened), for the time of the context.

    The control "remove the top k": a trigger that lies in these directions alone fails, and so does all else that needs them.
    """
    along: Tensor | None = None

    def project(_: nn.Module, __: Any, out: Any) -> Tensor:
        nonlocal along
        features = _tensor(out, at)
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


def _tensor(out: Any, at: str) -> Tensor:
    if not isinstance(out, Tensor):
        raise SpecError(f"the layer {at} gives a {type(out).__name__}, not one tensor. Name another layer.")
    return out
