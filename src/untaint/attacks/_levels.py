"""Noise that was computed for pictures of one size, for those of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["sized"]


def sized(levels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return noise (pictures, channel, height, width) for pictures of ``shape`` (channel, height, width): enlarged or shrunk, and grey where these are."""
    found = np.asarray(levels, dtype=np.float64)
    if shape[0] != found.shape[1]:
        found = found.mean(axis=1, keepdims=True)
    if tuple(shape[1:]) != found.shape[2:]:
        found = nn.functional.interpolate(torch.from_numpy(found), size=tuple(shape[1:]), mode="bilinear").numpy()
    return found
