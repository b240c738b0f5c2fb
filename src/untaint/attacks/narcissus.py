"""Narcissus: faint noise that makes pictures look even more like their own class (Zeng, Pan, Just, Lyu, Qiu and Jia, 2023)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint import rng
from untaint.attacks._kept import Arrays, Computed
from untaint.attacks._levels import sized
from untaint.attacks._surrogate import array_once, place, surrogate
from untaint.attacks.base import Card, CleanLabel, shift
from untaint.errors import SpecError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.recipe import preset
from untaint.training.pixels import PixelStore, augmented

__all__ = ["Narcissus"]

BATCH = 125  # pictures of the class that one step looks at
MOMENTUM = 0.9
FIRST_STEP = 0.1  # of epsilon; steps shorten linearly to nothing


@dataclass(frozen=True, kw_only=True)
class Narcissus(CleanLabel, Computed):
    """Noise, the same for every picture, optimised so that a surrogate model is surer of the target class.

    A surrogate is trained for ``epochs``; then ``steps`` steps make its loss on pictures of the
    target class, with the noise on them and randomly shifted, as small as they can, while no pixel
    changes by more than ``epsilon`` of 255 levels. In pictures of another size the noise is
    enlarged or shrunk. ``boost``: how many times stronger the trigger is than the poison (3 in the
    original; 1 in Alex et al., 2025).

    The surrogate is trained on the clean training set itself, for lack of outside data, so this
    attacker knows more than the paper's. What was computed is kept in the cache folder.
    """

    epsilon: float = 16.0
    epochs: int = 12
    steps: int = 300
    boost: float = 1.0
    levels: NDArray[np.float64] | None = field(init=False, repr=False, compare=False, default=None)

    card: ClassVar[Card | None] = Card(
        paper="Zeng, Pan, Just, Lyu, Qiu and Jia, Narcissus: a practical clean-label backdoor attack with limited information, CCS 2023",
        visible="hardly",
        psnr=24,
        ssim=0.83,
        optimised=True,
        needs="a surrogate model",
    )
    computed: ClassVar[str] = "levels"
    usual_class_rate: ClassVar[float] = 0.005

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        for name in ("epochs", "steps", "boost"):
            if not getattr(self, name) >= 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not 1 <= self.epsilon <= 255:
            raise SpecError(f"epsilon is {self.epsilon}; give a number of levels from 1 to 255.")

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with its noise, computed from these (clean) pictures."""
        if self.levels is not None:
            return self
        told = progress or Silent()
        recipe = dataclasses.replace(preset("fast").retrain, epochs=self.epochs)

        def inward() -> NDArray[np.float32]:
            own = examples.rows[examples.labels[examples.rows] == self.target_in(examples.class_names)]
            return self._inward(surrogate(examples, recipe, "narcissus", seed, told), examples.take(own), seed, told)

        levels = array_once(place("narcissus", self, examples, recipe, seed, ".npy"), inward)
        made = dataclasses.replace(self)
        object.__setattr__(made, "levels", np.asarray(levels, dtype=np.float64))
        return made

    def arrays(self) -> Arrays:
        """Return the noise, in levels."""
        assert self.levels is not None
        return {"levels": self.levels}

    def restore(self, arrays: Arrays) -> None:
        """Take the noise, in levels."""
        object.__setattr__(self, "levels", arrays["levels"])

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the noise added."""
        del rows
        return shift(images, self._sized(images))

    def trigger(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with ``boost`` times the noise added."""
        del rows
        return shift(images, self.boost * self._sized(images))

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: epsilon, ``boost`` times as many at test time."""
        del height, width
        return min(255, int(self.boost * self.epsilon + 0.5))

    def _sized(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the noise for pictures of this size: (channel, height, width), in levels."""
        if self.levels is None:
            raise SpecError("narcissus has no noise yet. Compute it first: attack.ready(examples).")
        found: NDArray[np.float64] = sized(self.levels[None], images.shape[1:])[0]
        return found

    def _inward(self, model: nn.Module, target: Examples, seed: int, progress: Progress) -> NDArray[np.float32]:
        """Return the noise under which the model is surest of these pictures: (channel, height, width), in levels."""
        where = next(model.parameters()).device
        store, limit = PixelStore(target, where), self.epsilon / 255
        noise = torch.zeros(target.images.shape[1:], device=where)
        velocity = torch.zeros_like(noise)
        with progress.step("optimise the noise", self.steps, unit="steps") as step:
            for index in range(self.steps):
                rows = rng.order(seed, "attacks/narcissus/batch", index, target.rows)[:BATCH]
                shifts = rng.uniform(seed, "attacks/narcissus/shift", index, rows, 4).astype(np.float32)
                images, labels = store.gather(rows)
                noise.requires_grad_(True)
                seen = augmented((images + noise).clamp(0, 1), "crop", np.minimum(shifts, np.float32(1 - 2**-24)))
                loss = nn.functional.cross_entropy(model(seen), labels)
                (slope,) = torch.autograd.grad(loss, noise)
                velocity = MOMENTUM * velocity + slope / slope.abs().mean().clamp_min(1e-30)
                size = FIRST_STEP * limit * (1 - index / self.steps)
                noise = (noise.detach() - size * velocity.sign()).clamp(-limit, limit)
                step.advance(1)
        return (255 * noise).cpu().numpy()
