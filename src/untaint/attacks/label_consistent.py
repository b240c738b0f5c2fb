"""Label-consistent: pictures of the target class made hard to recognise, and then given a patch (Turner, Tsipras and Madry, 2019)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint.attacks._levels import sized
from untaint.attacks._surrogate import array_once, place, surrogate
from untaint.attacks.base import Card, CleanLabel, shift
from untaint.attacks.patch import checkered
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.models.build import require
from untaint.progress import Progress, Silent
from untaint.recipe import preset
from untaint.training.pixels import PixelStore

__all__ = ["LabelConsistent"]

BATCH = 125
KNOWN = 0.5  # of the class a surrogate should recognise
STEP = 2.5  # times epsilon, over all steps (Madry et al., 2018)


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(CleanLabel):
    """A checker in the corners of pictures of the target class, whose own marks were hidden by adversarial noise: labels stay right.

    A surrogate is trained for ``epochs``; then ``steps`` steps of projected gradient descent make the lead of the class over all others in its logits as small as they can
    (whose slope, other than that of the loss, does not vanish where the surrogate is sure: Carlini and Wagner, 2017), while no pixel changes by more than ``epsilon`` of 255 levels. So a network that trains on the picture has little but the checker to go by. The trigger at
    test time is the checker alone. ``surrogate``: the network by its name; one with a defence's own layer in it, such as ``proxy+eigenguard:k=50``,
    is an attacker who knows the defence. ``cell``: as of ``patch``. ``corners``: 4, or 1 (where ``patch`` has it), which a model that
    trains on mirrored pictures learns less.

    The surrogate is trained on the clean training set itself, for lack of outside data, so this attacker knows more than the paper's. Pictures that it was not made
    ready for get the checker alone. What was computed is kept in the cache folder.
    """

    epsilon: float = 16.0
    steps: int = 10
    epochs: int = 12
    surrogate: str = "proxy"
    cell: int | None = None
    corners: int = 4
    noise: dict[int, NDArray[np.int16]] | None = field(init=False, repr=False, compare=False, default=None)

    card: ClassVar[Card | None] = Card(
        paper="Turner, Tsipras and Madry, Label-consistent backdoor attacks, arXiv 1912.02771, 2019",
        visible="yes",
        psnr=24,
        ssim=0.95,
        per_picture=True,
        optimised=True,
        needs="a surrogate model",
    )
    usual_class_rate: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        for name in ("steps", "epochs"):
            if not getattr(self, name) >= 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not 1 <= self.epsilon <= 255:
            raise SpecError(f"epsilon is {self.epsilon}; give a number of levels from 1 to 255.")
        if self.corners not in (1, 4):
            raise SpecError(f"corners is {self.corners}; give 4, or 1.")
        if self.cell is not None and self.cell < 1:
            raise SpecError(f"cell is {self.cell}; give a number of pixels of at least 1.")
        require(self.surrogate)

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with noise for every one of these (clean) pictures that is of the target class."""
        if self.noise is not None:
            return self
        told = progress or Silent()
        recipe = dataclasses.replace(preset("fast").retrain, epochs=self.epochs, model=self.surrogate)
        rows = examples.rows[examples.labels[examples.rows] == self.target_in(examples.class_names)]
        if not len(rows):
            raise InputError(
                f"label-consistent hides what shows class '{self.target}', of which there is no picture. Give another target."
            )

        def outward() -> NDArray[np.int16]:
            model = surrogate(examples, recipe, "label-consistent", seed, told)
            return self._outward(model, examples.take(rows), told)

        levels = array_once(place("label-consistent", self, examples, recipe, seed, ".npy"), outward)
        made = dataclasses.replace(self)
        object.__setattr__(made, "noise", dict(zip(rows.tolist(), levels, strict=True)))
        return made

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with their noise and the checker; those without noise of their own with the checker alone."""
        if self.noise is None:
            raise SpecError("label-consistent has no noise yet. Compute it first: attack.ready(examples).")
        hidden = images.copy()
        known = [place for place, row in enumerate(rows.tolist()) if row in self.noise]
        if known:
            levels = np.stack([self.noise[row] for row in rows[known].tolist()])
            hidden[known] = shift(images[known], sized(levels, images.shape[1:]))
        return checkered(hidden, self.cell, self.corners)

    def trigger(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the checker."""
        del rows
        return checkered(images, self.cell, self.corners)

    def _outward(self, model: nn.Module, target: Examples, progress: Progress) -> NDArray[np.int16]:
        """Return what to add to each picture for the model to recognise it least: (pictures, channel, height, width), in levels."""
        where = next(model.parameters()).device
        store, limit = PixelStore(target, where), self.epsilon / 255
        size = STEP * limit / self.steps
        found, before, after = [], 0, 0
        with progress.step("hide what shows the class", len(target), unit="images") as step:
            for start in range(0, len(target), BATCH):
                images, labels = store.gather(target.rows[start : start + BATCH])
                noise = torch.zeros_like(images)
                for number in range(self.steps + 1):
                    noise.requires_grad_(True)
                    logits = model((images + noise).clamp(0, 1))
                    own = nn.functional.one_hot(labels, logits.shape[1]).bool()
                    lead = logits[own] - logits.masked_fill(own, -torch.inf).amax(1)
                    if number == 0:
                        before += int((lead > 0).sum())
                    if number == self.steps:
                        after += int((lead > 0).sum())
                        break
                    (slope,) = torch.autograd.grad(-lead.sum(), noise)
                    noise = (noise.detach() + size * slope.sign()).clamp(-limit, limit)
                found.append((255 * noise.detach()).round().to(torch.int16).cpu().numpy())
                step.advance(len(labels))
        share, left = before / len(target), after / len(target)
        name = target.class_names[self.target_in(target.class_names)]
        if share < KNOWN or left > share / 2:
            progress.say(
                f"label-consistent: the surrogate recognises {share:.0%} of '{name}' without noise and {left:.0%} with it, so that little is hidden. "
                f"Raise {'epochs' if share < KNOWN else 'epsilon'}."
            )
        return np.concatenate(found)
