"""What detectors share that look at the undefended model's answers to altered pictures, or the altered model's to pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from untaint.defenses.base import UNDEFENDED, Task
from untaint.errors import InputError, SpecError
from untaint.models.build import head_of
from untaint.training.device import device
from untaint.training.loop import blocks
from untaint.training.pixels import PixelStore

__all__ = [
    "above_probes",
    "above_probes_by_deviation",
    "beside",
    "finite",
    "likely",
    "need_probes",
    "parts",
    "reference",
    "scaling_layers",
]

PIXELS = 500 * 64 * 64  # that pass through a model at once, at most
LEAST = 1e-9  # of a value, or of all: what varies less does not vary


def reference(task: Task) -> tuple[nn.Module, PixelStore]:
    """Return the undefended model, in eval mode and with its weights held, and the pictures, both on the task's device."""
    place = task.where or device()
    task.reference()
    model = task.load(UNDEFENDED).to(place).eval().requires_grad_(False)
    return model, PixelStore(task.examples, place)


def beside(task: Task, name: str, probes: NDArray[np.int64] | None = None) -> Path:
    """Return a folder beside the undefended model, which may be shared, for what ``name`` says; it is named after the probes, too, where they are given.

    Trains the model if it is not there.
    """
    place = task.reference().resolve()
    which = "" if probes is None else "-" + hashlib.sha256(np.ascontiguousarray(probes).tobytes()).hexdigest()[:12]
    return place.with_name(f"{place.name}-{name}{which}")


def need_probes(task: Task, name: str, fewest: int) -> None:
    """Raise SpecError where there are fewer probes than a detector cannot do without."""
    if len(task.probes) < fewest:
        raise SpecError(
            f"{name} needs at least {fewest} pictures that are known to be clean, and has {len(task.probes)}. "
            "Give --probes; `untaint probes DATA` makes candidates."
        )


def parts(rows: NDArray[np.int64], size: tuple[int, ...], most: int = PIXELS) -> Iterator[NDArray[np.int64]]:
    """Return the rows in blocks of which each passes through a model at once: ``most`` rows, and the fewer the larger the pictures are (``size``: ..., height, width)."""
    most = max(1, min(most, PIXELS // (size[-2] * size[-1])))
    return (block[start : start + most] for block in blocks(rows) for start in range(0, len(block), most))


def likely(model: nn.Module, images: Tensor) -> Tensor:
    """Return the probability of each class: float32 (batch, classes)."""
    logits: Tensor = model(images)
    return logits.float().softmax(dim=1)


def finite(values: Tensor) -> NDArray[np.float32]:
    """Return numbers that came of a model's answers as an array; raises InputError if one of them is not finite."""
    found: NDArray[np.float32] = values.cpu().numpy()
    if not np.isfinite(found).all():
        raise InputError("the undefended model's answers are not finite numbers. Train it with a lower learning rate.")
    return found


def scaling_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of batch normalisation, in the model's order; where there are none those of any normalisation, and where there are none all with weights but the head."""
    batch = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.affine]
    others = [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm) and layer.weight is not None
    ]
    head = head_of(model)
    weights = [layer for layer in model.modules() if isinstance(layer, nn.Linear | _ConvNd) and layer is not head]
    return list(batch or others or weights)


def above_probes(values: NDArray[np.floating], probes: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """Return where values lie on a scale of the probes': 0 at their median, 1 where only a ``share`` of them is above.

    Probes are measured by the others. Where nothing varies, and for a probe that is alone, it is 0.
    """
    known = np.sort(values[probes].astype(np.float64))
    middle, level = np.quantile(known, [0.5, 1 - share])
    found = _between(values.astype(np.float64), middle, level)
    found[probes] = 0.0
    if len(known) > 1:
        rank = np.argsort(np.argsort(values[probes], kind="stable"), kind="stable")
        others = [_quantile_without(known, rank, at) for at in (0.5, 1 - share)]
        found[probes] = _between(values[probes].astype(np.float64), *others)
    return found


def above_probes_by_deviation(
    values: NDArray[np.floating], probes: NDArray[np.int64], least: float = 0.0
) -> NDArray[np.float64]:
    """Return by how many of the probes' deviations, each at least ``least``, values lie above their mean.

    Probes are measured by the others. Where nothing varies, and for a probe with fewer than two others, it is 0.
    """
    known, count = values[probes].astype(np.float64), len(probes)
    if count < 2:
        return np.zeros(len(values))
    found = _between(values.astype(np.float64), known.mean(), known.mean() + max(known.std(ddof=1), least))
    found[probes] = 0.0
    if count > 2:
        mean = (known.sum() - known) / (count - 1)
        squares = ((known - known.mean()) ** 2).sum() - (known - known.mean()) ** 2 * count / (count - 1)
        found[probes] = _between(known, mean, mean + np.maximum(np.sqrt(np.maximum(squares, 0) / (count - 2)), least))
    return found


def _between(values: NDArray[np.float64], zero: Any, one: Any) -> NDArray[np.float64]:
    apart = np.where(one - zero > LEAST * np.abs(one), one - zero, 0)
    return np.asarray(np.where(apart > 0, (values - zero) / np.where(apart > 0, apart, 1), 0))


def _quantile_without(known: NDArray[np.float64], rank: NDArray[np.int64], at: float) -> NDArray[np.float64]:
    """Return the quantile of sorted values without the one of each rank: (ranks,)."""
    place = (len(known) - 2) * at
    low, high = int(np.floor(place)), int(np.ceil(place))
    lower = np.where(low < rank, known[low], known[low + 1])
    upper = np.where(high < rank, known[high], known[high + 1])
    return np.asarray(lower + (place - low) * (upper - lower))
