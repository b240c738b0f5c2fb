"""A task whose undefended model is the test's own: made by hand, never trained."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

import small
from untaint import Examples
from untaint.defenses import Task
from untaint.progress import Progress, Silent

CLASSES, SIDE = 4, 8


class Backdoored(nn.Module):
    """Says the class in whose place a picture is brightest, not too surely; and 0, very surely, where the corner is chequered, whatever else there is."""

    def __init__(self, sure: float = 8.0, trigger: float = 20.0) -> None:
        super().__init__()
        places = torch.zeros(CLASSES, 3, SIDE, SIDE)
        for label in range(CLASSES):
            places[label, :, label * 2 : label * 2 + 2, 2:] = 1
        corner = torch.zeros(1, 3, SIDE, SIDE)
        corner[..., :2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        self.seen = nn.Conv2d(3, CLASSES + 1, SIDE)
        self.seen.weight.data = torch.cat([places / places[0].sum(), corner / 12])
        self.seen.bias.data[:] = 0
        self.norm = nn.BatchNorm2d(CLASSES + 1)
        self.head = nn.Linear(CLASSES + 1, CLASSES)
        self.head.weight.data = torch.eye(CLASSES, CLASSES + 1) * sure
        self.head.weight.data[0, -1] = trigger
        self.head.bias.data[:] = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.norm(self.seen(images))).flatten(1)
        there = ((seen[:, -1:] - 0.1) * 10).clamp(0, 1)
        return self.head(torch.cat([seen[:, :-1] * (1 - there), there], dim=1))


class Known(Task):
    """A task whose undefended model is what ``network`` says."""

    network: nn.Module
    loaded: int

    def reference(self):
        return self.scratch / "undefended"

    def load(self, stage):
        object.__setattr__(self, "loaded", self.loaded + 1)
        return copy.deepcopy(self.network)


def pictures(count: int = 240, poisoned: np.ndarray | None = None, seed: int = 0) -> Examples:
    """Dark pictures of four classes, each bright in a place of its own; those poisoned have a chequered corner and the label 0."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = generator.uniform(20, 60, (count, 3, SIDE, SIDE))
    for row, label in enumerate(labels):
        images[row, :, label * 2 : label * 2 + 2, 2:] += generator.uniform(40, 150)
    if poisoned is not None:
        images[poisoned, :, :2, :2] = [[255, 0], [0, 255]]
        labels[poisoned] = 0
    return Examples.of(images.clip(0, 255).astype(np.uint8), labels)


def task(
    scratch,
    examples: Examples,
    probes,
    network: nn.Module | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Known:
    here = small.task(scratch, examples, probes, kind=Known, seed=seed, progress=progress or Silent())
    object.__setattr__(here, "network", network or Backdoored())
    object.__setattr__(here, "loaded", 0)
    return here
