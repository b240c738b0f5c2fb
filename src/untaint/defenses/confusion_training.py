"""Confusion training: rows of which the model still says their label after it was taught wrong ones for clean pictures (Qi, Xie, Wang, Wu, Mahloujifar and Mittal, 2023)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.defenses._perturbed import beside, finite, need_probes, parts
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores
from untaint.training.device import device
from untaint.training.features import features
from untaint.training.pixels import PixelStore
from untaint.training.tuning import Clean

__all__ = ["ConfusionTraining", "confusion_loss", "distilled", "evidence", "log_odds", "plane", "sizes", "wrong_labels"]

SHARES = (1 / 2, 1 / 5, 1 / 25, 1 / 50, 1 / 100)  # of the rows that are trained on after the first round
STRENGTHS = (20.0, 20.0, 20.0, 30.0, 30.0)  # of the wrong labels beside the given ones, in a round
LAST_STRENGTH = 15.0
SMALLEST = 200  # rows that a round trains on at least: a hundredth of 5,000 would be learned by heart
OF_CLASS = 1 / 50  # of each class are always among them
MOMENTUM, WEIGHT_DECAY = 0.7, 1e-4
BASE_RATE = 0.01  # of the steps before a round
FEWEST = 10  # probes
MIDDLE = 0.1  # of a class, those of middling odds, stand for what is clean in it
JUDGED = 20  # a class with fewer rows has no evidence
LARGEST = math.log(1.5)  # of what is asked of other classes is enough in the one with most evidence
FLOOR = 1e-3  # of the variance of a class, added to that of each cluster


@dataclass(frozen=True, kw_only=True)
class ConfusionTraining(Detector):
    """The log odds of a row's label in a model that was taught wrong labels for clean pictures; below 0 in classes that nothing speaks against.

    Each round begins with the undefended model: ``base_steps`` of SGD on what was distilled so far, then ``steps`` with batches of ``batch`` of it, and of as many probes under labels drawn
    anew each time and never right, which count 14 to 29 times as much. What clean pictures have in common is lost; what only poison has stays. The rows of the smallest loss are distilled for the next round: a half, a fifth, a
    25th, a 50th and a hundredth of all, but no fewer than 200 (rounds that would be as large as the one before are left out), and of each class a 50th. After the last round, the features of each class are seen
    in their two main directions: the part ``evidence`` is by how much more likely its rows are, in nats a row, if those whose label the model still says are a normal cluster of their own, and not of that of the rows of middling odds. A class is suspected
    from ``nats`` on, and the one with the most evidence from 0.405 times as much; in others the score is the logarithm of the probability. The rule taken here is the paper's: who is above even odds in a suspected class.

    Qi et al. (USENIX Security 2023) have 2,000 clean pictures beside the data, train the first model for 100 epochs, the others for 40, and take 6,000 steps a round; here the probes do, and it costs about as much as the undefended model on 5,000 pictures. That each round begins
    with the undefended model, and the least of 200, are ours, too; the paper's begins with the one before. Raises SpecError for fewer than 10 probes, or if there is one class only.
    """

    steps: int = 200
    base_steps: int = 50
    batch: int = 32
    learning_rate: float = 0.01
    nats: float = 1.0

    card: ClassVar[Card | None] = Card(
        paper="Qi, Xie, Wang, Wu, Mahloujifar and Mittal, Towards a proactive ML approach for detecting backdoor poison samples, USENIX Security 2023",
        assumes="a trigger outlives a training in which the labels of clean pictures are wrong, as nothing in them has it",
        clean=FEWEST,
        claim="measured by others on CIFAR-10: 79 to 100 % found, with 1 to 14 % of clean pictures, and with 19 % of them where there is no poison",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=0"

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, least in (("steps", 1), ("base_steps", 0), ("batch", 4)):
            if getattr(self, name) < least:
                raise SpecError(f"{name} is {getattr(self, name)}; give at least {least}.")
        if not 0 < self.learning_rate < math.inf:
            raise SpecError(f"learning_rate is {self.learning_rate}; give a number above 0, such as 0.01.")
        if not 0 < self.nats < math.inf:
            raise SpecError(f"nats is {self.nats}; give a number above 0, such as 1.")

    def score(self, task: Task) -> Scores:
        """Return the log odds of each row's label after the last round."""
        members, labels = task.examples.rows, task.examples.labels
        others = np.setdiff1d(members, task.probes)
        self._check(task, others)
        seen = self._last_round(task, others)
        odds = np.ascontiguousarray(seen[:, 0])
        found = {int(label): evidence(seen[own, 1:], odds[own]) for label, own in _classes(labels, others)}
        most = max(found.values())
        values, speaks = np.full_like(odds, np.nan), np.full_like(odds, np.nan)
        for label, own in _classes(labels, members):
            speaks[own] = nats = found.get(int(label), 0.0)
            suspected = nats >= self.nats * (LARGEST if nats == most else 1.0)
            values[own] = odds[own] if suspected else -np.logaddexp(0, -odds[own])  # the logarithm of the probability
        return Scores(values=values, name="confusion-training", parts={"odds": odds, "evidence": speaks})

    def _check(self, task: Task, others: NDArray[np.int64]) -> None:
        need_probes(task, "confusion-training", FEWEST)
        classes = len(task.examples.class_names)
        if classes < 2:
            raise SpecError(f"there is {classes} class, so that no label can be wrong. Give pictures of two at least.")
        if len(others) < 2:
            raise SpecError(
                f"{len(task.probes)} of {len(task.examples)} pictures are probes, which leaves nothing to look at. Give fewer."
            )

    def _last_round(self, task: Task, others: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return what the last round left, after all before it: float32 (all rows, 3), the log odds and the place in the main plane of the class."""
        rows, seen = others, np.empty((0, 3), dtype=np.float32)
        options = f"{self.steps}-{self.base_steps}-{self.batch}-{self.learning_rate:g}-{task.seed}"
        counts = sizes(len(others))
        for number, count in enumerate(counts):
            if number:
                rows = distilled(seen[:, 0], task.examples.labels, others, count)
            folder = beside(task, f"confusion-training-{options}-{number}", task.probes)
            seen = task.once(folder, functools.partial(_round, task, self, rows, number, number == len(counts) - 1))
        return seen

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model and those that begin as it does."""
        count = len(task.examples)
        rounds = len(sizes(len(np.setdiff1d(task.examples.rows, task.probes))))
        steps = 2 * self.batch * (rounds * self.steps + (rounds - 1) * self.base_steps)
        return [(UNDEFENDED, task.preset.retrain.epochs * count + steps, (rounds + 1) * count)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how likely the model still finds its label, and how much speaks against its class."""
        odds, nats = scores.parts["odds"][rows], scores.parts["evidence"][rows]
        return [
            f"a model that was taught wrong labels for clean pictures gives its label the log odds {own:.2g} (evidence against its class: {against:.3g} nats)"
            for own, against in zip(odds, nats, strict=True)
        ]

    def limits(self) -> list[str]:
        """Return what confusion training cannot tell."""
        return [
            "Clean pictures unlike all probes keep their labels, too; classes without probes may be suspected for that. Of pictures without poison some hundredths are set aside as well.",
            "Poison that is about half of its class or more is taken for what is usual in it; a class with fewer than 20 pictures is not suspected. Triggers that the undefended model has hardly learned are missed.",
        ]


def sizes(count: int) -> list[int]:
    """Return how many rows each round trains on, of so many; those that would be as many as in the round before are left out."""
    found = [count]
    for share in SHARES:
        size = min(count, max(SMALLEST, int(share * count)))
        if size < found[-1]:
            found.append(size)
    return found


def distilled(
    odds: NDArray[np.float32], labels: NDArray[np.int64], rows: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Return the ``count`` rows of the largest odds, and of each class a 50th if there are fewer among them: ascending."""
    order = rows[np.argsort(-odds[rows], kind="stable")]
    chosen = [order[:count]]
    for _, own in _classes(labels, order):
        chosen.append(own[: int(OF_CLASS * len(own))])
    return np.unique(np.concatenate(chosen))


def _classes(labels: NDArray[np.int64], rows: NDArray[np.int64]) -> Iterator[tuple[np.int64, NDArray[np.int64]]]:
    """Give each label that rows have, and these rows in their order."""
    return ((label, rows[labels[rows] == label]) for label in np.unique(labels[rows]))


def _round(
    task: Task, options: ConfusionTraining, rows: NDArray[np.int64], number: int, last: bool
) -> NDArray[np.float32]:
    """Return the log odds of each row's label in a model that was confused while it learned ``rows``, and after the last round its place in the plane of its class: float32 (all rows, 3), nan for no members."""
    model = _confused(task, options, rows, number, last)
    found = np.full((task.examples.total, 3), np.nan, dtype=np.float32)
    found[:, 0] = log_odds(model, task)
    if last:
        seen = features(model, task.examples, task.where, task.progress)
        for _, own in _classes(task.examples.labels, task.examples.rows):
            found[own, 1:] = plane(seen[own])
    return found


def _confused(task: Task, options: ConfusionTraining, rows: NDArray[np.int64], number: int, last: bool) -> nn.Module:
    """Return the undefended model after it was tuned on ``rows``, and then on them and on probes whose labels are wrong."""
    task.reference()
    model = task.load(UNDEFENDED)
    seed = rng.derive(task.seed, "defenses/confusion-training", number)
    place = task.where or device()
    vouched = Clean(examples=task.examples.take(task.probes), seed=seed, where=place, progress=task.progress)
    given = Clean(examples=task.examples.take(rows), seed=seed, where=place, progress=task.progress)
    if number and options.base_steps:
        given.tune(
            model,
            steps=options.base_steps,
            learning_rate=BASE_RATE,
            batch=2 * options.batch,
            weight_decay=WEIGHT_DECAY,
            what="learn what was distilled",
        )
    classes = len(task.examples.class_names)
    counts = np.bincount(task.examples.labels[rows], minlength=classes) / len(rows)
    weights = np.ones(classes) if last else 1 / np.sqrt(counts + 1e-3)
    per_class = torch.tensor(weights, dtype=torch.float32, device=place)
    lots = rng.uniform(seed, "wrong labels", 0, np.arange(options.steps), options.batch)
    drawn = iter(torch.from_numpy(lots.astype(np.float32)).to(place))
    mixed = given.batches(options.steps, options.batch)
    strength = LAST_STRENGTH if last else STRENGTHS[number]

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        others, own = next(mixed)
        wrong = wrong_labels(labels, next(drawn)[: len(labels)], classes)
        told = model(torch.cat([images, others])).float()
        return confusion_loss(told, wrong, own, per_class, strength)

    return vouched.tune(
        model,
        steps=options.steps,
        learning_rate=options.learning_rate,
        batch=options.batch,
        weight_decay=WEIGHT_DECAY,
        momentum=MOMENTUM,
        loss=loss,
        what="confuse",
    )


def wrong_labels(labels: Tensor, lots: Tensor, classes: int) -> Tensor:
    """Return a label for each that is never the right one, each other as likely; ``lots``: in [0, 1)."""
    beyond = (lots * (classes - 1)).long().clamp(max=classes - 2)
    return (labels + 1 + beyond) % classes


def confusion_loss(told: Tensor, wrong: Tensor, given: Tensor, per_class: Tensor, strength: float) -> Tensor:
    """Return the mean cross-entropy of the first logits with wrong labels, ``strength - 1`` times, and of the others with those given, weighed by class, over ``strength``."""
    each = nn.functional.cross_entropy(told, torch.cat([wrong, given]), reduction="none")
    weights = per_class[given]
    own = (each[len(wrong) :] * weights).sum() / weights.sum()
    return ((strength - 1) * each[: len(wrong)].mean() + own) / strength


def log_odds(model: nn.Module, task: Task) -> NDArray[np.float32]:
    """Return the logarithm of how much likelier a model finds each row's label than all others: float32 (all rows,), nan for no members.

    Raises InputError if an answer is not finite.
    """
    place = task.where or device()
    store, model = PixelStore(task.examples, place), model.to(place).eval()
    values = np.full(task.examples.total, np.nan, dtype=np.float32)
    with task.progress.step("ask about all", len(task.examples)) as step, torch.inference_mode():
        for block in parts(task.examples.rows, task.examples.images.shape):
            images, labels = store.gather(block)
            told = model(images).float()
            own = told.gather(1, labels[:, None])
            rest = told.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
            values[block] = finite(own[:, 0] - rest)
            step.advance(len(block))
    return values


def plane(seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return where the rows of a class lie in the two main directions of their features: float32 (rows, 2)."""
    points = seen.astype(np.float64) - seen.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(points.T @ points)
    found = np.zeros((len(points), 2), dtype=np.float32)
    main = directions[:, ::-1][:, :2]
    found[:, : main.shape[1]] = points @ main
    return found


def evidence(points: NDArray[np.float32], odds: NDArray[np.float32]) -> float:
    """Return by how much likelier the rows of a class are, in nats a row, if those above even odds are a cluster of their own.

    ``points``: (rows, 2). Both clusters are normal; the other is that of the tenth of the rows whose odds are middling. 0 where there are fewer than 20 rows, or fewer than 2 above even odds.
    """
    said = odds > 0
    if len(odds) < JUDGED or np.count_nonzero(said) < 2:
        return 0.0
    places = points.astype(np.float64)
    order = np.argsort(odds, kind="stable")
    half = max(2, round(MIDDLE * len(odds) / 2))
    middle = order[len(order) // 2 - half : len(order) // 2 + half]
    floor = FLOOR * float(places.var(axis=0).mean())
    if not floor > 0:
        return 0.0
    apart = _likely(places[said], places[said], floor) - _likely(places[said], places[middle], floor)
    return float(apart.sum() / len(odds))


def _likely(points: NDArray[np.float64], cluster: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Return the log density of points, but for a constant, in the normal distribution of a cluster: (points,)."""
    about = cluster - cluster.mean(axis=0)
    spread = about.T @ about / len(cluster) + floor * np.eye(2)
    away = points - cluster.mean(axis=0)
    squared = np.einsum("ij,ij->i", away @ np.linalg.inv(spread), away)
    return np.asarray(-0.5 * (squared + np.linalg.slogdet(spread)[1]))
