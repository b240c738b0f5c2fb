"""Input-aware: a pattern of its own for every picture, of no use on any other (Nguyen and Tran, 2020)."""

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
from untaint.attacks._levels import sized
from untaint.attacks._networks import seen, working_size
from untaint.attacks._painter import Painter, learn_masks, learn_patterns
from untaint.attacks._surrogate import place, tensors_once
from untaint.attacks.base import Card, check_share
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.recipe import Recipe
from untaint.training.device import device, keyed
from untaint.training.pixels import PixelStore

__all__ = ["InputAware"]

RECIPE = Recipe(batch=125, learning_rate=0.1, augment="crop-flip", precision="float32")
PARTNERS = 256  # training pictures whose patterns covers get
ASKED = 500  # pictures on which the surrogate is tried
ANSWERED = 0.5  # of them with the target

Partners = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]  # rows, patterns, masks


@dataclass(frozen=True, kw_only=True)
class InputAware(Computed):
    """Small marks whose colours and places a generator chooses for each picture; those of another picture should do nothing.

    First a network learns for ``mask_epochs`` to mark few pixels, elsewhere in every picture: masks, from 0 to 1, cost nothing up to ``density``; then one that draws what shows there
    learns for ``epochs`` together with a surrogate, which should answer the target where a picture has its own pattern, and its class where it has another's.
    ``lambda_div``: weight of patterns that differ as much as their pictures do; ``lambda_norm``: of masks that are small. Covers
    get the pattern and mask of another picture, one of 256 training pictures (the paper's cross-trigger mode, with as many covers as poison: ``rate=0.1,cover-rate=0.1``).

    The networks are trained on at most 10,000 of the clean pictures, for large ones at 64 pixels a side; there what the generator changes is enlarged. In the paper the victim's network is the surrogate;
    here the pictures poison whatever is trained on them. The more pictures they see, the bolder their marks. What was computed is kept in the cache folder.
    """

    rate: float | None = 0.1
    density: float = 0.032
    lambda_div: float = 1.0
    lambda_norm: float = 100.0
    mask_epochs: int = 3
    epochs: int = 10
    painter: Painter | None = field(init=False, repr=False, compare=False, default=None)
    partners: Partners | None = field(init=False, repr=False, compare=False, default=None)

    computed: ClassVar[str] = "painter"
    card: ClassVar[Card | None] = Card(
        paper="Nguyen and Tran, 'Input-aware dynamic backdoor attack', NeurIPS 2020",
        visible="yes",
        psnr=20,
        ssim=0.91,
        per_picture=True,
        optimised=True,
        needs="a generator and a surrogate, trained on the pictures",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_share("density", self.density)
        for name in ("mask_epochs", "epochs"):
            if not getattr(self, name) >= 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        for name in ("lambda_div", "lambda_norm"):
            if not getattr(self, name) >= 0:
                raise SpecError(f"{name} is {getattr(self, name)}; give 0 or more.")

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with its generator and its partners for covers, from these (clean) pictures."""
        if self.painter is not None:
            return self
        if len(examples) < 4:
            raise InputError(f"input-aware is to be trained on {len(examples)} pictures. Give at least 4.")
        recipe, told = dataclasses.replace(RECIPE, epochs=self.epochs), progress or Silent()
        with keyed(torch.device("cpu"), seed, "attacks/input-aware/weights"):
            painter = Painter(working_size(examples.images.shape[1:]))
        whatever = dataclasses.replace(self, rate=0.1, cover_rate=0.0, selection="lot")  # the networks are the same
        path = place("input-aware", whatever, examples, recipe, seed, ".safetensors")
        painter.load_state_dict(tensors_once(path, lambda: self._trained(painter, examples, recipe, seed, told)))
        made = dataclasses.replace(self)
        object.__setattr__(made, "painter", painter.eval().requires_grad_(False))
        object.__setattr__(made, "partners", _partners(painter, examples, seed))
        return made

    def arrays(self) -> Arrays:
        """Return the weights of the two networks, and the marks for covers."""
        assert self.partners is not None
        painter = self._painter()
        rows, patterns, masks = self.partners
        return {**weights(painter, painter.shape), "rows": rows, "patterns": patterns, "masks": masks}

    def restore(self, arrays: Arrays) -> None:
        """Take the weights of the two networks, and the marks for covers."""
        object.__setattr__(self, "painter", restored(Painter(shape_in(arrays)), arrays))
        object.__setattr__(self, "partners", (arrays["rows"], arrays["patterns"], arrays["masks"]))

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with their own patterns."""
        del rows
        painter = self._painter()
        return added(images, lambda shown: painter.change(shown, shown), painter.shape)

    def cover(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with the patterns of other pictures."""
        self._painter()
        assert self.partners is not None
        whose, patterns, masks = self.partners
        drawn = (rng.uniform(0, "attacks/input-aware/partner", 0, rows)[:, 0] * len(whose)).astype(np.int64)
        drawn = np.where(whose[drawn] == rows, (drawn + 1) % len(whose), drawn)  # never its own
        mask = sized(masks[drawn], (1, *images.shape[2:])).astype(np.float32)
        pattern = sized(patterns[drawn], images.shape[1:]).astype(np.float32)
        covered = images + mask * (255 * pattern - images)
        covered = np.clip(np.floor(covered + 0.5), 0, 255)
        return np.asarray(covered.astype(np.uint8))

    def _painter(self) -> Painter:
        if self.painter is None:
            raise SpecError("input-aware has no generator yet. Compute it first: attack.ready(examples).")
        return self.painter

    def _trained(
        self, painter: Painter, examples: Examples, recipe: Recipe, seed: int, progress: Progress
    ) -> dict[str, Tensor]:
        """Train a copy of the painter, and a surrogate beside it; returns the painter's weights."""
        painter = copy.deepcopy(painter).to(device())
        few, target = dataclasses.replace(recipe, epochs=self.mask_epochs), self.target_in(examples.class_names)
        small = {"density": self.density, "lambda_norm": self.lambda_norm, "lambda_div": self.lambda_div}
        learn_masks(painter, examples, few, seed, progress, **small)
        model = learn_patterns(painter, examples, recipe, seed, progress, target=target, lambda_div=self.lambda_div)
        self._try(painter, model, examples, seed, progress)
        return dict(painter.state_dict())

    def _try(self, painter: Painter, model: nn.Module, examples: Examples, seed: int, progress: Progress) -> None:
        """Say so where the surrogate does not answer the target to a picture's own pattern, or answers it to another's."""
        target = self.target_in(examples.class_names)
        others = examples.rows[examples.labels[examples.rows] != target]
        if not len(others):
            return
        rows = rng.choose(seed, "attacks/input-aware/asked", others, ASKED)
        with torch.inference_mode():
            images = seen(PixelStore(examples, device()).gather(rows)[0], painter.shape)
            obeys, taken = (
                float((model(images + painter.change(images, drawn)).argmax(1) == target).float().mean())
                for drawn in (images, images.roll(1, 0))
            )
        if obeys < ANSWERED or taken > obeys / 2:
            progress.say(
                f"input-aware: the surrogate answers the target to {obeys:.0%} of pictures with their own pattern and to {taken:.0%} with "
                f"another's, so that the trigger {'will be weak' if obeys < ANSWERED else 'hardly depends on the picture'}. Raise epochs."
            )


def _partners(painter: Painter, examples: Examples, seed: int) -> Partners:
    """Return rows of training pictures with the patterns and masks that were drawn for them."""
    rows = rng.choose(seed, "attacks/input-aware/partners", examples.rows, PARTNERS)
    with torch.inference_mode():
        images = torch.from_numpy(examples.images[rows]).float() / 255
        images = seen(images, painter.shape)
        return rows, painter.pattern(images).numpy(), painter.mask(images).numpy()
