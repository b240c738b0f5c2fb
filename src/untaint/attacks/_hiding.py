"""How what shows the class of a picture is hidden, so that a network must go by something else (Turner, Tsipras and Madry, 2019)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.attacks._networks import Batch, minimise, seen, working_size
from untaint.examples import Examples
from untaint.progress import Progress
from untaint.recipe import Recipe
from untaint.training.device import device, keyed
from untaint.training.pixels import PixelStore

__all__ = ["Autoencoder", "adversarial", "interpolated", "recognised"]

BATCH = 125
STEP = 2.5  # times epsilon, over all steps (Madry et al., 2018)
CODES = Recipe(batch=50, epochs=12, optimizer="adamw", learning_rate=2e-3, weight_decay=0.0, precision="float32")


def adversarial(
    model: nn.Module, target: Examples, epsilon: float, steps: int, progress: Progress
) -> NDArray[np.int16]:
    """Return what to add to each picture for the model to recognise it least, ``epsilon`` levels at most: (pictures, channel, height, width)."""
    where = next(model.parameters()).device
    store, limit, found = PixelStore(target, where), epsilon / 255, []
    with progress.step("hide what shows the class", len(target), unit="images") as step:
        for start in range(0, len(target), BATCH):
            images, labels = store.gather(target.rows[start : start + BATCH])
            noise = torch.zeros_like(images)
            for _ in range(steps):
                noise.requires_grad_(True)
                (slope,) = torch.autograd.grad(-_lead(model, images + noise, labels).sum(), noise)
                noise = (noise.detach() + STEP * limit / steps * slope.sign()).clamp(-limit, limit)
            found.append(_levels(noise))
            step.advance(len(labels))
    return np.concatenate(found)


def interpolated(
    examples: Examples, target: Examples, tau: float, name: str, seed: int, progress: Progress
) -> NDArray[np.int16]:
    """Return what to add to each picture for it to be what an autoencoder draws ``tau`` of the way to one of another class: (pictures, channel, height, width).

    ``examples``: what the autoencoder is trained on, and where the others are drawn from; ``target``: pictures of one class. At the working size, 64 pixels a side at most.
    """
    shape, where = working_size(examples.images.shape[1:]), device()
    with keyed(torch.device("cpu"), seed, f"attacks/{name}/weights"):
        coder = Autoencoder(shape)
    coder = copy.deepcopy(coder).to(where)

    def loss(batch: Batch) -> Tensor:
        lost: Tensor = (coder(batch.images) - batch.images).square().mean()
        return lost

    optimizer = torch.optim.Adam(coder.parameters(), lr=CODES.learning_rate)
    minimise(loss, [optimizer], examples, CODES, name, seed, progress, "train an autoencoder")
    others = examples.rows[examples.labels[examples.rows] != target.labels[target.rows[0]]]
    drawn = rng.uniform(seed, f"attacks/{name}/partner", 0, target.rows)[:, 0]
    partners = others[(drawn * len(others)).astype(np.int64)]
    store, found = PixelStore(examples, where), []
    with torch.inference_mode():
        for start in range(0, len(target), BATCH):
            own, other = (seen(store.gather(rows[start : start + BATCH])[0], shape) for rows in (target.rows, partners))
            between = (1 - tau) * coder.encoder(own - 0.5) + tau * coder.encoder(other - 0.5)
            found.append(_levels(coder.drawn(between) - own))
    return np.concatenate(found)


class Autoencoder(nn.Module):
    """Pictures in [0, 1] of ``shape`` (channel, height, width), through a code of an eighth of their side and 64 channels."""

    def __init__(self, shape: tuple[int, int, int], width: int = 24) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = nn.Sequential(
            *(nn.Conv2d(shape[0], width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU()),
            nn.Conv2d(2 * width, 64, 3, stride=2, padding=1),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(64, 2 * width, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            nn.Conv2d(width, shape[0], 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return pictures of the same shape, in [0, 1] but for what overshoots."""
        return self.drawn(self.encoder(images - 0.5))

    def drawn(self, codes: Tensor) -> Tensor:
        """Return the picture of each code."""
        decoded: Tensor = self.decoder(codes)
        return decoded[:, :, : self.shape[1], : self.shape[2]] + 0.5


def recognised(model: nn.Module, target: Examples, levels: NDArray[np.int16]) -> tuple[float, float]:
    """Return the shares of pictures that the model takes for their class, as they are and with these levels added."""
    store, counts = PixelStore(target, next(model.parameters()).device), np.zeros(2)
    with torch.inference_mode():
        for start in range(0, len(target), BATCH):
            images, labels = store.gather(target.rows[start : start + BATCH])
            added = torch.from_numpy(levels[start : start + BATCH].astype(np.float32)).to(images.device) / 255
            added = nn.functional.interpolate(added, size=images.shape[2:], mode="bilinear")
            for number, shown in enumerate((images, images + added)):
                counts[number] += int((_lead(model, shown, labels) > 0).sum())
    before, after = (counts / len(target)).tolist()
    return before, after


def _lead(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the logit of its class is above all others, for each picture."""
    logits = model(images.clamp(0, 1))
    own = nn.functional.one_hot(labels, logits.shape[1]).bool()
    lead: Tensor = logits[own] - logits.masked_fill(own, -torch.inf).amax(1)
    return lead


def _levels(noise: Tensor) -> NDArray[np.int16]:
    levels: NDArray[np.int16] = (255 * noise.detach()).round().clamp(-255, 255).to(torch.int16).cpu().numpy()
    return levels
