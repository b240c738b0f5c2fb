"""ASSET: rows whose loss runs away while the model is kept from saying anything of clean pictures (Pan, Zeng, Lyu, Lin and Jia, 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.defenses._perturbed import beside, need_probes, parts
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import InputError, SpecError, TrainingError
from untaint.models.build import build
from untaint.scores import Scores
from untaint.training.device import device, keyed
from untaint.training.pixels import PixelStore, first_layer

__all__ = ["Asset", "beside_label", "losses", "medcouple", "on_scale", "outlying", "suspects"]

FEWEST = 10  # probes
HIDDEN = 128  # units in each of the two hidden layers of the small network
INNER_RATE = 1e-3  # of its steps
DROPPED = 0.8  # of its hidden units, in training: without, it knows the probes by heart after some dozen batches
SNAPSHOTS = 4  # of the model, evenly over the second half of the steps, whose losses are averaged
ENOUGH = 3  # probes of a label, for its rows to be compared with them
FAINT = 1e-6  # density of the losses of clean pictures at the limit
LEAST = 1e-3  # of the spread of all features, added to the probes' in each


@dataclass(frozen=True, kw_only=True)
class Asset(Detector):
    """How large a row's loss became in a model with two opposed aims: 0 as clean pictures, above 1 where hardly one of them is.

    A fresh network like the undefended one takes ``steps``, each of two: down the variance of its logits of ``batch`` probes, and up the cross-entropy of those of as many other rows that seem poisoned. These are found by a small network, which
    learns by ``inner`` steps a batch to tell the undefended model's features of rows from those of probes: what is clean in the two it cannot tell apart; who lies more than ``outlying`` times as far above the
    median of the batch as the upper whisker of a boxplot for skewed values is suspected (Hubert and Vandervieren, 2008). The part ``loss`` is the mean cross-entropy at four times in the second half, less the median of the probes of the label (of its rows where there are fewer than 3): a label
    that is made unlikely for poison becomes so for all. The limit, 1, is where the density of a normal distribution, fitted to the smaller half of the losses, falls to one millionth a nat. It is the paper's rule, which needs no rate; ``gap`` takes the emptiest place instead.

    A small version of Pan et al. (USENIX Security 2023), who pass over all data, take 1,000 clean pictures, train a new small network for each batch, and take those of twice the whisker; the rate is of 1e-4 in programs that are public. Here one network goes on from batch
    to batch, with dropout. That it is the log odds in which rows lie apart, upwards alone, that suspects pass through the network together with probes (the statistics of a batch of theirs alone would hide the trigger), and that losses are averaged and compared within labels, are ours.
    Raises SpecError for fewer than 10 probes.
    """

    steps: int = 150
    inner: int = 5
    batch: int = 128
    learning_rate: float = 5e-4
    outlying: float = 1.0

    card: ClassVar[Card | None] = Card(
        paper="Pan, Zeng, Lyu, Lin and Jia, ASSET: robust backdoor data detection across a multiplicity of deep learning paradigms, USENIX Security 2023",
        assumes="poison lies where no clean picture lies in what a model sees, so that its loss can be raised alone",
        clean=FEWEST,
        claim="more of it found than by the best other way, by 69 points where models learn without labels, and by 33 in transfer",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=1"

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, least in (("steps", 1), ("inner", 1), ("batch", 8)):
            if getattr(self, name) < least:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least {least}.")
        for name, usual in (("learning_rate", "0.0005"), ("outlying", "1")):
            if not 0 < getattr(self, name) < math.inf:
                raise SpecError(f"{name} is {getattr(self, name)}; give a number above 0, such as {usual}.")

    def score(self, task: Task) -> Scores:
        """Return where each row's loss lies between the usual and the limit."""
        need_probes(task, "asset", FEWEST)
        others = np.setdiff1d(task.examples.rows, task.probes)
        if not len(others):
            raise SpecError(
                f"all {len(task.examples)} pictures are probes, so that there are none to look at. Give fewer."
            )
        options = f"{self.steps}-{self.inner}-{self.batch}-{self.learning_rate:g}-{self.outlying:g}-{task.seed}"
        loss = task.once(beside(task, f"asset-{options}", task.probes), lambda: losses(task, self))
        beyond = beside_label(loss, task.examples.labels, task.examples.rows, task.probes)
        return Scores(values=on_scale(beyond, others).astype(np.float32), name="asset", parts={"loss": beyond})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model and the fresh one."""
        count = len(task.examples)
        steps = self.steps * min(self.batch, len(task.probes))
        return [(UNDEFENDED, task.preset.retrain.epochs * count + steps, (SNAPSHOTS + 1) * count)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how large its loss became."""
        return [
            f"its loss rose by {scores.parts['loss'][row]:.3g} beside clean pictures of its label, of which the model was kept from saying anything"
            for row in rows
        ]

    def limits(self) -> list[str]:
        """Return what ASSET cannot tell."""
        return [
            "Poison that the small network does not part from clean pictures is not seen, nor that of an attacker whom another outshines. Clean pictures unlike all probes may be taken for poison.",
            "Where there is no poison, some hundredths of the clean pictures are set aside.",
        ]


def losses(task: Task, options: Asset) -> NDArray[np.float32]:
    """Return the mean cross-entropy of each row over the snapshots: float32 (all rows,), nan for no members. Raises TrainingError if one is not finite."""
    examples, place = task.examples, task.where or device()
    others = np.setdiff1d(examples.rows, task.probes)
    seen = _beside_probes(task.features(), task.probes)
    vouched = list(_turns(task.seed, "probes", task.probes, options))
    mixed = list(_turns(task.seed, "rows", others, options))
    raised = suspects(seen, mixed, vouched, options.inner, options.outlying, task.seed)
    store, model = PixelStore(examples, place), _fresh(task).to(place).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    down, up = (torch.optim.Adam(weights, lr=options.learning_rate) for _ in range(2))
    middle = options.steps // 2
    stops = {middle + math.ceil((options.steps - middle) * turn / SNAPSHOTS) for turn in range(1, SNAPSHOTS + 1)}
    total = np.zeros(examples.total, dtype=np.float64)
    with (
        task.progress.step("part them", options.steps, unit="steps") as step,
        keyed(place, task.seed, "defenses/asset/layers"),
    ):
        for number, (clean, rows) in enumerate(zip(vouched, raised, strict=True), 1):
            # together: the statistics of a batch of poison alone would hide its trigger
            images, labels = store.gather(np.concatenate([clean, rows]))
            told, labels = model(images).float(), labels[len(clean) :]
            aims = [(down, told[: len(clean)].var(dim=1).mean())]
            if len(rows):
                aims.append((up, -nn.functional.cross_entropy(told[len(clean) :], labels)))
            _opposed(aims, weights)
            if number in stops:
                total += _each_loss(model, task, store)
                model.train()
            step.advance(1)
    if not np.isfinite(total[examples.rows]).all():
        raise TrainingError(
            f"losses are not finite after {options.steps} steps with learning rate {options.learning_rate:g}. Give a lower one."
        )
    return np.asarray(total / len(stops), dtype=np.float32)


def _opposed(aims: Sequence[tuple[torch.optim.Optimizer, Tensor]], weights: Sequence[nn.Parameter]) -> None:
    """Let each optimizer make a step down its own loss; all losses are of the weights as they are before the first."""
    slopes = [
        torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=loss is not aims[-1][1]) for _, loss in aims
    ]
    for (optimizer, _), slope in zip(aims, slopes, strict=True):
        for weight, own in zip(weights, slope, strict=True):
            weight.grad = own
        optimizer.step()


def _fresh(task: Task) -> nn.Module:
    """Return an untrained network of the kind of the undefended one."""
    examples, recipe = task.examples, task.preset.retrain
    if task.model is not None:
        with keyed(torch.device("cpu"), task.seed, "defenses/asset/weights"):
            return task.model()
    size: tuple[int, int, int] = tuple(examples.images.shape[1:])
    first = {} if recipe.pixels == "plain" else first_layer(examples, whitened=recipe.pixels == "whitened")
    seed = rng.derive(task.seed, "defenses/asset/weights")
    network = build(recipe.model, len(examples.class_names), size, seed=seed, **first)
    return network.to(memory_format=torch.channels_last)


def _beside_probes(seen: NDArray[np.float32], probes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return features less the probes' mean, over the probes' deviation; raises InputError if one is not finite."""
    if not np.isfinite(seen).all():
        raise InputError("features are not finite numbers. Train the model with a lower learning rate.")
    known = seen[probes].astype(np.float64)
    scale = known.std(axis=0) + max(LEAST * float(known.std()), np.finfo(np.float32).tiny)
    return np.asarray((seen - known.mean(axis=0)) / scale, dtype=np.float32)


def _turns(seed: int, which: str, rows: NDArray[np.int64], options: Asset) -> Iterator[NDArray[np.int64]]:
    """Give as many batches as there are steps: all rows in turn, in an order that changes each time."""
    times = max(1, -(-len(rows) // options.batch))
    for number in range(options.steps):
        turn, part = divmod(number, times)
        if not part:
            batches = np.array_split(rng.order(seed, f"defenses/asset/{which}", turn, rows), times)
        yield batches[part]


def _each_loss(model: nn.Module, task: Task, store: PixelStore) -> NDArray[np.float64]:
    """Return the cross-entropy of each row in eval mode: float64 (all rows,), nan for no members."""
    found = np.full(task.examples.total, np.nan)
    model.eval()
    with torch.inference_mode():
        for block in parts(task.examples.rows, task.examples.images.shape):
            images, labels = store.gather(block)
            found[block] = nn.functional.cross_entropy(model(images).float(), labels, reduction="none").cpu().numpy()
    return found


def suspects(
    seen: NDArray[np.float32],
    mixed: list[NDArray[np.int64]],
    vouched: list[NDArray[np.int64]],
    inner: int,
    limit: float,
    seed: int,
) -> list[NDArray[np.int64]]:
    """Return which rows of each mixed batch lie apart once a small network has learned from it and the batches before: ascending.

    ``seen``: features, float32 (all rows, width). It is on the CPU: some hundred rows of some hundred features are no work.
    """
    features, found = torch.from_numpy(seen), []
    with keyed(torch.device("cpu"), seed, "defenses/asset/inner"):
        network = _small_network(seen.shape[1])
        optimizer = torch.optim.Adam(network.parameters(), lr=INNER_RATE)
        for rows, clean in zip(mixed, vouched, strict=True):
            ours, theirs = features[torch.from_numpy(rows)], features[torch.from_numpy(clean)]
            network.train()
            for _ in range(inner):
                told = network(torch.cat([ours, theirs])).sigmoid()[:, 0]
                loss = (told[: len(rows)] - 1).square().mean() + told[len(rows) :].square().mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                odds = network.eval()(ours)[:, 0].double().numpy()
            found.append(np.sort(rows[outlying(odds) > limit]))
    return found


def _small_network(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (width, HIDDEN):
        layers += [nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Dropout(DROPPED)]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, 1))


def outlying(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far values lie above their median: 1 at the upper whisker of a boxplot adjusted for their skewness, below 0 beneath the median; 0 where nothing varies."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    skewness = medcouple(values)
    whisker = high + 1.5 * math.exp((3 if skewness > 0 else 4) * skewness) * (high - low)
    return (values - middle) / (whisker - middle) if whisker > middle else np.zeros_like(values)


def medcouple(values: NDArray[np.float64]) -> float:
    """Return a measure of skewness, -1 to 1: the median over pairs about the median of how much further the one above it lies than the other, over their distance (Brys, Hubert and Struyf, 2004). Pairs at the median count 0."""
    about = values - np.median(values)
    above, below = about[about >= 0][:, None], about[about <= 0][None, :]
    apart = above - below
    return float(np.median(np.where(apart > 0, (above + below) / np.where(apart > 0, apart, 1), 0)))


def beside_label(
    loss: NDArray[np.float32], labels: NDArray[np.int64], rows: NDArray[np.int64], probes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return losses less the median of the probes of the label, or of its ``rows`` where there are fewer than 3."""
    found = loss.copy()
    for label in np.unique(labels[rows]):
        own, vouched = rows[labels[rows] == label], probes[labels[probes] == label]
        found[own] -= np.median(loss[vouched if len(vouched) >= ENOUGH else own])
    return found


def on_scale(loss: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return losses on a scale with 0 at the mean of the smaller half of those of ``rows``, and 1 where the density of its normal distribution falls to a millionth; 0 where nothing varies."""
    known = np.sort(loss[rows].astype(np.float64))
    half = known[: (len(known) + 1) // 2]
    middle, spread = half.mean(), half.std()
    if not spread > 0:
        return np.where(np.isnan(loss), np.nan, 0.0)
    limit = spread * math.sqrt(max(-2 * math.log(FAINT * spread * math.sqrt(2 * math.pi)), 1.0))
    return np.asarray((loss - middle) / limit)
