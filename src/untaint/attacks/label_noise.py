"""Label noise: pictures as they are, with a wrong label. No attack but a control: a detector should not cry poison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint.attacks._labels import Labels
from untaint.attacks.base import Attack, Card

__all__ = ["LabelNoise"]


@dataclass(frozen=True, kw_only=True)
class LabelNoise(Attack):
    """Another label for pictures of any class, drawn for each; with ``labels=all-to-one`` that of the target. Pixels stay.

    Careless labelling, not an attack: there is no trigger, so that nothing can succeed.
    """

    labels: Labels = "random"

    card: ClassVar[Card | None] = Card(
        paper="Frénay and Verleysen, Classification in the presence of label noise: a survey, IEEE TNNLS 2014",
        visible="no",
        psnr=100,
        ssim=1.0,
    )
    control: ClassVar[bool] = True
    changes_pixels: ClassVar[bool] = False

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures as they are."""
        del rows
        return images.copy()
