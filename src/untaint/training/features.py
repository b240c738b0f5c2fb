"""What a trained model sees in pictures: its penultimate features."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint.errors import InputError
from untaint.examples import Examples
from untaint.models.build import features_of
from untaint.progress import Progress, Silent
from untaint.training.device import device
from untaint.training.loop import blocks
from untaint.training.pixels import PixelStore

__all__ = ["features"]


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
