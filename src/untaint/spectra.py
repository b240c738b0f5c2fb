"""What a layer of a network sees in pictures with and without a trigger: singular spectra, effective rank, and where a trigger's energy lies.

    found = look(model, clean, shown, at="layer3")     # arrays
    draw(found, "spectrum.svg")                        # and a picture of them

    seen = []                                          # through a training
    ut.train(dirty, after_epoch=lambda model, epoch: seen.append(look(model, clean, shown, removed=(0,))))
    draw_through(seen, "training.svg")

The matrix looked at has a row for each picture, as EigenGuard's with ``matrix="flat"``. A backdoor is said to make its pictures alike in
a few strong directions (ICLR 2024, submission 4413); here that is measured, for triggered pictures by themselves and for a few of them among clean ones, as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import drawing, rng
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.models.inserting import BEFORE_POOL, layer_named
from untaint.progress import Progress, Silent
from untaint.training.device import device
from untaint.training.loop import blocks, predict
from untaint.training.pixels import PixelStore

__all__ = [
    "Shown",
    "Spectrum",
    "draw",
    "draw_through",
    "effective_rank",
    "energy_along",
    "layer_features",
    "look",
    "projected",
    "removing",
    "singular_values",
    "top_directions",
]

MOST = 1_000  # pictures of each kind that are looked at
SHARE = 0.05  # of triggered pictures among clean ones, where they are looked at as they come
REMOVED = (0, 1, 2, 5, 10, 20, 50, 100)  # so many of the strongest directions are taken out
DIRECTIONS = 100  # along which a trigger's energy is measured
SCATTERED = 150  # pictures of each kind in the picture
FAINT = 1e-12  # energy, of all


# --- mathematics on matrices of features: a row for each picture


def singular_values(features: NDArray[np.floating[Any]], centred: bool = False) -> NDArray[np.float64]:
    """Return the singular values of (rows, width), the largest first: float64, as many as the smaller side.

    ``centred``: of the features less their mean. Through the Gram matrix of the smaller side: values below 1e-8 of the largest are rounding.
    """
    table = _table(features, centred)
    gram = table @ table.T if table.shape[0] <= table.shape[1] else table.T @ table
    return np.asarray(np.sqrt(np.linalg.eigvalsh(gram)[::-1].clip(0)))


def effective_rank(values: NDArray[np.floating[Any]]) -> float:
    """Return how many equal singular values would be as spread out as these: from 1 to their number; 0 if all are 0.

    The exponential of the entropy of the values over their sum (Roy and Vetterli, 2007).
    """
    total = float(np.sum(values))
    if not total > 0:
        return 0.0
    share = np.asarray(values, dtype=np.float64) / total
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def top_directions(features: NDArray[np.floating[Any]], k: int, centred: bool = False) -> NDArray[np.float64]:
    """Return the ``k`` strongest right singular vectors of (rows, width), as rows of length one: fewer where the rank is lower."""
    if k < 1:
        raise InputError(f"k is {k}; give at least 1.")
    table = _table(features, centred)
    wide = table.shape[0] <= table.shape[1]
    values, vectors = np.linalg.eigh(table @ table.T if wide else table.T @ table)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    there = values > max(float(values.max(initial=0)), 0) * max(table.shape) * np.finfo(np.float64).eps
    values, vectors = values[there], vectors[:, there]
    return np.asarray((vectors.T @ table) / np.sqrt(values)[:, None] if wide else vectors.T)


def energy_along(features: NDArray[np.floating[Any]], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of the sum of squares of (rows, width) that lies along each direction, float64 (directions,); 0 where there is none.

    Of the differences between triggered and clean features of the same pictures this is where a trigger's energy lies.
    """
    table = np.asarray(features, dtype=np.float64)
    total = float(np.square(table).sum())
    if total <= FAINT:
        return np.zeros(len(directions))
    return np.asarray(np.square(table @ directions.T).sum(axis=0) / total)


def projected(
    features: NDArray[np.floating[Any]],
    directions: NDArray[np.float64],
    *,
    inside: bool = True,
    method: Literal["pca", "t-sne"] = "pca",
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return two coordinates for each row of (rows, width): of its part in the space of some directions, or of what is left outside of it.

    ``method``: the two strongest directions of that part, or scikit-learn's t-SNE of it (minutes for thousands of rows).
    """
    table = np.asarray(features, dtype=np.float64)
    part = table @ directions.T
    if not inside:
        part = table - part @ directions
    part = part - part.mean(axis=0)
    if method == "t-sne":
        from sklearn.manifold import TSNE

        near = min(30.0, (len(part) - 1) / 3)
        if part.shape[1] < 2:
            part = np.pad(part, ((0, 0), (0, 2 - part.shape[1])))
        return np.asarray(TSNE(perplexity=near, random_state=seed).fit_transform(part.astype(np.float32)), dtype=float)
    if method != "pca":
        raise SpecError(f"method is {method!r}. Give 'pca' or 't-sne'.")
    along = top_directions(part, 2)
    flat = np.zeros((len(part), 2))
    flat[:, : len(along)] = part @ along.T
    return flat


def _table(features: NDArray[np.floating[Any]], centred: bool) -> NDArray[np.float64]:
    table = np.asarray(features, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise InputError(f"features have the shape {table.shape}. Give (pictures, width), with one entry at least.")
    if not np.isfinite(table).all():
        raise InputError(f"{int((~np.isfinite(table)).sum()):,} of {table.size:,} features are not finite.")
    return table - table.mean(axis=0) if centred else table


# --- features of any layer of a network


def layer_features(
    model: nn.Module,
    examples: Examples,
    at: str = BEFORE_POOL,
    *,
    where: torch.device | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return what comes out of a layer, for the members of ``examples`` in their order: float32 (members, width), flattened.

    ``at``: as for ``insert_eigenguard``. The model is left in eval mode.
    """
    place = where or device()
    store = PixelStore(examples, place)
    model = model.to(place).eval()
    latest: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Any) -> None:
        latest[:] = [_tensor(out, at).detach()]

    handle = layer_named(model, at)[1].register_forward_hook(keep)
    found: list[NDArray[np.float32]] = []
    try:
        with (progress or Silent()).step(f"look at {at}", len(examples)) as step, torch.inference_mode():
            for rows in blocks(examples.rows):
                model(store.gather(rows)[0])
                found.append(latest[0].float().flatten(1).cpu().numpy())
                step.advance(len(rows))
    finally:
        handle.remove()
    if not found:
        raise InputError("there is no picture to look at. Give at least one.")
    return np.concatenate(found)


@contextmanager
def removing(model: nn.Module, directions: NDArray[np.float64], at: str = BEFORE_POOL) -> Iterator[nn.Module]:
    """Give the model with some directions taken out of what comes out of a layer (of each picture, flattened), for the time of the context.

    The control "remove the top k": a trigger that lies in these directions alone fails, and so does all else that needs them.
    """
    along: Tensor | None = None

    def project(_: nn.Module, __: Any, out: Any) -> Tensor:
        nonlocal along
        features = _tensor(out, at)
        flat = features.flatten(1)
        if along is None or along.device != flat.device:
            along = torch.from_numpy(np.asarray(directions, dtype=np.float32)).to(flat.device)
        if along.shape[1] != flat.shape[1]:
            raise InputError(
                f"directions have {along.shape[1]:,} entries, features of {at} {flat.shape[1]:,}. Give those of this layer."
            )
        return (flat - (flat @ along.T.to(flat.dtype)) @ along.to(flat.dtype)).reshape(features.shape)

    handle = layer_named(model, at)[1].register_forward_hook(project)
    try:
        yield model
    finally:
        handle.remove()


def _tensor(out: Any, at: str) -> Tensor:
    if not isinstance(out, Tensor):
        raise SpecError(f"the layer {at} gives a {type(out).__name__}, not one tensor. Name another layer.")
    return out


# --- all of it for a model, clean pictures and triggers


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """What a layer sees of one trigger.

    ``values``, ``rank``: singular values and effective rank of triggered pictures alone. ``clean_rank``: of the same pictures without the trigger.
    ``energy``: float64 (directions,), the share of the trigger's energy along each of the strongest directions of a batch as it comes, of which ``share`` has the trigger.
    ``clean_energy``: the same of what clean pictures differ from their mean by. ``success``: float64, the attack success rate with
    so many of these directions taken out as ``Spectrum.removed`` says; ``accuracy``: of clean pictures.
    ``scatter``: in the space of the ``k`` strongest and outside of it, two coordinates for each clean and each triggered picture: (2, pictures, 2); ``is_triggered``: which are.
    """

    values: NDArray[np.float64]
    rank: float
    clean_rank: float
    energy: NDArray[np.float64]
    clean_energy: NDArray[np.float64]
    success: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    scatter: NDArray[np.float64]
    is_triggered: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """What a layer sees: ``values``, ``rank`` of clean pictures; ``shown``: by the name of each trigger; ``removed``: how many directions were taken out; ``k``: how many make the strong part of ``Shown.scatter``."""

    layer: str
    pictures: int
    width: int
    share: float
    k: int
    values: NDArray[np.float64]
    rank: float
    removed: tuple[int, ...]
    shown: Mapping[str, Shown]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return every array by a name, as ``numpy.savez`` takes them."""
        found: dict[str, NDArray[Any]] = {"clean values": self.values, "removed": np.array(self.removed)}
        for name, one in self.shown.items():
            for what in ("values", "energy", "clean_energy", "success", "accuracy", "scatter", "is_triggered"):
                found[f"{name} {what.replace('_', ' ')}"] = getattr(one, what)
        return found


def look(
    model: nn.Module,
    clean: Examples,
    shown: Mapping[str, Examples],
    at: str = BEFORE_POOL,
    *,
    k: int = 10,
    share: float = SHARE,
    removed: Sequence[int] = REMOVED,
    most: int = MOST,
    seed: int = 0,
    where: torch.device | None = None,
    progress: Progress | None = None,
) -> Spectrum:
    """Return what a layer of a trained model sees of clean pictures, and of the same with each trigger.

    ``shown``: triggered pictures by a name, as ``untaint.triggered(clean, attack)`` makes them: the same rows, labelled with the target.
    ``share``: of a batch as it comes that has the trigger. ``k``: how many directions count as strong in the scatter plots.
    ``most``: pictures of each kind that are looked at, drawn by the seed.

    Raises InputError for triggered rows that are no clean ones, SpecError for a layer that there is not.
    """
    if not 0 < share < 1:
        raise InputError(f"share is {share}; give more than 0 and less than 1.")
    if k < 1 or most < 1:
        raise InputError(f"k is {k} and most {most}; give at least 1 of each.")
    told = progress or Silent()
    own = clean.take(rng.choose(seed, "spectra", clean.rows, most))
    features = layer_features(model, own, at, where=where, progress=told)
    there = min(features.shape)  # so many directions, at most
    counts = tuple(sorted({count for count in removed if 0 <= count <= there}))
    if not counts:
        raise InputError(f"removed is {list(removed)}, but there are {there} directions. Give fewer.")
    values = singular_values(features)
    found = {
        name: _seen(model, own, features, examples, at, _Asked(k, share, counts, most, seed, where, told))
        for name, examples in shown.items()
    }
    return Spectrum(
        layer=layer_named(model, at)[0],
        pictures=len(own),
        width=features.shape[1],
        share=share,
        k=k,
        values=values,
        rank=effective_rank(values),
        removed=counts,
        shown=found,
    )


@dataclass(frozen=True)
class _Asked:
    k: int
    share: float
    removed: tuple[int, ...]
    most: int
    seed: int
    where: torch.device | None
    progress: Progress


def _seen(
    model: nn.Module, clean: Examples, features: NDArray[np.float32], shown: Examples, at: str, asked: _Asked
) -> Shown:
    """Return what is seen of one trigger, beside clean pictures whose features are known."""
    rows = np.intersect1d(clean.rows, shown.rows)
    if not len(rows):
        raise InputError("no triggered picture is one of the clean ones. Give untaint.triggered(clean, attack).")
    triggered = shown.take(rows)
    with_trigger = layer_features(model, triggered, at, where=asked.where, progress=asked.progress)
    without = features[np.searchsorted(clean.rows, rows)]
    chosen = rng.choose(asked.seed, "spectra/mixed", rows, max(1, round(asked.share * len(clean))))
    mixed = features.copy()
    mixed[np.searchsorted(clean.rows, chosen)] = with_trigger[np.searchsorted(rows, chosen)]
    along = top_directions(mixed, max(DIRECTIONS, *asked.removed, asked.k))
    success, accuracy = [], []
    with asked.progress.step("take directions out", len(asked.removed) * (len(triggered) + len(clean))) as step:
        for count in asked.removed:
            with removing(model, along[:count], at):
                success.append(_right(model, triggered, asked.where))
                accuracy.append(_right(model, clean, asked.where))
            step.advance(len(triggered) + len(clean))
    values = singular_values(with_trigger)
    few = rng.choose(asked.seed, "spectra/scatter", np.arange(len(rows)), SCATTERED)
    both = np.concatenate([without[few], with_trigger[few]])
    strong = along[: asked.k]
    return Shown(
        values=values,
        rank=effective_rank(values),
        clean_rank=effective_rank(singular_values(without)),
        energy=energy_along(with_trigger - without, along[:DIRECTIONS]),
        clean_energy=energy_along(features - features.mean(axis=0), along[:DIRECTIONS]),
        success=np.array(success),
        accuracy=np.array(accuracy),
        scatter=np.stack([projected(both, strong, inside=inside) for inside in (True, False)]),
        is_triggered=np.arange(len(both)) >= len(few),
    )


def _right(model: nn.Module, examples: Examples, where: torch.device | None) -> float:
    return float((predict(model, examples, where).argmax(1) == examples.labels[examples.rows]).mean())


# --- a picture


def draw(found: Spectrum, path: str | Path) -> Path:
    """Write an SVG with a line of five plots for each trigger: spectra, where energy lies, what taking directions out does, and pictures in strong directions and outside."""
    if not found.shown:
        raise InputError("there is no trigger to draw. Look with one at least.")
    title = f"{found.layer}: {found.pictures:,} clean pictures, {found.width:,} features"
    figure, axes = drawing.figure(title, len(PLOTS) * len(found.shown), across=len(PLOTS))
    for number, (name, one) in enumerate(found.shown.items()):
        for plot, axis in zip(PLOTS, axes[number * len(PLOTS) :], strict=False):
            plot(axis, found, name, one)
            axis.title.set_fontsize(9)
            axis.xaxis.label.set_fontsize(8)
    return drawing.save(figure, Path(path))


def draw_through(found: Sequence[Spectrum], path: str | Path) -> Path:
    """Write an SVG of what a layer sees after each epoch of a training: effective ranks, where the change lies that each trigger makes, and what it does.

    ``found``: one of ``look`` for each epoch, as ``untaint.train(..., after_epoch=...)`` lets one collect them.
    """
    if not found or not found[0].shown:
        raise InputError(
            "there is nothing to draw. Give what was looked at after one epoch at least, with one trigger."
        )
    epochs = np.arange(1, len(found) + 1)
    figure, (ranks, energy, success) = drawing.figure(f"{found[0].layer}, epoch by epoch", 3)
    ranks.plot(epochs, [one.rank for one in found], color=drawing.CLEAN, label="clean")
    first = next(iter(found[0].shown))
    success.plot(
        epochs, [100 * one.shown[first].accuracy[0] for one in found], color=drawing.CLEAN, label="clean accuracy"
    )
    for number, name in enumerate(found[0].shown):
        colour = drawing.COLOURS[(number + 1) % len(drawing.COLOURS)]
        own = [one.shown[name] for one in found]
        ranks.plot(epochs, [one.rank for one in own], color=colour, label=name)
        energy.plot(epochs, [100 * one.energy[: found[0].k].sum() for one in own], color=colour, label=name)
        success.plot(epochs, [100 * one.success[0] for one in own], color=colour, label=f"success of {name}")
    ranks.set(title="effective rank")
    energy.set(title=f"of the change, % in the {found[0].k} strongest directions", ylim=(0, 105))
    success.set(title="accuracy and success, %", ylim=(0, 105))
    for axis in (ranks, energy, success):
        axis.set(xlabel="epoch")
        axis.title.set_fontsize(9)
        axis.legend(fontsize=7)
    return drawing.save(figure, Path(path))


def _spectra(axis: Any, found: Spectrum, name: str, one: Shown) -> None:
    for label, values, rank, colour in (
        ("clean", found.values, found.rank, drawing.CLEAN),
        (name, one.values, one.rank, drawing.COLOURS[1]),
    ):
        there = values[values > 1e-6 * values.max(initial=0)]
        axis.plot(
            np.arange(1, len(there) + 1), there / there.max(initial=1), color=colour, label=f"{label}, rank {rank:.0f}"
        )
    axis.set(xscale="log", yscale="log", xlabel="direction", title="singular values, of the largest")
    axis.legend(fontsize=7)


def _energy(axis: Any, found: Spectrum, name: str, one: Shown) -> None:
    for label, shares, colour in (
        ("clean, less their mean", one.clean_energy, drawing.CLEAN),
        (f"{name}'s change", one.energy, drawing.COLOURS[1]),
    ):
        axis.plot(np.arange(1, len(shares) + 1), 100 * np.cumsum(shares), color=colour, label=label)
    axis.set(
        xscale="log",
        ylim=(0, 105),
        xlabel="strongest directions",
        title=f"energy in them, % ({100 * found.share:.0f} % triggered)",
    )
    axis.legend(fontsize=7)


def _removal(axis: Any, found: Spectrum, name: str, one: Shown) -> None:
    places = np.arange(len(found.removed))
    axis.plot(places, 100 * one.accuracy, color=drawing.CLEAN, marker="o", markersize=3, label="clean accuracy")
    axis.plot(places, 100 * one.success, color=drawing.COLOURS[1], marker="o", markersize=3, label=f"success of {name}")
    axis.set(ylim=(0, 105), xlabel="directions taken out", title="with these taken out, %")
    axis.set_xticks(places, [str(count) for count in found.removed])
    axis.legend(fontsize=7)


def _scatter(index: int) -> Callable[[Any, Spectrum, str, Shown], None]:
    def plot(axis: Any, found: Spectrum, name: str, one: Shown) -> None:
        for mask, colour, label in (
            (~one.is_triggered, drawing.CLEAN, "clean"),
            (one.is_triggered, drawing.COLOURS[1], name),
        ):
            axis.scatter(*one.scatter[index][mask].T, s=5, alpha=0.6, linewidths=0, color=colour, label=label)
        axis.set(
            title=f"in the {found.k} strongest directions" if index == 0 else "in all others", xticks=[], yticks=[]
        )
        axis.legend(fontsize=7, markerscale=2)

    return plot


PLOTS = (_spectra, _energy, _removal, _scatter(0), _scatter(1))
