"""Label-consistent: pictures of the target class made hard to recognise, and then given a patch (Turner, Tsipras and Madry, 2019)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from untaint.attacks._hiding import adversarial, interpolated, recognised
from untaint.attacks._levels import sized
from untaint.attacks._surrogate import array_once, place, surrogate
from untaint.attacks.base import Card, CleanLabel, check_share, shift
from untaint.attacks.patch import checkered
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.models.build import require
from untaint.progress import Progress, Silent
from untaint.recipe import Recipe, preset

__all__ = ["LabelConsistent"]

KNOWN = 0.5  # of the class a surrogate should recognise


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(CleanLabel):
    """A checker in the corners of pictures of the target class, whose own marks were hidden by adversarial noise, or by interpolation: labels stay right.

    ``kind="noise"``: a surrogate is trained for ``epochs``; then ``steps`` steps of projected gradient descent make the lead of the class over all others in its logits as small as they can
    (whose slope, other than that of the loss, does not vanish where the surrogate is sure: Carlini and Wagner, 2017), while no pixel changes by more than ``epsilon`` of 255 levels. ``kind="interpolation"``: each picture is replaced by what an autoencoder,
    trained on the pictures, draws ``tau`` of the way to one of another class (the paper has a GAN, and a surrogate only tells whether it worked). So a network that trains on the picture has little but the checker to go by. The trigger at
    test time is the checker alone. ``surrogate``: the network by its name; one with a defence's own layer in it, such as ``proxy+eigenguard:k=50``,
    is an attacker who knows the defence. ``cell``: as of ``patch``. ``corners``: 4, or 1 (where ``patch`` has it), which a model that
    trains on mirrored pictures learns less.

    The surrogate is trained on the clean training set itself, for lack of outside data, so this attacker knows more than the paper's. Pictures that it was not made
    ready for get the checker alone. What was computed is kept in the cache folder.
    """

    kind: Literal["noise", "interpolation"] = "noise"
    epsilon: float = 16.0
    tau: float = 0.2
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
        check_share("tau", self.tau)
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

        levels = array_once(
            place("label-consistent", self, examples, recipe, seed, ".npy"),
            lambda: self._hidden(examples, examples.take(rows), recipe, seed, told),
        )
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

    def _hidden(
        self, examples: Examples, target: Examples, recipe: Recipe, seed: int, progress: Progress
    ) -> NDArray[np.int16]:
        """Return what to add to each picture of the target class, in levels; says so where the surrogate is not misled by it."""
        name = "label-consistent"
        model = surrogate(examples, recipe, name, seed, progress)
        if self.kind == "interpolation":
            levels = interpolated(examples, target, self.tau, name, seed, progress)
        else:
            levels = adversarial(model, target, self.epsilon, self.steps, progress)
        share, left = recognised(model, target, levels)
        if share < KNOWN or left > share / 2:
            raised = "epochs" if share < KNOWN else "tau" if self.kind == "interpolation" else "epsilon"
            shown = target.class_names[self.target_in(target.class_names)]
            progress.say(
                f"{name}: the surrogate recognises {share:.0%} of '{shown}' without {self.kind} and {left:.0%} with it, "
                f"so that little is hidden. Raise {raised}."
            )
        return levels
