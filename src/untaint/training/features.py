"""What a trained model sees in pictures: its penultimate features, and what comes out of any layer of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint.errors import InputError
from untaint.examples import Examples
from untaint.models.build import features_of
from untaint.models.inserting import BEFORE_POOL, layer_named, tensor_of
from untaint.progress import Progress, Silent
from untaint.training.device import device
from untaint.training.loop import blocks
from untaint.training.pixels import PixelStore

__all__ = ["features", "layer_features"]


def features(
    model: nn.Module, examples: Examples, where: torch.device | None = None, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Return the penultimate features of every row: float32 (all rows, width); zero for rows that are no members.

    Raises InputError for a model without a linear head.
    """
    place = where or device()
    store = PixelStore(examples, place)
    model = model.to(place).eval()
    found: NDArray[np.float32] | None = None
    with (progress or Silent()).step("look again", len(examples)) as step, torch.inference_mode():
        for rows in blocks(examples.rows):
            with features_of(model) as latest:
                model(store.gather(rows)[0])
            if not latest:
                raise InputError("the model has no linear layer, so that it has no penultimate features. Give another.")
            values = latest[0].float().flatten(1).cpu().numpy()
            if found is None:
                found = np.zeros((examples.total, values.shape[1]), dtype=np.float32)
            found[rows] = values
            step.advance(len(rows))
    return np.zeros((examples.total, 0), dtype=np.float32) if found is None else found


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
        latest[:] = [tensor_of(out, at).detach()]

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
