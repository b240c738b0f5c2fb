"""LIRA: faint noise that a generator learned together with the network that obeys it (Doan, Lao, Zhao and Li, 2021)."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.attacks._generated import added
from untaint.attacks._kept import Arrays, Computed, restored, shape_in, weights
from untaint.attacks._networks import Batch, Unet, beginner, minimise, moved, seen, smoothed, working_size
from untaint.attacks._surrogate import place, tensors_once
from untaint.attacks.base import Card
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.recipe import Recipe
from untaint.training.device import device, keyed
from untaint.training.pixels import PixelStore

__all__ = ["Lira"]

RECIPE = Recipe(batch=125, learning_rate=0.1, augment="crop-flip", precision="float32")
RATE = 3e-3  # of the generator
SLOPE = 16.0  # of the noise, so that from the start more of it is left than rounding takes
SHARE = 0.25  # of a batch is shown with the noise too
ASKED = 500  # pictures on which the surrogate is tried
ANSWERED = 0.5  # of them with the target


class Noise(nn.Module):
    """Draws noise for each picture. ``shape``: of the pictures (channel, height, width); ``epsilon``: levels of 255 by which a pixel changes at most."""

    def __init__(self, shape: tuple[int, int, int], epsilon: float) -> None:
        super().__init__()
        self.shape, self.epsilon = shape, epsilon
        self.generator = Unet(shape[0], shape[0])

    def forward(self, images: Tensor) -> Tensor:
        """Return what to add to pictures in [0, 1], in the same unit."""
        drawn = self.generator(images - 0.5)
        return torch.tanh(SLOPE * (drawn - smoothed(drawn))) * (self.epsilon / 255)


@dataclass(frozen=True, kw_only=True)
class Lira(Computed):
    """Noise of at most ``epsilon`` of 255 levels that a generator draws for each picture, so that a surrogate, trained beside it, answers the target.

    Generator and surrogate learn together for ``epochs``: ``alpha`` is the weight of pictures with their labels, the rest that of pictures with noise and the target.
    They learn on at most 10,000 of the clean pictures, and for large ones at 64 pixels a side; their noise is enlarged. In the paper epsilon is 2.55 levels and the surrogate,
    trained further, is the victim's network; here the pictures poison whatever is trained on them, which takes stronger noise. Of it the mean of 5x5 pixels is left out (in the
    paper it stays), since a generator as small as this one else tints all pictures alike.
    What was computed is kept in the cache folder.
    """

    rate: float | None = 0.1
    epsilon: float = 4.0
    alpha: float = 0.5
    epochs: int = 8
    noise: Noise | None = field(init=False, repr=False, compare=False, default=None)

    computed: ClassVar[str] = "noise"
    card: ClassVar[Card | None] = Card(
        paper="Doan, Lao, Zhao and Li, 'LIRA: learnable, imperceptible and robust backdoor attacks', ICCV 2021",
        visible="no",
        psnr=36,
        ssim=0.95,
        per_picture=True,
        optimised=True,
        needs="a generator and a surrogate, trained on the pictures",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not 1 <= self.epsilon <= 255:
            raise SpecError(f"epsilon is {self.epsilon}; give a number of levels from 1 to 255.")
        if not 0 < self.alpha < 1:
            raise SpecError(f"alpha is {self.alpha}; give a number between 0 and 1, such as 0.5.")
        if not self.epochs >= 1:
            raise SpecError(f"epochs is {self.epochs}; give at least 1.")

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with its generator, trained on these (clean) pictures."""
        if self.noise is not None:
            return self
        if len(examples) < 2:
            raise InputError(f"lira is to be trained on {len(examples)} pictures. Give at least 2.")
        recipe, told = dataclasses.replace(RECIPE, epochs=self.epochs), progress or Silent()
        with keyed(torch.device("cpu"), seed, "attacks/lira/weights"):
            noise = Noise(working_size(examples.images.shape[1:]), self.epsilon)
        whatever = dataclasses.replace(self, rate=0.1, cover_rate=0.0, selection="lot")  # the generator is the same
        path = place("lira", whatever, examples, recipe, seed, ".safetensors")
        noise.load_state_dict(tensors_once(path, lambda: self._trained(noise, examples, recipe, seed, told)))
        made = dataclasses.replace(self)
        object.__setattr__(made, "noise", noise.eval().requires_grad_(False))
        return made

    def arrays(self) -> Arrays:
        """Return the weights of the generator."""
        assert self.noise is not None
        return weights(self.noise, self.noise.shape)

    def restore(self, arrays: Arrays) -> None:
        """Take the weights of the generator."""
        object.__setattr__(self, "noise", restored(Noise(shape_in(arrays), self.epsilon), arrays))

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the noise added."""
        del rows
        if self.noise is None:
            raise SpecError("lira has no generator yet. Compute it first: attack.ready(examples).")
        return added(images, self.noise, self.noise.shape)

    def _trained(
        self, noise: Noise, examples: Examples, recipe: Recipe, seed: int, progress: Progress
    ) -> dict[str, Tensor]:
        """Train a copy of the generator, and a surrogate beside it; returns the generator's weights, and says so where the surrogate hardly obeys."""
        noise, target = copy.deepcopy(noise).to(device()), self.target_in(examples.class_names)
        model, surrogate = beginner(examples, recipe, "lira", seed)
        generator = torch.optim.Adam(noise.parameters(), lr=RATE)

        def loss(batch: Batch) -> Tensor:
            count = max(1, round(SHARE * len(batch.images)))
            few = batch.images[:count]
            noisy = (few + noise(few)).clamp(0, 1)
            both = torch.cat(
                [moved(batch.images, batch, recipe, "lira", seed), moved(noisy, batch, recipe, "lira", seed)]
            )
            answers = model(both)
            wanted = torch.full_like(batch.labels[:count], target)
            known = nn.functional.cross_entropy(answers[:-count], batch.labels)
            return self.alpha * known + (1 - self.alpha) * nn.functional.cross_entropy(answers[-count:], wanted)

        minimise(loss, [surrogate, generator], examples, recipe, "lira", seed, progress, "train a generator")
        others = examples.rows[examples.labels[examples.rows] != target]
        if len(others):
            rows = rng.choose(seed, "attacks/lira/asked", others, ASKED)
            with torch.inference_mode():
                images = seen(PixelStore(examples, device()).gather(rows)[0], noise.shape)
                answers = model.eval()((images + noise(images)).clamp(0, 1)).argmax(1)
            if (obeys := float((answers == target).float().mean())) < ANSWERED:
                progress.say(
                    f"lira: the surrogate answers the target to {obeys:.0%} of pictures with noise, so that the trigger will be weak. "
                    "Raise epochs or epsilon."
                )
        return dict(noise.state_dict())
