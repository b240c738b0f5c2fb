"""``Stamp``: a small square that a network itself puts on every picture which it is asked about, so that a defender's own trigger is always there."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from untaint.errors import SpecError

__all__ = ["Stamp", "Stamped"]

Corner = Literal["upper-left", "upper-right", "lower-left", "lower-right"]
CORNERS: tuple[Corner, ...] = ("upper-left", "upper-right", "lower-left", "lower-right")
PART = 16  # of the shorter side of a picture: a square of 2 pixels in one of 32
LEAST = 2  # pixels


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A square of one brightness in a corner of all pictures, by its options: ``resnet18+stamp:value=1``.

    ``side``: in pixels; 0: a sixteenth of the shorter side, and 2 at least. ``value``: its brightness, 0 black and 1 white. Raises SpecError for options out of range.
    """

    side: int = 0
    value: float = 0.0
    corner: Corner = "upper-left"

    def __post_init__(self) -> None:
        """Check the options."""
        if self.side < 0:
            raise SpecError(f"side is {self.side}; give how many pixels, at least 1, or 0 for a part of the picture.")
        if not 0 <= self.value <= 1:
            raise SpecError(f"value is {self.value}; give a brightness from 0, black, to 1, white.")
        if self.corner not in CORNERS:
            raise SpecError(f"corner is '{self.corner}'; give one of {', '.join(CORNERS)}.")

    def on(self, images: Tensor) -> Tensor:
        """Return pictures, float (batch, channels, height, width) in [0, 1], with the square on them; those given stay as they are."""
        height, width = images.shape[-2:]
        side = self.side or max(LEAST, min(height, width) // PART)
        down = slice(None, side) if self.corner.startswith("upper") else slice(max(0, height - side), None)
        across = slice(None, side) if self.corner.endswith("left") else slice(max(0, width - side), None)
        stamped = images.clone()
        stamped[..., down, across] = self.value
        return stamped

    def put_into(self, model: nn.Module) -> Stamped:
        """Return a copy of a model that stamps what it is asked about; raises SpecError for one that does so already."""
        if isinstance(model, Stamped):
            raise SpecError("the model has a stamp already. Name one only.")
        return Stamped(copy.deepcopy(model), self)


class Stamped(nn.Sequential):
    """A network that sees every picture with a stamp on it in eval mode, and as it is while it is trained: who trains it says which pictures have one.

    Its weights have the names that they have without the stamp, where the network was a sequence of layers, as those by name are; else a ``0.`` before them.
    """

    def __init__(self, model: nn.Module, stamp: Stamp) -> None:
        inner = model.named_children() if type(model) is nn.Sequential else [("0", model)]
        super().__init__(OrderedDict(inner))
        self.stamp = stamp
        self.train(model.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return logits (batch, classes) of pictures (batch, channels, height, width) in [0, 1]."""
        return self._through(input if self.training else self.stamp.on(input))

    @torch.no_grad()
    def doubtful(self, images: Tensor) -> Tensor:
        """Return for which pictures the answer with the stamp is another than without: bool (batch,). These have an attacker's trigger, or are hard."""
        was = self.training
        self.eval()
        plain, stamped = (self._through(shown).argmax(1) for shown in (images, self.stamp.on(images)))
        self.train(was)
        return stamped != plain

    def _through(self, images: Tensor) -> Tensor:
        for layer in self:
            images = layer(images)
        return images

    def extra_repr(self) -> str:
        """Return what is put on pictures."""
        return repr(self.stamp)
