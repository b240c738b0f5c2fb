"""``repair``: a trained network made to overlook the triggers that it has learned, from nothing but the pictures that it was trained on.

A trigger is one of the few things in a picture that say nothing of the rest of it: who has it was decided by an attacker. So it is an independent
component of what the network sees, and unlike a class's own marks it parts the pictures of its class in two groups: those that have it, which look like other
classes, and those that do not. Components that do are looked for, and taken out of those pictures alone that have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint import rng
from untaint.errors import InputError
from untaint.examples import Examples
from untaint.models.gate import Gate, TriggerGate
from untaint.models.inserting import BEFORE_POOL, Behind, layer_named
from untaint.progress import Progress, Silent
from untaint.training.checkpoint import save_gated
from untaint.training.components import Independent, Rare, independent, rare
from untaint.training.features import layer_features
from untaint.training.likeness import Likeness

__all__ = ["Component", "Repaired", "repair", "save_repaired"]

APART = 4.0  # deviations; more where those that have it look no more like other classes than the rest
FEW = 10  # pictures
LEAST, PER_CLASS = 50, 2  # components looked for: so many, and so many for each class
ROUNDS = (1, 1, 2, 2)  # and so many times as many, one round after the other, each on what the last left
MEMORY = 2**30  # bytes of features; of more pictures some are drawn


@dataclass(frozen=True, kw_only=True, eq=False)
class Component:
    """What a gate takes out: some ``rows`` of class ``label`` have it, and ``others`` of the other classes; ``apart``: how far from those that do not, in deviations."""

    label: int
    rows: NDArray[np.int64]
    others: int
    apart: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Repaired:
    """``model``: a copy with a TriggerGate behind the layer called ``layer``; ``components``: what the gate takes out, in its order; ``looked_at``: how many pictures were."""

    model: nn.Module
    layer: str
    components: tuple[Component, ...]
    looked_at: int


def repair(
    model: nn.Module,
    examples: Examples,
    at: str = BEFORE_POOL,
    *,
    apart: float = APART,
    components: int | None = None,
    by_lot: bool = False,
    seed: int = 0,
    where: torch.device | None = None,
    progress: Progress | None = None,
) -> Repaired:
    """Return a copy of a trained model that overlooks triggers, and what it overlooks; nothing is trained, and no picture need be known to be clean.

    ``model``: any network that takes float pictures (batch, channels, height, width) in [0, 1]. ``examples``: what it was trained on, with
    its labels. ``at``: the layer behind which is looked, as for ``insert_eigenguard``. ``apart``: from how many deviations on the pictures of a class
    count as two groups. ``components``: how many are looked for at first; two for each class, and 50 at least, if not given. Of very many
    pictures, some are drawn by the seed. ``by_lot``: a control, in which as many components are drawn by the seed instead, each taken out of as many pictures of the same class.

    Raises SpecError for a layer that there is not, InputError for options out of range, where there is no picture, and for features that are not finite.
    """
    if not apart > 0 or not np.isfinite(apart):
        raise InputError(f"apart is {apart}. Give more than 0: how far two groups are apart, in deviations.")
    if components is not None and components < 1:
        raise InputError(f"components is {components}. Give at least 1.")
    told = progress or Silent()
    repaired = Gate(at=at).put_into(model)
    name, gated = layer_named(repaired, at)
    assert isinstance(gated, Behind)
    assert isinstance(gated.added, TriggerGate)
    some = examples.take(_looked_at(repaired, examples, name, seed, where))
    features = layer_features(repaired, some, name, where=where, progress=told)
    if not np.isfinite(features).all():
        bad = np.count_nonzero(~np.isfinite(features).all(axis=1))
        raise InputError(
            f"what {name} gives is not finite for {bad:,} of {len(some):,} pictures. Give a model whose training went well."
        )
    labels = np.asarray(some.labels)[some.rows]
    first = components or max(LEAST, PER_CLASS * len(examples.class_names))
    found: list[Component] = []
    company = Likeness(some)
    gate = gated.added.cpu()
    whole = features.copy() if by_lot else features
    with told.step("look for components", len(ROUNDS), unit="rounds") as step:
        for times in ROUNDS:
            for component in _round(features, labels, first * times, apart, seed, gate, company):
                found.append(component)
            step.advance(1)
    if by_lot:
        gate = gated.added = TriggerGate()
        found = _drawn_instead(found, whole, labels, first, seed, gate)
    found = [Component(**{**vars(component), "rows": some.rows[component.rows]}) for component in found]
    gate.to(next((tensor.device for tensor in repaired.parameters()), torch.device("cpu")))
    return Repaired(model=repaired.eval(), layer=name, components=tuple(found), looked_at=len(some))


def save_repaired(repaired: Repaired, source: Path, out: Path) -> None:
    """Write a repaired model's folder as that of the model is that was loaded from ``source``; ``untaint.load_model`` gives it back."""
    save_gated(out, repaired.model, repaired.layer, source)


def _looked_at(
    model: nn.Module, examples: Examples, at: str, seed: int, where: torch.device | None
) -> NDArray[np.int64]:
    """Return the rows that are looked at: all, or as many as there is memory for."""
    if not len(examples):
        raise InputError("there is no picture to look at. Give at least one.")
    width = layer_features(model, examples.take(examples.rows[:1]), at, where=where).shape[1]
    return rng.choose(seed, "repair", examples.rows, max(1, min(len(examples), MEMORY // (4 * width))))


def _round(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    k: int,
    apart: float,
    seed: int,
    gate: TriggerGate,
    company: Likeness,
) -> list[Component]:
    """Look for components once, add them to the gate and take them out of ``features``, which is changed."""
    made = independent(features, k, seed)
    taken = (_taken_out(one, made, features, labels, gate) for one in rare(made.values, labels, apart, FEW, company))
    return [component for component in taken if component is not None]


def _taken_out(
    one: Rare, made: Independent, features: NDArray[np.float32], labels: NDArray[np.int64], gate: TriggerGate
) -> Component | None:
    """Add a component to the gate and take it out of ``features``, which is changed; None where it was taken out with another."""
    reading = made.reading[one.component]
    level = float(made.mean @ reading)
    scores = features @ reading - level
    has = scores > one.cut
    if not has.any() or has.all():
        return None
    rest = float(np.median(scores))
    change = features[has].mean(axis=0) - features[~has].mean(axis=0)
    change /= max(float(scores[has].mean() - scores[~has].mean()), 1e-12)
    cut = (one.cut + rest) / 2
    features -= np.where(scores > cut, scores - rest, 0)[:, None].astype(np.float32) * change
    gate.add(torch.from_numpy(reading), level, rest, cut, torch.from_numpy(change))
    own = has & (labels == one.label)
    return Component(label=one.label, rows=np.flatnonzero(own), others=int((has & ~own).sum()), apart=one.apart)


def _drawn_instead(
    found: list[Component],
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    k: int,
    seed: int,
    gate: TriggerGate,
) -> list[Component]:
    """Take out as many components drawn by lot, each by a cut that as many pictures of the same class are above."""
    made = independent(features, max(k, len(found)), seed)
    lot = rng.order(seed, "repair/lot", 0, np.arange(made.values.shape[1]))
    drawn = []
    for one, number in zip(found, lot.tolist(), strict=False):
        own = np.sort(made.values[labels == one.label, number])
        cut, above = float(own[max(0, len(own) - len(one.rows) - 1)]), len(one.rows)
        drawn.append(_taken_out(Rare(number, one.label, one.apart, cut, above, 0), made, features, labels, gate))
    return [component for component in drawn if component is not None]
