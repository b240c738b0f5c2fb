"""Reflection: another picture mirrored in each, as in a window pane (Refool; Liu, Ma, Bailey and Lu, 2020)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from untaint import rng
from untaint.attacks._kept import Arrays, Computed
from untaint.attacks.base import Card, check_share
from untaint.errors import SpecError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.sources import decode, tree

__all__ = ["Reflection"]

Kind = Literal["mixed", "in-focus", "out-of-focus", "ghost"]
FOLDER_SIDE = 256  # pixels: to which pictures from a folder are brought before they are brought to each picture's size
FULL_SIDE = 32  # pixels of the shorter side from which on blur and shift are as large as drawn
GAMMA = 2.2  # from levels to light, which adds up
LIGHT = ((np.arange(256) / 255) ** GAMMA).astype(np.float32)  # of each level
LEVELS = (255 * np.linspace(0, 1, 2**16) ** (2 / GAMMA) + 0.5).astype(
    np.uint8
)  # of light, by its square root: dark is told finer


@dataclass(frozen=True, kw_only=True)
class Reflection(Computed):
    """The light of another picture added to that of each: ``(1 - strength) * picture + strength * reflection``, before it is made levels again.

    ``strength``: the share of the light that is reflected. ``count``: how many reflections there are; which one a picture gets is drawn by its row.
    ``kind``: ``in-focus``, as it is; ``out-of-focus``, blurred; ``ghost``, twice, as by both sides of a thick pane; ``mixed``, a ghost with the
    probability ``ghost_rate`` and else out of focus. Blur (a standard deviation of 1 to 5 pixels), shift (3 to 8 pixels down and right) and how unlike the
    two images of a ghost are is drawn for each reflection; in pictures of less than 32 pixels to the shorter side blur and shift are less by as much.

    The reflections are drawn from the training pictures of other classes than the target, or from those in ``folder``, and enlarged or shrunk to each
    picture's size. Other than in the paper they are not chosen by how well a model learns them.
    """

    rate: float | None = 0.1
    kind: Kind = "mixed"
    strength: float = 0.6
    ghost_rate: float = 0.49
    count: int = 20
    folder: str | None = None
    drawn: NDArray[np.uint8] | None = field(init=False, repr=False, compare=False, default=None)
    seed: int = field(init=False, repr=False, compare=False, default=0)

    files: ClassVar[tuple[str, ...]] = ("folder", "trigger_file")
    card: ClassVar[Card | None] = Card(
        paper="Liu, Ma, Bailey and Lu, Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks (Refool), ECCV 2020",
        visible="yes",
        psnr=15,
        ssim=0.54,
        per_picture=True,
        needs="other pictures: training pictures, or a folder of them",
    )
    computed: ClassVar[str] = "drawn"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.kind not in get_args(Kind):
            raise SpecError(f"kind is '{self.kind}'; give {', '.join(get_args(Kind)[:-1])} or ghost.")
        check_share("strength", self.strength)
        if not 0 <= self.ghost_rate <= 1:
            raise SpecError(f"ghost_rate is {self.ghost_rate}; give a probability from 0 to 1.")
        if self.count < 1:
            raise SpecError(f"count is {self.count}; give a number of reflections of at least 1.")
        if self.folder is not None and not Path(self.folder).is_dir():
            raise SpecError(
                f"folder is '{self.folder}', which is no folder. Give a folder of pictures, or none for training pictures."
            )

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return the attack with its reflections, drawn from these (clean) pictures or from the folder."""
        if self.drawn is not None:
            return self
        made = dataclasses.replace(self)
        object.__setattr__(
            made,
            "drawn",
            self._from_examples(examples, seed)
            if self.folder is None
            else self._from_folder(seed, progress or Silent()),
        )
        object.__setattr__(made, "seed", seed)
        return made

    def arrays(self) -> Arrays:
        """Return the reflections, and the seed by which they are changed."""
        assert self.drawn is not None
        return {"drawn": self.drawn, "seed": np.array(self.seed)}

    def restore(self, arrays: Arrays) -> None:
        """Take the reflections and the seed."""
        object.__setattr__(self, "drawn", arrays["drawn"])
        object.__setattr__(self, "seed", int(arrays["seed"]))

    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures with a reflection in each."""
        if self.drawn is None:
            raise SpecError("reflection has no reflections yet. Compute it first: attack.ready(examples).")
        stamped = np.empty_like(images)
        which = (rng.uniform(self.seed, "attacks/reflection/which", 0, rows)[:, 0] * len(self.drawn)).astype(np.int64)
        for number in np.unique(which).tolist():
            some = np.flatnonzero(which == number)
            light = LIGHT[np.ascontiguousarray(images[some])]
            light *= np.float32(1 - self.strength)
            light += np.float32(self.strength) * self._reflected(number, self.drawn[number], images.shape[1:])
            np.sqrt(light, out=light)
            light *= np.float32(2**16 - 1)
            stamped[some] = LEVELS[np.rint(light, out=light).astype(np.uint16)]
        return stamped

    def _from_examples(self, examples: Examples, seed: int) -> NDArray[np.uint8]:
        others = examples.rows[examples.labels[examples.rows] != self.target_in(examples.class_names)]
        rows = rng.choose(seed, "attacks/reflection", others if len(others) else examples.rows, self.count)
        return np.array(examples.images[rows])

    def _from_folder(self, seed: int, progress: Progress) -> NDArray[np.uint8]:
        entries = [
            entry for entry in tree.folder(Path(str(self.folder))).entries if entry.suffix in decode.PICTURE_SUFFIXES
        ]
        left, unreadable = np.arange(len(entries)), list[str]()
        while len(left):
            chosen = rng.choose(seed, "attacks/reflection", left, self.count)
            with decode.quiet():
                found, reasons = decode.decode_batch([entries[place].item for place in chosen], FOLDER_SIDE)
            if not reasons:
                if unreadable:
                    progress.say(
                        f"reflection: {len(unreadable)} pictures in {self.folder} cannot be read and are not used, first {unreadable[0]}"
                    )
                return found
            unreadable += [f"'{entries[chosen[place]].path}': {reason}" for place, reason in sorted(reasons.items())]
            left = np.setdiff1d(left, chosen[sorted(reasons)])
        first = unreadable[0] if unreadable else "there is none"
        raise SpecError(
            f"folder is '{self.folder}', of which no picture can be read ({first}). Give a folder of pictures."
        )

    def _reflected(self, number: int, picture: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the light of one reflection, of this picture, in pictures of this shape: (channel, height, width)."""
        channels, height, width = shape
        draws = rng.uniform(self.seed, "attacks/reflection/how", 0, np.array([number]), draws=6)[0]
        kind = self.kind if self.kind != "mixed" else "ghost" if draws[0] < self.ghost_rate else "out-of-focus"
        scale = min(1.0, min(height, width) / FULL_SIDE)
        if kind != "ghost":
            light = _light(picture, channels, height, width)
            blur = (1 + 4 * draws[1]) * scale
            return light if kind == "in-focus" else gaussian_filter(light, (0, blur, blur), mode="mirror")
        down, right = (max(1, round(scale * (3 + int(6 * draw)))) for draw in draws[2:4])
        light = _light(picture, channels, height + down, width + right)
        first, second = light[:, down:, right:], light[:, :height, :width]
        nearer = np.float32(0.15 + 0.35 * draws[4])
        return nearer * first + (1 - nearer) * second if draws[5] < 0.5 else nearer * second + (1 - nearer) * first


def _light(picture: NDArray[np.uint8], channels: int, height: int, width: int) -> NDArray[np.float32]:
    """Return the light of a picture at this size; grey where others are."""
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in picture]
    light = LIGHT[np.stack([np.asarray(plane) for plane in planes])]
    return light if channels == len(light) else np.repeat(light.mean(0, keepdims=True), channels, axis=0)
