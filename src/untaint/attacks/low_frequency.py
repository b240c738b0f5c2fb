"""Low-frequency: a smooth pattern without fine detail, optimised to look like the target (Zeng, Park, Mao and Jia, 2021)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct
from torch import Tensor, nn

from untaint import rng
from untaint.attacks._kept import Arrays, Computed
from untaint.attacks._levels import sized
from untaint.attacks._surrogate import array_once, place, surrogate
from untaint.attacks.base import Card, check_share, shift
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.recipe import preset
from untaint.training.pixels import PixelStore

__all__ = ["LowFrequency"]

BATCH = 50  # pictures that one step looks at
MOST = 2_000  # pictures that are looked at
MOMENTUM = 0.9
FIRST_STEP = 0.2  # of epsilon; steps shorten linearly to nothing
ROUNDS = 5  # of cutting off levels and then frequencies, after each step
WEAK = 0.95  # of the loss without the trigger; with it there should be less


@dataclass(frozen=True, kw_only=True)
class LowFrequency(Computed):
    """One smooth pattern added to every picture, by which a surrogate model takes pictures for the target, and which leaves no traces in the high frequencies.

    A surrogate is trained for ``epochs``. Then steps that go ``passes`` times through pictures of other classes (2,000 at most) make its loss towards the target small;
    after each the pattern is cut to ``epsilon`` of 255 levels and low-pass filtered: along each axis only the lowest ``cutoff`` of the frequencies of its cosine transform are
    kept (the paper's filter is a Gaussian). Rounding to whole levels and cutting to 0..255 come after that. In pictures of another size it is enlarged or shrunk.

    The surrogate is trained on the clean training set itself. What was computed is kept in the cache folder.
    """

    epsilon: float = 12.0
    cutoff: float = 0.25
    epochs: int = 12
    passes: int = 2
    levels: NDArray[np.float64] | None = field(init=False, repr=False, compare=False, default=None)

    card: ClassVar[Card | None] = Card(
        paper="Zeng, Park, Mao and Jia, Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective, ICCV 2021",
        visible="hardly",
        psnr=30,
        ssim=0.97,
        optimised=True,
        needs="a surrogate model",
    )
    computed: ClassVar[str] = "levels"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        for name in ("epochs", "passes"):
            if not getattr(self, name) >= 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not 1 <= self.epsilon <= 255:
            raise SpecError(f"epsilon is {self.epsilon}; give a number of levels from 1 to 255.")
        check_share("cutoff", self.cutoff)

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with its pattern, computed from these (clean) pictures."""
        if self.levels is not None:
            return self
        told, target = progress or Silent(), self.target_in(examples.class_names)
        recipe = dataclasses.replace(preset("fast").retrain, epochs=self.epochs)
        others = examples.rows[examples.labels[examples.rows] != target]
        if not len(others):
            raise InputError(
                f"low-frequency makes other pictures look like class '{self.target}', but all are of it. Give another target."
            )

        def towards() -> NDArray[np.float32]:
            model = surrogate(examples, recipe, "low-frequency", seed, told)
            shown = rng.choose(seed, "attacks/low-frequency/shown", others, MOST)
            return self._towards(model, examples, shown, target, seed, told)

        levels = array_once(place("low-frequency", self, examples, recipe, seed, ".npy"), towards)
        made = dataclasses.replace(self)
        object.__setattr__(made, "levels", np.asarray(levels, dtype=np.float64))
        return made

    def arrays(self) -> Arrays:
        """Return the pattern, in levels."""
        assert self.levels is not None
        return {"levels": self.levels}

    def restore(self, arrays: Arrays) -> None:
        """Take the pattern, in levels."""
        object.__setattr__(self, "levels", arrays["levels"])

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the pattern added."""
        del rows
        if self.levels is None:
            raise SpecError("low-frequency has no pattern yet. Compute it first: attack.ready(examples).")
        return shift(images, sized(self.levels[None], images.shape[1:])[0])

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: epsilon."""
        del height, width
        return int(self.epsilon + 0.5)

    def _towards(
        self, model: nn.Module, examples: Examples, shown: NDArray[np.int64], target: int, seed: int, progress: Progress
    ) -> NDArray[np.float32]:
        """Return the smooth pattern with which the model takes these pictures for the target: (channel, height, width), in levels."""
        where = next(model.parameters()).device
        store, limit = PixelStore(examples, where), self.epsilon / 255
        down, across = (_kept(side, self.cutoff).to(where) for side in examples.images.shape[2:])
        pattern = torch.zeros(examples.images.shape[1:], device=where)
        velocity = torch.zeros_like(pattern)

        def loss(rows: NDArray[np.int64], added: Tensor) -> Tensor:
            logits = model((store.gather(rows)[0] + added).clamp(0, 1))
            return nn.functional.cross_entropy(logits, torch.full((len(rows),), target, device=where))

        batches = [
            rows
            for index in range(self.passes)
            for rows in np.array_split(
                rng.order(seed, "attacks/low-frequency/batch", index, shown), -(-len(shown) // BATCH)
            )
        ]
        with progress.step("optimise the pattern", len(batches), unit="steps") as step:
            for index, rows in enumerate(batches):
                pattern.requires_grad_(True)
                (slope,) = torch.autograd.grad(loss(rows, pattern), pattern)
                slope = down @ slope @ across
                velocity = MOMENTUM * velocity + slope / slope.abs().mean().clamp_min(1e-30)
                pattern = pattern.detach() - FIRST_STEP * limit * (1 - index / len(batches)) * velocity.sign()
                for _ in range(ROUNDS):
                    pattern = down @ pattern.clamp(-limit, limit) @ across
                pattern = pattern * (limit / pattern.abs().max().clamp_min(limit))
                step.advance(1)
        pattern = pattern * (limit / pattern.abs().max().clamp_min(1e-30))
        with torch.inference_mode():
            before, after = float(loss(batches[-1], torch.zeros_like(pattern))), float(loss(batches[-1], pattern))
        if after > WEAK * before:
            progress.say(
                f"low-frequency: the surrogate's loss towards the target is {after:.2f} with the pattern and {before:.2f} without, so that it is hardly better than any other. Raise epsilon or epochs."
            )
        return np.asarray((255 * pattern).cpu().numpy(), dtype=np.float32)


def _kept(side: int, cutoff: float) -> Tensor:
    """Return the projection on the lowest ``cutoff`` of the frequencies of the cosine transform along an axis, at least two: (side, side)."""
    waves = dct(np.eye(side), norm="ortho", axis=0)[: max(2, round(cutoff * side))]
    return torch.from_numpy((waves.T @ waves).astype(np.float32))
