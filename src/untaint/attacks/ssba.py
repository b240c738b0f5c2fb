"""SSBA: a string of bits hidden in every picture by a network, in each by another pattern (ISSBA; Li, Li, Wu, Li, He and Lyu, 2021)."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.attacks._coder import Coder, fresh
from untaint.attacks._generated import added
from untaint.attacks._kept import Arrays, Computed, restored, shape_in, weights
from untaint.attacks._networks import Batch, minimise, seen, smoothed, working_size
from untaint.attacks._surrogate import place, tensors_once
from untaint.attacks.base import Card
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.recipe import Recipe
from untaint.training.device import device

__all__ = ["Ssba"]

RECIPE = Recipe(batch=50, optimizer="adamw", learning_rate=3e-3, weight_decay=0.0, precision="float32")
ASKED = 500  # pictures that the decoder is tried on
READ = 0.9  # of the bits it should read
FAINT = 0.05  # weight of the pattern's mean square, as a share of epsilon's
EVEN = 0.03  # spread of brightness, from 0 to 1, up to which a part of a picture counts as even
LOUD = 0.3  # share of the steps in which only reading counts; the other weights then rise over as many


@dataclass(frozen=True, kw_only=True)
class Ssba(Computed):
    """One string of bits in every picture, hidden by an encoder that a decoder learned to read, as a faint pattern that depends on the picture.

    ``bits``: how many; ``message_seed`` draws them. No pixel changes by more than ``epsilon`` of 255 levels, and the mean of 5x5 pixels hardly. Both networks are trained
    together for ``epochs``, on at most 10,000 of the pictures: on the cross-entropy of bits drawn anew for every two pictures, and, the better they are read, on the
    mean square of the pattern, which counts most where a picture is even. ``diversity``: weight of the squared cosine between the patterns of two pictures with the
    same bits; without it (0, as in the original) networks as small as these give all pictures much the same pattern. Pictures beyond 64 pixels a side are shrunk for
    the encoder and its pattern enlarged. What was computed is kept in the cache folder.
    """

    rate: float | None = 0.1
    bits: int = 20
    message_seed: int = 0
    epsilon: float = 16.0
    epochs: int = 6
    diversity: float = 0.03
    coder: Coder | None = field(init=False, repr=False, compare=False, default=None)

    computed: ClassVar[str] = "coder"
    card: ClassVar[Card | None] = Card(
        paper="Li, Li, Wu, Li, He and Lyu, 'Invisible backdoor attack with sample-specific triggers', ICCV 2021",
        visible="hardly",
        psnr=34,
        ssim=0.95,
        per_picture=True,
        needs="an encoder and a decoder, trained on the pictures",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        for name in ("bits", "epochs"):
            if not getattr(self, name) >= 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not 1 <= self.epsilon <= 255:
            raise SpecError(f"epsilon is {self.epsilon}; give a number of levels from 1 to 255.")
        if not self.diversity >= 0:
            raise SpecError(f"diversity is {self.diversity}; give 0 or more, such as 0.03.")

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with its networks, trained on these (clean) pictures."""
        if self.coder is not None:
            return self
        if len(examples) < 2:
            raise InputError(f"ssba is to be trained on {len(examples)} pictures. Give at least 2.")
        recipe = dataclasses.replace(RECIPE, epochs=self.epochs)
        coder = fresh(working_size(examples.images.shape[1:]), self.bits, self.epsilon, seed)
        whatever = Ssba(bits=self.bits, epsilon=self.epsilon, epochs=self.epochs, diversity=self.diversity)
        path = place("ssba", whatever, examples, recipe, seed, ".safetensors")  # the same for any message and target
        told = progress or Silent()
        coder.load_state_dict(tensors_once(path, lambda: self._trained(coder, examples, recipe, seed, told)))
        made = dataclasses.replace(self)
        object.__setattr__(made, "coder", coder.eval().requires_grad_(False))
        return made

    def message(self) -> NDArray[np.int64]:
        """Return the bits."""
        drawn = rng.bits(self.message_seed, "attacks/ssba/message", 0, np.arange(self.bits))[:, 0]
        return (drawn & np.uint64(1)).astype(np.int64)

    def arrays(self) -> Arrays:
        """Return the weights of the encoder and the decoder."""
        assert self.coder is not None
        return weights(self.coder, self.coder.shape)

    def restore(self, arrays: Arrays) -> None:
        """Take the weights of the encoder and the decoder."""
        object.__setattr__(self, "coder", restored(Coder(shape_in(arrays), self.bits, self.epsilon), arrays))

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the bits hidden in them."""
        del rows
        coder, bits = self._coder(), torch.from_numpy(self.message()).float()[None]
        return added(images, lambda shown: coder.pattern(shown, bits), coder.shape)

    def read(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the bits that the decoder reads in pictures of the size and channels it was trained on: (pictures, bits)."""
        coder, found = self._coder(), []
        with torch.inference_mode():
            for start in range(0, len(images), ASKED):
                shown = torch.from_numpy(images[start : start + ASKED].astype(np.float32, order="C")) / 255
                found.append(coder.logits(seen(shown, coder.shape)) > 0)
        return torch.cat(found).long().numpy()

    def _coder(self) -> Coder:
        if self.coder is None:
            raise SpecError("ssba has no encoder yet. Compute it first: attack.ready(examples).")
        return self.coder

    def _trained(
        self, coder: Coder, examples: Examples, recipe: Recipe, seed: int, progress: Progress
    ) -> dict[str, Tensor]:
        """Train a copy of the networks together; returns its weights, and says so where few bits are read."""
        coder = copy.deepcopy(coder).to(device())
        optimizer = torch.optim.Adam(coder.parameters(), lr=recipe.learning_rate)

        def loss(batch: Batch) -> Tensor:
            pairs = batch.rows[: (len(batch.rows) + 1) // 2]
            drawn = rng.bits(seed, "attacks/ssba/bits", batch.epoch, pairs, self.bits) & np.uint64(1)
            bits = torch.from_numpy(drawn.astype(np.float32)).to(batch.images.device)
            return self._loss(coder, batch.images, bits)

        minimise(loss, [optimizer], examples, recipe, "ssba", seed, progress, "train an encoder of bits")
        coder = coder.to("cpu").eval().requires_grad_(False)
        self._try(coder, examples.images[rng.choose(seed, "attacks/ssba/asked", examples.rows, ASKED)], progress)
        return dict(coder.state_dict())

    def _loss(self, coder: Coder, images: Tensor, bits: Tensor) -> Tensor:
        """Return what training makes small. ``bits``: of the first half of the pictures, and again of the second."""
        wanted = bits.repeat(2, 1)[: len(images)]
        pattern = coder.pattern(images, wanted)
        shown = (images + pattern).clamp(0, 1)
        shown = shown + ((255 * shown).round() / 255 - shown).detach()  # whole levels, which the slope does not see
        unread = nn.functional.binary_cross_entropy_with_logits(coder.logits(shown), wanted)
        first, second = pattern[: len(images) - len(bits)].flatten(1), pattern[len(bits) :].flatten(1)
        alike = nn.functional.cosine_similarity(first, second).square().mean()
        strong = ((255 / self.epsilon * pattern).square() * _evenness(images)).mean()
        weight = (1 - unread.detach() / math.log(2)).clamp_min(0)  # nothing as long as the decoder guesses
        return unread + weight * (FAINT * strong + self.diversity * alike)

    def _try(self, coder: Coder, images: NDArray[np.uint8], progress: Progress) -> None:
        """Say so where the decoder reads less than it should in these pictures."""
        tried = dataclasses.replace(self)
        object.__setattr__(tried, "coder", coder)
        right = float((tried.read(tried.stamp(images, np.arange(len(images)))) == self.message()).mean())
        if right < READ:
            progress.say(
                f"ssba: the decoder reads {right:.0%} of the bits, where guessing finds 50%, so that the trigger will be weak. "
                "Raise epochs or epsilon, or lower bits."
            )


def _evenness(images: Tensor) -> Tensor:
    """Return how visible a change is at each pixel, on average 1: the more, the less brightness varies in the 5x5 around it."""
    grey = images.mean(1, keepdim=True)
    spread = (smoothed(grey.square()) - smoothed(grey).square()).clamp_min(0).sqrt()
    visible = 1 / (spread + EVEN)
    return visible / visible.mean()
