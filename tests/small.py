"""Small pictures and recipes for tests of training: seconds, one core."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
import torch
from torch import nn

from untaint import Examples, Recipe
from untaint.defenses import Task
from untaint.progress import Silent
from untaint.recipe import Preset
from untaint.scores import Fraction

RECIPE = Recipe(epochs=3, batch=16, learning_rate=0.05, precision="float32")


def pictures(count: int = 60, classes: int = 3, side: int = 8, channels: int = 3, seed: int = 0) -> Examples:
    """Pictures of which each class is brighter in a place of its own."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = generator.normal(100, 40, (count, channels, side, side))
    for label in range(classes):
        images[labels == label, :, label * 2 : label * 2 + 2] += 80
    return Examples.of(images.clip(0, 255).astype(np.uint8), labels)


def preset(detector: str = "cross-examination", reject: str = "fraction:share=0.1", **changes: object) -> Preset:
    recipe = replace(RECIPE, **changes)
    augmented = replace(recipe, augment="crop-flip")
    return Preset(name="small", detector=detector, reject=reject, watch=recipe, witness=augmented, retrain=augmented)


def task(scratch, examples: Examples, probes=(), *, kind: type[Task] = Task, **changes: object) -> Task:
    """The task that a defence is given, on the processor; ``changes`` are of the recipe, or of what else the task has."""
    own = {field.name for field in fields(kind)} - {field.name for field in fields(Recipe)}
    of_task = {name: changes.pop(name) for name in own & set(changes)}
    settled = {"preset": preset(**changes), "rule": Fraction(0.1), "seed": 0, "progress": Silent()}
    settled["where"] = torch.device("cpu")
    probes = np.array(probes, dtype=np.int64)
    return kind(examples=examples, probes=probes, scratch=scratch, **{**settled, **of_task})


class WithDropout(nn.Module):
    """Somebody's own network, which draws at random while it trains."""

    def __init__(self, classes: int = 3, side: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(3 * side * side, 16)
        self.dropout = nn.Dropout(0.5)
        self.outer = nn.Linear(16, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.outer(self.dropout(torch.relu(self.inner(images.flatten(1)))))


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.remarks: list[str] = []

    def say(self, remark):
        self.remarks.append(remark)


class Stopping:
    """A Progress that raises after so many advances: a crash, or Ctrl-C, in the middle of an epoch."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.left, self.error = after, error
        self.remarks: list[str] = []
        self.steps: list[tuple[str, int, int]] = []
        self.advanced = 0

    @contextmanager
    def step(self, what, total, done=0, unit="images"):
        self.steps.append((what, total, done))
        yield self

    def advance(self, count, note=""):
        self.advanced += count
        self.left -= 1
        if self.left == 0:
            raise self.error

    def say(self, remark):
        self.remarks.append(remark)


def contents(folder, *, without: tuple[str, ...] = ("cost.json",)) -> dict[str, bytes]:
    """All files below a folder, by their paths, except those that no two runs have in common."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }
