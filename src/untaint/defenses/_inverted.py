"""A change of pictures that moves a few features, as a trigger does: found by its slope, for one class of a trained model (after Wang Z., Mei, Ding, Zhai and Ma, 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.defenses._perturbed import parts
from untaint.errors import InputError, SpecError
from untaint.models.build import head_of
from untaint.models.inserting import BEFORE_POOL, layer_named, tensor_of
from untaint.training.device import keyed
from untaint.training.pixels import PixelStore
from untaint.training.tuning import Clean

__all__ = ["Bounds", "Change", "Inverted", "capped", "inverted", "tapped"]

MOST = 500  # clean pictures that are looked at for one class
RATE, MASK_RATE = 0.01, 0.02  # of Adam
WIDTH, MAPS = 8, 4  # channels of the change, and maps of places that it is given
COST = 10.0  # of what is beyond a bound, in parts of the bound
FAINT = 0.1  # of the spread of all features: one that varies less is taken to vary as much
HALVINGS = 30  # of the interval in which a level is sought


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a change is held to. ``distance``: how much pixels change on average, in parts of full brightness. ``spread``: by how many of their standard deviations in clean pictures the masked features differ between changed ones. ``mask``: the sum of the mask, as a share of all features."""

    distance: float
    spread: float
    mask: float


class Change(nn.Module):
    """A change of pictures, at first none: a pattern is added, and what three small convolutions make of a picture and of where each pixel lies. Float32 (batch, channels, height, width) in [0, 1], as are those given."""

    def __init__(self, size: tuple[int, int, int]) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, MAPS, *size[1:]) / 2)
        self.pattern = nn.Parameter(torch.zeros(1, *size))
        self.layers = nn.Sequential(
            nn.Conv2d(size[0] + MAPS, WIDTH, 3, padding=1),
            nn.ELU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ELU(),
            nn.Conv2d(WIDTH, size[0], 3, padding=1),
        )
        last = self.layers[-1]
        for weights in last.parameters():
            nn.init.zeros_(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return changed pictures; what would be beyond black or white is cut off, but its slope is not."""
        places = self.places.expand(len(images), -1, -1, -1)
        changed: Tensor = images + self.layers(torch.cat([images, places], dim=1)) + self.pattern
        return changed + (changed.clamp(0, 1) - changed).detach()


@dataclass(frozen=True, eq=False)
class Inverted:
    """What was found for the class ``label``: a ``change`` of pictures, and a ``mask`` of features, in [0, 1].

    ``replaced``: which share of clean pictures of other classes is taken for it with the masked features replaced by what they are on average in changed pictures; ``changed``: which share is when it is changed; ``success``: which share is both times.
    """

    label: int
    change: Change
    mask: Tensor
    replaced: float = 0.0
    changed: float = 0.0
    success: float = 0.0


class Tap:
    """Where a model's features pass by: ``latest`` holds those of the latest pass, and ``mix``, if there is one, says what goes on in their place."""

    latest: Tensor
    mix: Callable[[Tensor], Tensor] | None = None

    def passed(self, features: Tensor) -> Tensor:
        """Keep the features and return what goes on."""
        self.latest = features
        return features.clone() if self.mix is None else self.mix(features)  # later layers may work in place


@contextmanager
def tapped(model: nn.Module, at: str) -> Iterator[Tap]:
    """Give the tap behind the layer ``at``; before the last linear layer if that is ``before-pool`` and where the model pools is not known."""
    tap = Tap()
    try:
        name, layer = layer_named(model, at)
    except SpecError:
        head = head_of(model)
        if at != BEFORE_POOL or head is None:
            raise
        handle = head.register_forward_pre_hook(lambda _, given: (tap.passed(given[0]),))
    else:
        handle = layer.register_forward_hook(lambda _, __, out: tap.passed(tensor_of(out, name)))
    try:
        yield tap
    finally:
        handle.remove()


def inverted(
    model: nn.Module, clean: Clean, label: int, at: str, bounds: Bounds, *, steps: int, batch: int
) -> Inverted:
    """Return the change and the mask found by which clean pictures of other classes are most surely taken for a class, within the bounds.

    ``model``: in eval mode; its weights are left alone. Raises InputError if its features are not finite.
    """
    rows = rng.choose(clean.seed, "feature-re/shown", clean.examples.rows[clean.labels != label], MOST)
    store = PixelStore(clean.examples, clean.where)
    with keyed(clean.where, clean.seed, "feature-re", label), tapped(model, at) as tap:
        change = Change(clean.examples.images.shape[1:]).to(clean.where)
        seen = _features(model, tap, store, rows if len(rows) else clean.examples.rows[:1])
        mask = torch.full_like(seen[0], bounds.mask)
        if len(rows) < 2:  # there is nothing that could be taken for it
            return Inverted(label, change, mask)
        weights = [*change.parameters(), mask.requires_grad_()]
        groups: list[dict[str, Any]] = [{"params": weights[:-1]}, {"params": [mask], "lr": MASK_RATE}]
        optimizer = torch.optim.Adam(groups, lr=RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps)))
        usual = _usual(seen)
        for places in _turns(len(rows), steps, batch, rng.derive(clean.seed, "feature-re", label)):
            images = store.gather(rows[places])[0]
            own = seen[torch.from_numpy(places).to(clean.where)]
            shown = change(images)
            tap.mix = lambda latest, own=own: torch.lerp(own, latest.mean(dim=0, keepdim=True), mask)
            told = model(shown).float()
            wanted = torch.full((len(images),), label, device=images.device)
            held = mask.detach()
            spread = (held * tap.latest.std(dim=0) / usual).sum() / held.sum().clamp_min(1e-6)
            distance = (shown - images).abs().mean()
            beyond = (distance / bounds.distance - 1).relu() + (spread / bounds.spread - 1).relu()
            slopes = torch.autograd.grad(nn.functional.cross_entropy(told, wanted) + COST * beyond, weights)
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = slope
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                mask.copy_(capped(mask, bounds.mask * mask.numel()))
        return _judged(model, tap, store, rows, Inverted(label, change.requires_grad_(False), mask.detach()))


def capped(values: Tensor, total: float) -> Tensor:
    """Return the nearest values in [0, 1] whose sum is ``total`` at most."""
    least, most = torch.zeros_like(values.max()), values.max().clamp_min(0)
    for _ in range(HALVINGS):  # by how much all are lowered
        middle = (least + most) / 2
        beyond = (values - middle).clamp(0, 1).sum() > total
        least, most = torch.where(beyond, middle, least), torch.where(beyond, most, middle)
    within = values.clamp(0, 1)
    return torch.where(within.sum() > total, (values - most).clamp(0, 1), within)


def _usual(seen: Tensor) -> Tensor:
    """Return by how much each feature varies in clean pictures, and a little."""
    usual = seen.std(dim=0)
    return usual + FAINT * usual.square().mean().sqrt() + torch.finfo(usual.dtype).tiny


def _turns(count: int, steps: int, batch: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Give so many batches of the numbers below ``count``, all in turn, in an order that changes each time."""
    times = max(1, count // max(2, min(batch, count)))
    for turn in range(-(-steps // times)):
        order = rng.order(seed, "turn", turn, np.arange(count))
        yield from np.array_split(order, times)[: steps - turn * times]


def _features(model: nn.Module, tap: Tap, store: PixelStore, rows: NDArray[np.int64]) -> Tensor:
    found = []
    with torch.no_grad():
        for block in parts(rows, store.images.shape):
            model(store.gather(block)[0])
            found.append(tap.latest.float())
    seen = torch.cat(found)
    if not bool(torch.isfinite(seen).all()):
        raise InputError("the model's features are not finite numbers. Train it with a lower learning rate.")
    return seen


def _judged(model: nn.Module, tap: Tap, store: PixelStore, rows: NDArray[np.int64], found: Inverted) -> Inverted:
    """Return what was found, and how often it works on these pictures."""
    hits: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        tap.mix, total = None, torch.zeros_like(found.mask)
        for block in parts(rows, store.images.shape):
            hits[0].append(model(found.change(store.gather(block)[0])).argmax(dim=1) == found.label)
            total += tap.latest.float().sum(dim=0)
        tap.mix = lambda latest: torch.lerp(latest, total[None] / len(rows), found.mask)
        for block in parts(rows, store.images.shape):
            hits[1].append(model(store.gather(block)[0]).argmax(dim=1) == found.label)
    changed, replaced = (torch.cat(each) for each in hits)
    shares = [float(each.float().mean()) for each in (replaced, changed, replaced & changed)]
    return Inverted(found.label, found.change, found.mask, *shares)
