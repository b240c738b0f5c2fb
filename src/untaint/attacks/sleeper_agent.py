"""Sleeper-agent: noise from which a network learns to obey a patch that is never in the training set (Souri, Fowl, Chellappa, Goldblum and Goldstein, 2022)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.attacks._levels import sized
from untaint.attacks._surrogate import array_once, place, surrogate
from untaint.attacks.base import Card, CleanLabel, check_share, shift
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.models.build import require
from untaint.progress import Progress, Silent
from untaint.recipe import Recipe, preset
from untaint.training.pixels import PixelStore, augmented

__all__ = ["SleeperAgent"]

BATCH = 125
SOURCES = 500  # pictures of other classes whose slope, with the patch on them, is imitated
FIRST_STEP = 0.1  # of epsilon; steps shorten linearly to nothing
WEAK = 0.7  # of the way from the alignment of noise by lot to a perfect one that may be left


@dataclass(frozen=True, kw_only=True)
class SleeperAgent(CleanLabel):
    """Noise on pictures of the target class, by which training moves a network as pictures of others with a patch, labelled as the target, would; the patch is shown at test time only.

    A surrogate is trained for ``epochs``. Then ``steps`` steps of Adam on the signs of slopes turn the mean slope of its weights on these pictures, in batches, shifted and mirrored
    as in training, towards the mean slope on 500 patched pictures of other classes, while no pixel changes by more than ``epsilon`` of 255 levels. The patch: ``cells`` by ``cells``
    squares, black or white in each colour, drawn by ``patch_seed``, in the lower right corner; ``size`` is its side as a share of the shorter side of the picture.
    ``surrogate``: the network by its name.

    On the 5,000 pictures that come with the package, with half of the class poisoned and the small network, it does not take: 2.8 % of others are taken
    for the target with the patch and 1.9 % without it, and a network trained on clean pictures takes 6.6 % with it. The slopes agree almost
    fully all the same (a cosine of 0.95), so that the silence of ``ready``, which warns where they do not, is no proof that the patch is obeyed. Training the surrogate again on
    the poisoned set halfway, imitating only what the patch adds to the slope, and one class as the source with pictures of the largest slopes did no better, each tried once.

    A small version: one surrogate, which is not trained again, all other classes instead of one, fewer steps than the paper's 250, no restarts, and whom to poison is drawn by lot.
    The surrogate is trained on the clean training set itself. Pictures that it was not made ready for get the noise of another. What was computed is kept in the cache folder.
    """

    epsilon: float = 16.0
    steps: int = 50
    epochs: int = 12
    surrogate: str = "proxy"
    size: float = 0.25
    cells: int = 2
    patch_seed: int = 0
    known: NDArray[np.int64] | None = field(init=False, repr=False, compare=False, default=None)
    noise: NDArray[np.int16] | None = field(init=False, repr=False, compare=False, default=None)

    card: ClassVar[Card | None] = Card(
        paper="Souri, Fowl, Chellappa, Goldblum and Goldstein, Sleeper Agent: Scalable Hidden Trigger Backdoors for Neural Networks Trained from Scratch, NeurIPS 2022",
        visible="yes",
        psnr=25,
        ssim=0.87,
        per_picture=True,
        optimised=True,
        needs="a surrogate model, and noise computed for every picture of the target class",
    )
    usual_class_rate: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        for name in ("steps", "epochs", "cells"):
            if not getattr(self, name) >= 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not 1 <= self.epsilon <= 255:
            raise SpecError(f"epsilon is {self.epsilon}; give a number of levels from 1 to 255.")
        check_share("size", self.size)
        require(self.surrogate)

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with noise for every one of these (clean) pictures that is of the target class."""
        if self.noise is not None:
            return self
        told = progress or Silent()
        recipe = dataclasses.replace(preset("fast").retrain, epochs=self.epochs, model=self.surrogate)
        of_target = examples.labels[examples.rows] == self.target_in(examples.class_names)
        own, others = np.sort(examples.rows[of_target]), examples.rows[~of_target]
        if not len(own) or not len(others):
            raise InputError(
                f"sleeper-agent needs pictures of class '{self.target}' and others, but has {len(own)} and {len(others)}. Give another target."
            )

        def aligned() -> NDArray[np.int16]:
            model = surrogate(examples, recipe, "sleeper-agent", seed, told)
            sources = rng.choose(seed, "attacks/sleeper-agent/sources", others, SOURCES)
            return self._aligned(model, examples, own, sources, recipe, seed, told)

        levels = array_once(place("sleeper-agent", self, examples, recipe, seed, ".npy"), aligned)
        made = dataclasses.replace(self)
        object.__setattr__(made, "known", own)
        object.__setattr__(made, "noise", levels)
        return made

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with their noise; those without noise of their own with that of another, by their row."""
        if self.noise is None or self.known is None:
            raise SpecError("sleeper-agent has no noise yet. Compute it first: attack.ready(examples).")
        own = np.searchsorted(self.known, rows).clip(0, len(self.known) - 1)
        whose = np.where(self.known[own] == rows, own, rows % len(self.known))
        return shift(images, sized(self.noise[whose], images.shape[1:]))

    def trigger(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the patch painted over."""
        del rows
        shorter = min(images.shape[2:])
        side = min(shorter, max(2, round(self.size * shorter)))
        drawn = rng.uniform(self.patch_seed, "attacks/sleeper-agent/patch", 0, np.arange(self.cells**2), draws=3)
        cell = np.arange(side) * self.cells // side
        patch = np.where(drawn < 0.5, 0, 255).T.reshape(3, self.cells, self.cells)[
            : images.shape[1], cell[:, None], cell
        ]
        patched = images.copy()
        patched[:, :, -side:, -side:] = patch
        return patched

    def _wanted_slope(self, model: nn.Module, examples: Examples, sources: NDArray[np.int64]) -> Tensor:
        """Return the slope of the weights on these pictures, with the patch and labelled as the target."""
        where = next(model.parameters()).device
        target, found = self.target_in(examples.class_names), torch.zeros((), device=where)
        for start in range(0, len(sources), BATCH):
            some = sources[start : start + BATCH]
            images = torch.from_numpy(self.trigger(examples.images[some], some)).to(where).float() / 255
            found = found + len(some) * _slope(model, images, torch.full((len(some),), target, device=where))
        return found / len(sources)

    def _aligned(
        self,
        model: nn.Module,
        examples: Examples,
        own: NDArray[np.int64],
        sources: NDArray[np.int64],
        recipe: Recipe,
        seed: int,
        progress: Progress,
    ) -> NDArray[np.int16]:
        """Return what to add to each picture for the slope to be that of the patched sources: (pictures, channel, height, width), in levels."""
        wanted = self._wanted_slope(model, examples, sources)
        store, limit = PixelStore(examples, wanted.device), self.epsilon / 255
        shape, found, before, after = examples.images.shape[1:], [], 0.0, 0.0
        with progress.step("align the slopes", self.steps * len(own), unit="images") as step:
            for rows in np.array_split(own, -(-len(own) // BATCH)):
                images, labels = store.gather(rows)
                drawn = rng.uniform(seed, "attacks/sleeper-agent/noise", 0, rows, draws=int(np.prod(shape)))
                start = torch.from_numpy((2 * drawn.reshape(len(rows), *shape) - 1).astype(np.float32))
                noise = (limit * start.to(wanted.device)).requires_grad_(True)
                adam = torch.optim.Adam([noise])
                for number in range(self.steps):
                    numbers = rng.uniform(seed, "attacks/sleeper-agent/augment", number, rows, 4).astype(np.float32)
                    seen = augmented(
                        (images + noise).clamp(0, 1), recipe.augment, np.minimum(numbers, np.float32(1 - 2**-24))
                    )
                    likeness = nn.functional.cosine_similarity(_slope(model, seen, labels, again=True), wanted, dim=0)
                    before += float(likeness.detach()) * len(rows) / len(own) if number == 0 else 0
                    noise.grad = -torch.autograd.grad(likeness, noise)[0].sign()
                    adam.param_groups[0]["lr"] = FIRST_STEP * limit * (1 - number / self.steps)
                    adam.step()
                    with torch.no_grad():
                        noise.clamp_(-limit, limit)
                    step.advance(len(rows))
                after += float(likeness.detach()) * len(rows) / len(own)
                found.append((255 * noise.detach()).round().to(torch.int16).cpu().numpy())
        if 1 - after > WEAK * (1 - before):
            progress.say(
                f"sleeper-agent: slopes have a cosine of {after:.2f} with the wanted one, and {before:.2f} with noise by lot, so that the patch will hardly be obeyed. Raise steps or epsilon."
            )
        return np.concatenate(found)


def _slope(model: nn.Module, images: Tensor, labels: Tensor, *, again: bool = False) -> Tensor:
    """Return the slope of the mean loss on these pictures in all weights, as one vector; ``again``: through which slopes can be taken."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    loss = nn.functional.cross_entropy(model(images), labels)
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, weights, create_graph=again)])
