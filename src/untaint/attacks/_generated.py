"""Triggers that a network draws for each picture, computed at the size that it was trained for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint.attacks._levels import sized
from untaint.attacks.base import shift

__all__ = ["added"]

BLOCK = 32  # pictures that pass at once, always so many: with other numbers the last bits could differ


def added(
    images: NDArray[np.uint8], residual: Callable[[Tensor], Tensor], shape: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Return pictures of any size with what a network adds to each, rounded and cut to 0..255.

    ``residual``: is given float32 pictures in [0, 1] of ``shape`` (channel, height, width) in batches and returns what to add, in the same unit. Pictures of another size or of
    one channel are brought to that shape for it, and what it returns back to theirs.
    """
    changed = np.empty_like(images)
    with torch.inference_mode():
        for start in range(0, len(images), BLOCK):
            some = images[start : start + BLOCK]
            seen = torch.from_numpy(some.astype(np.float32, order="C")) / 255
            if seen.shape[1] != shape[0]:
                seen = seen.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
            if tuple(seen.shape[2:]) != shape[1:]:
                seen = nn.functional.interpolate(seen, size=shape[1:], mode="bilinear", antialias=True)
            padded = torch.cat([seen, seen.new_zeros(BLOCK - len(seen), *seen.shape[1:])]).contiguous()
            levels = 255 * residual(padded)[: len(seen)]
            changed[start : start + len(some)] = shift(some, sized(levels.numpy(), images.shape[1:]))
    return changed
