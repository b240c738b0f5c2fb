"""DFST: every picture in another style, by a small network (Cheng, Liu, Ma and Zhang, 2021)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng, run
from untaint.attacks._generated import added
from untaint.attacks._kept import Arrays, Computed, restored, shape_in, weights
from untaint.attacks._style import Generator, distances, figures, layers_of, shown, styled
from untaint.attacks._surrogate import place, surrogate, tensors_once
from untaint.attacks.base import Card
from untaint.errors import SpecError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.recipe import preset
from untaint.training.device import keyed
from untaint.training.pixels import PixelStore

__all__ = ["Dfst"]

MOST = 10_000  # pictures that the generator learns from
TRIED = 500  # pictures on which it is tried
BATCH = 32
RATE = 3e-3
ENOUGH = 0.5  # of the distance from the style may be left
LEAST = 1e-5  # a distance or a variance that is less counts as so much


@dataclass(frozen=True, kw_only=True)
class Dfst(Computed):
    """The same content in the style of another picture: a generator learns to give pictures that style's figures.

    A surrogate is trained for ``epochs``. Then a small network learns for ``style_epochs`` what to add to a picture, so that mean and spread of
    each channel, of the pixels and of the surrogate's first three layers, become those of the style (Huang and Belongie, 2017), while what comes out of the fourth stays
    as it is; ``content`` says how much the latter counts. ``style``: ``sunset``, drawn here, or a picture file.

    This is the paper's trigger alone, and made with less: the paper trains a CycleGAN on many pictures of sunsets, here is one picture
    and no adversary. Its controlled detoxification, which trains the victim's model itself, is left out: this attacker poisons data only.
    What was computed is kept in the cache folder.
    """

    rate: float | None = 0.02
    style: str = "sunset"
    content: float = 1.0
    epochs: int = 6
    style_epochs: int = 4
    generator: Generator | None = field(init=False, repr=False, compare=False, default=None)

    computed: ClassVar[str] = "generator"
    files: ClassVar[tuple[str, ...]] = ("style", "trigger_file")
    card: ClassVar[Card | None] = Card(
        paper="Cheng, Liu, Ma and Zhang: Deep feature space trojan attack of neural networks by controlled detoxification, AAAI 2021",
        visible="yes",
        psnr=17,
        ssim=0.86,
        per_picture=True,
        needs="a surrogate and a generator trained on the clean pictures",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        for name in ("epochs", "style_epochs"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not 0 <= self.content < float("inf"):
            raise SpecError(f"content is {self.content}; give a number of at least 0, such as 1.")
        styled(self.style, 3, 1, 1)  # says at once if there is no such file

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with a generator that learned from these (clean) pictures."""
        if self.generator is not None:
            return self
        told = progress or Silent()
        recipe = dataclasses.replace(preset("fast").retrain, epochs=self.epochs)

        def taught() -> dict[str, Tensor]:
            few = examples.take(rng.choose(seed, "attacks/dfst/pictures", examples.rows, MOST))
            return self._taught(surrogate(examples, recipe, "dfst", seed, told), few, seed, told).state_dict()

        drawn = "" if self.style == "sunset" else f"-{run.digest(Path(self.style))[:16]}"
        path = place("dfst", self, examples, recipe, seed, f"{drawn}.safetensors")
        generator = Generator(_shape(examples))
        generator.load_state_dict(tensors_once(path, taught))
        made = dataclasses.replace(self)
        object.__setattr__(made, "generator", generator.eval())
        return made

    def arrays(self) -> Arrays:
        """Return the weights of the generator."""
        assert self.generator is not None
        return weights(self.generator, self.generator.shape)

    def restore(self, arrays: Arrays) -> None:
        """Take the weights of the generator."""
        object.__setattr__(self, "generator", restored(Generator(shape_in(arrays)), arrays))

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures in the other style."""
        del rows
        if self.generator is None:
            raise SpecError("dfst has no generator yet. Compute it first: attack.ready(examples).")
        return added(images, self.generator, self.generator.shape)

    def _taught(self, model: nn.Module, examples: Examples, seed: int, progress: Progress) -> Generator:
        """Return a generator that learned to give these pictures the style; says so where it did not."""
        where, shape = next(model.parameters()).device, _shape(examples)
        store, model = PixelStore(examples, where), model.requires_grad_(False)
        goal = figures(layers_of(model, torch.from_numpy(styled(self.style, *shape)[None]).float().to(where)))
        some = store.gather(rng.choose(seed, "attacks/dfst/tried", examples.rows, TRIED))[0]
        before = distances(layers_of(model, some), goal).clamp_min(LEAST)
        with keyed(where, seed, "attacks/dfst/weights"):
            generator = Generator(shape).to(where)
        optimizer = torch.optim.Adam(generator.parameters(), RATE)
        with progress.step("learn the style", self.style_epochs * len(examples)) as step:
            for epoch in range(self.style_epochs):
                order = rng.order(seed, "attacks/dfst/batch", epoch, examples.rows)
                for rows in np.array_split(order, -(-len(order) // BATCH)):
                    clean = store.gather(rows)[0]
                    wanted = layers_of(model, clean)[-1]
                    layers = layers_of(model, shown(generator, clean))
                    strange = (layers[-1] - wanted).square().mean() / wanted.var().clamp_min(LEAST)
                    loss = (distances(layers, goal) / before).mean() + self.content * strange
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    step.advance(len(rows))
        with torch.inference_mode():
            left = float((distances(layers_of(model, shown(generator, some)), goal) / before).mean())
        if left > ENOUGH:
            progress.say(
                f"dfst: {left:.0%} of the distance from the style is left, so that the trigger will be weak. Raise style_epochs or lower content."
            )
        return generator


def _shape(examples: Examples) -> tuple[int, int, int]:
    channels, height, width = examples.images.shape[1:]
    return channels, height, width
