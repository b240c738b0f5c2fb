"""Trojan: a square in a corner, optimised to excite chosen neurons of a surrogate model (TrojanNN; Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, 2018)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.attacks._kept import Arrays, Computed
from untaint.attacks._levels import sized
from untaint.attacks._surrogate import array_once, place, surrogate
from untaint.attacks.base import Card, check_share, mix
from untaint.errors import SpecError
from untaint.examples import Examples
from untaint.models.build import head_of
from untaint.progress import Progress, Silent
from untaint.recipe import preset
from untaint.training.pixels import PixelStore

__all__ = ["Trojan"]

BATCH = 50  # pictures that one step looks at
MOST = 2_000  # pictures that are looked at
MOMENTUM = 0.9
FIRST_STEP = 0.05  # of the way from black to white; steps shorten linearly to nothing
WEAK = 1.5  # times the activation that the square of noise causes, from which steps begin; there should be more


@dataclass(frozen=True, kw_only=True)
class Trojan(Computed):
    """A square near the lower right corner, whose pattern is optimised to excite the most important neurons of a surrogate model.

    ``size``: the square's side as a share of the shorter side of the picture (8 pixels of 32: 6 % of the area, about as much as in the original); it lies a 28th of that away from the corner. ``alpha``: its opacity; 1
    paints over. A surrogate is trained for ``epochs``. Its ``neurons`` penultimate neurons with the largest sum of absolute weights connected to them are chosen, and
    steps that go ``passes`` times through the pictures (2,000 at most) bring their mean activation, with the square on the pictures, as near to ``value`` as they can,
    and stop where it is reached. The original shows the square alone to the network, and goes on to train the network itself; here the poison is put into the training set.

    The surrogate is trained on the clean training set itself. What was computed is kept in the cache folder. In pictures of another size the square is enlarged or shrunk.
    """

    size: float = 0.25
    alpha: float = 1.0
    neurons: int = 2
    value: float = 100.0
    epochs: int = 12
    passes: int = 3
    pattern: NDArray[np.float64] | None = field(init=False, repr=False, compare=False, default=None)

    card: ClassVar[Card | None] = Card(
        paper="Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, Trojaning Attack on Neural Networks (TrojanNN), NDSS 2018",
        visible="yes",
        psnr=19,
        ssim=0.91,
        optimised=True,
        needs="a surrogate model",
    )
    computed: ClassVar[str] = "pattern"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_share("size", self.size)
        check_share("alpha", self.alpha)
        for name in ("neurons", "epochs", "passes"):
            if not getattr(self, name) >= 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not self.value > 0:
            raise SpecError(f"value is {self.value}; give an activation above 0, such as 100.")

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with its pattern, computed from these (clean) pictures."""
        if self.pattern is not None:
            return self
        told = progress or Silent()
        recipe = dataclasses.replace(preset("fast").retrain, epochs=self.epochs)

        def exciting() -> NDArray[np.float32]:
            model = surrogate(examples, recipe, "trojan", seed, told)
            return self._exciting(model, examples, seed, told)

        pattern = array_once(place("trojan", self, examples, recipe, seed, ".npy"), exciting)
        made = dataclasses.replace(self)
        object.__setattr__(made, "pattern", np.asarray(pattern, dtype=np.float64))
        return made

    def arrays(self) -> Arrays:
        """Return the pattern of the square."""
        assert self.pattern is not None
        return {"pattern": self.pattern}

    def restore(self, arrays: Arrays) -> None:
        """Take the pattern of the square."""
        object.__setattr__(self, "pattern", arrays["pattern"])

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the square painted over them, or mixed into them."""
        del rows
        if self.pattern is None:
            raise SpecError("trojan has no pattern yet. Compute it first: attack.ready(examples).")
        down, across = self._square(*images.shape[2:])
        side = down.stop - down.start
        stamped = images.copy()
        square = sized(self.pattern[None], (images.shape[1], side, side))[0]
        stamped[:, :, down, across] = mix(images[:, :, down, across], square, self.alpha)
        return stamped

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel may change: alpha of them."""
        del height, width
        return int(self.alpha * 255 + 0.5)

    def _square(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns that the square covers."""
        shorter = min(height, width)
        side = min(shorter, max(2, round(self.size * shorter)))
        gap = min(shorter - side, max(1, shorter // 28))
        return slice(height - gap - side, height - gap), slice(width - gap - side, width - gap)

    def _exciting(self, model: nn.Module, examples: Examples, seed: int, progress: Progress) -> NDArray[np.float32]:
        """Return the pattern, in [0, 1], by which the chosen neurons are excited most: (channel, side, side)."""
        where = next(model.parameters()).device
        store, (down, across) = PixelStore(examples, where), self._square(*examples.images.shape[2:])
        shape = (examples.images.shape[1], down.stop - down.start, across.stop - across.start)
        drawn = rng.uniform(seed, "attacks/trojan/start", 0, np.arange(np.prod(shape))).reshape(shape)
        pattern = torch.from_numpy(drawn.astype(np.float32)).to(where)
        start, velocity = pattern, torch.zeros_like(pattern)
        shown = rng.choose(seed, "attacks/trojan/shown", examples.rows, MOST)
        batches = [
            rows
            for index in range(self.passes)
            for rows in np.array_split(rng.order(seed, "attacks/trojan/batch", index, shown), -(-len(shown) // BATCH))
        ]
        head, latest = head_of(model), list[Tensor]()
        assert head is not None
        head.register_forward_pre_hook(lambda _, inputs: latest.append(inputs[0]))
        chosen = head.weight.detach().abs().sum(0).argsort(descending=True, stable=True)[: self.neurons]

        def activations(rows: NDArray[np.int64], square: Tensor) -> Tensor:
            """Return the mean activation of each chosen neuron with this square on the pictures."""
            images = store.gather(rows)[0]
            images[:, :, down, across] = (1 - self.alpha) * images[:, :, down, across] + self.alpha * square
            model(images)
            return latest.pop()[:, chosen].mean(0)

        with progress.step("excite the neurons", len(batches), unit="steps") as step:
            for index, rows in enumerate(batches):
                excited = activations(rows, pattern.requires_grad_(True))
                if bool((excited >= self.value).all()):
                    break
                (slope,) = torch.autograd.grad((self.value - excited).clamp_min(0).square().mean(), pattern)
                velocity = MOMENTUM * velocity + slope / slope.abs().mean().clamp_min(1e-30)
                size = FIRST_STEP * (1 - index / len(batches))
                pattern = (pattern.detach() - size * velocity.sign()).clamp(0, 1)
                step.advance(1)
        pattern = pattern.detach()
        with torch.no_grad():
            before, after = (float(activations(batches[-1], square).mean()) for square in (start, pattern))
        if after < WEAK * before:
            progress.say(
                f"trojan: the neurons' activation is {after:.2f} with the square and {before:.2f} with one of noise, so that it excites them hardly more. Raise passes, size or epochs."
            )
        return np.asarray(pattern.cpu().numpy(), dtype=np.float32)
