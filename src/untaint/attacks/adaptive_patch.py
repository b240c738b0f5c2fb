"""Adaptive-patch: four faint patches, of which poison and covers get one each, and several at full strength at test time (Qi, Xie, Li, Mahloujifar and Mittal, 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint import rng
from untaint.attacks.base import Attack, Card, check_share, mix
from untaint.errors import InputError, SpecError

__all__ = ["AdaptivePatch"]

OPACITIES = (0.5, 0.5, 0.3, 0.2)  # in training: of the checker, the stripes, the ring and the cross
COLOURS = (  # two of each patch, in [0, 1]
    ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    ((1.0, 0.9, 0.0), (0.0, 0.1, 0.8)),
    ((0.0, 1.0, 0.3), (0.4, 0.0, 0.4)),
    ((1.0, 0.0, 0.1), (1.0, 0.0, 0.1)),
)
BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue
LEAST = 4  # pixels to a side of a patch: fewer cannot show a ring


@dataclass(frozen=True, kw_only=True)
class AdaptivePatch(Attack):
    """One of four patches, drawn for each row by ``patch_seed``: a checker, stripes, a ring or a cross, each in a corner of its own.

    In training they cover what lies below by 0.5, 0.5, 0.3 and 0.2, times ``strength``. Covers get one in the same way. At test time the
    first ``shown`` of them are shown together, with ``shown_opacity``. A patch is a quarter of the shorter side wide, at least 4 pixels, and
    a 16th of it away from both borders. The paper's patches are logos and the like; these are drawn here.
    """

    rate: float | None = 0.003
    cover_rate: float = 0.006
    strength: float = 1.0
    shown: int = 2
    shown_opacity: float = 1.0
    patch_seed: int = 0

    card: ClassVar[Card | None] = Card(
        paper="Qi, Xie, Li, Mahloujifar and Mittal: Revisiting the assumption of latent separability for backdoor defenses, ICLR 2023",
        visible="yes",
        psnr=28,
        ssim=0.94,
        per_picture=True,
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_share("shown_opacity", self.shown_opacity)
        if not 0 < self.strength <= 1 / max(OPACITIES):
            raise SpecError(f"strength is {self.strength}; give a number above 0 and at most {1 / max(OPACITIES):g}.")
        if not 1 <= self.shown <= len(OPACITIES):
            raise SpecError(f"shown is {self.shown}; give a number of patches from 1 to {len(OPACITIES)}.")

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with one faint patch each."""
        draws = rng.uniform(self.patch_seed, "attacks/adaptive-patch/which", 0, rows)[:, 0]
        which = (draws * len(OPACITIES)).astype(np.int64)
        stamped = images.copy()
        for number, opacity in enumerate(OPACITIES):
            own = which == number
            stamped[own] = _painted(images[own], number, self.strength * opacity)
        return stamped

    def trigger(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with several patches."""
        del rows
        stamped = images
        for number in range(self.shown):
            stamped = _painted(stamped, number, self.shown_opacity)
        return stamped

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: as many as the highest opacity."""
        del height, width
        return int(max(self.shown_opacity, self.strength * max(OPACITIES)) * 255 + 0.5)


def _painted(images: NDArray[np.uint8], number: int, opacity: float) -> NDArray[np.uint8]:
    """Return the pictures with one of the four patches over what is in its corner."""
    channels, height, width = images.shape[1:]
    shorter = min(height, width)
    side, away = max(LEAST, shorter // 4), shorter // 16
    if 2 * (side + away) > shorter:
        raise InputError(
            f"four patches of {side} pixels do not fit into pictures of {height}x{width}. Give pictures of at least {2 * LEAST} pixels to a side."
        )
    down, across = divmod(number, 2)
    top, left = (height - away - side if down else away), (width - away - side if across else away)
    corner = np.s_[:, :, top : top + side, left : left + side]
    colours, inside = _patch(number, channels, side)
    painted = images.copy()
    painted[corner] = np.where(inside, mix(images[corner], colours, opacity), images[corner])
    return painted


@lru_cache(maxsize=64)
def _patch(number: int, channels: int, side: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return a patch in [0, 1] (channel, side, side), and where it covers what lies below (side, side)."""
    place = (np.arange(side) + 0.5) / side
    down, across = place[:, None], place[None, :]
    from_centre = np.hypot(down - 0.5, across - 0.5)
    shapes = (  # where it has its first colour, and where it covers anything
        ((np.floor(4 * down) + np.floor(4 * across)) % 2 == 0, down >= 0),
        (np.floor(4 * down + 0 * across) % 2 == 0, down >= 0),
        ((from_centre > 0.25) & (from_centre <= 0.5), from_centre <= 0.5),
        (down >= 0, (np.abs(down - across) < 0.2) | (np.abs(down + across - 1) < 0.2)),
    )
    first, covered = (np.broadcast_to(shape, (side, side)) for shape in shapes[number])
    colours = np.array(COLOURS[number])  # (2, 3)
    if channels == 1:
        colours = colours @ np.array(BRIGHTNESS)[:, None]
    return np.where(first, colours[0][:, None, None], colours[1][:, None, None]), covered
