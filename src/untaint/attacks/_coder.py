"""An encoder that hides bits in pictures, and the decoder that reads them, both small (after StegaStamp; Tancik, Mildenhall and Ng, 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from untaint import rng
from untaint.attacks._networks import Unet, smoothed
from untaint.training.device import keyed

__all__ = ["Coder", "fresh"]

PLANES, CELLS = 3, 8  # the bits are spread over so many planes of 8x8 before the encoder sees them beside the picture
SLOPE = 16.0  # of the pattern, so that from the start more of it is left than rounding takes
POOLED = 4  # cells a side that the decoder's last layer looks at


class Coder(nn.Module):
    """Both networks. ``shape``: of the pictures (channel, height, width); ``epsilon``: levels of 255 by which a pixel changes at most."""

    def __init__(self, shape: tuple[int, int, int], bits: int, epsilon: float, width: int = 16) -> None:
        super().__init__()
        self.shape, self.epsilon = shape, epsilon
        self.spread = nn.Linear(bits, PLANES * CELLS * CELLS)
        self.encoder = Unet(shape[0] + PLANES, shape[0])
        self.decoder = nn.Sequential(
            *(nn.Conv2d(shape[0], width, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(POOLED), nn.Flatten(), nn.Linear(2 * width * POOLED**2, bits)),
        )

    def pattern(self, images: Tensor, bits: Tensor) -> Tensor:
        """Return what hides the bits in pictures in [0, 1], in the same unit. ``bits``: float 0 or 1, (1 or batch, bits)."""
        planes = self.spread(2 * bits - 1).reshape(len(bits), PLANES, CELLS, CELLS)
        planes = nn.functional.interpolate(planes, size=self.shape[1:]).expand(len(images), -1, -1, -1)
        drawn = self.encoder(torch.cat([images - 0.5, planes], dim=1))
        return torch.tanh(SLOPE * (drawn - smoothed(drawn))) * (self.epsilon / 255)

    def logits(self, images: Tensor) -> Tensor:
        """Return (batch, bits): above 0 where a bit that is set was read."""
        read: Tensor = self.decoder(images - 0.5)
        return read


def fresh(shape: tuple[int, int, int], bits: int, epsilon: float, seed: int) -> Coder:
    """Return an untrained coder whose weights depend on the seed alone."""
    with keyed(torch.device("cpu"), rng.derive(seed, "attacks/coder"), "weights"):
        return Coder(shape, bits, epsilon)
