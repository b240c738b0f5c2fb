"""Frequency analysis: rows whose spectrum looks to a small network as if somebody had tampered with them (Zeng, Park, Mao and Jia, 2021)."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng, run, spec
from untaint.defenses._perturbed import need_probes, parts
from untaint.defenses._tampered import drawn, tampered
from untaint.defenses.base import Card, Detector, Task
from untaint.errors import RunError, SpecError, TrainingError
from untaint.progress import Step
from untaint.scores import Scores
from untaint.training.device import device, keyed
from untaint.training.pixels import PixelStore

__all__ = ["FrequencyAnalysis", "Looker", "spectrum"]

PURPOSE = "defenses/frequency-analysis"  # of what is drawn at random
FEWEST = 20  # probes: of fewer, half are no training set
MOST = 32  # coefficients along each axis that the network sees
LEAST = 2.0**-54  # of a number that should lie above 0
WIDTHS = ((32, 0.2), (64, 0.3), (128, 0.4))  # channels of each pair of convolutions, and what is dropped behind it


@dataclass(frozen=True, kw_only=True)
class FrequencyAnalysis(Detector):
    """Probability that a picture was tampered with, by a small network that sees its cosine transform and was trained on the probes and on copies of them with random triggers.

    Copies have a white or a coloured rectangle, noise, a shadow, or another probe laid over them, as in the paper, by draws of their own in each epoch; half of all pictures are mirrored. The network (six convolutions, ELU) and its training (``epochs`` of
    Adadelta) are the paper's, as is the threshold, 0.5. The paper trains on a whole data set known to be clean; here it is the probes alone. Probes are scored by two networks that were each trained on the other half of them. ``scale``: the network sees the
    logarithm of one and the absolute value of each coefficient, in levels (``log``), or the coefficients as they are (``plain``). Of pictures larger than 32x32 it sees the root of the mean square of the coefficients in each of 32x32 cells.

    What the rectangles measure and how strong noise, shadow and blend are is ours, and so are the draws in each epoch, the mirroring, the logarithm and the cells. Raises SpecError for fewer than 20 probes.
    """

    epochs: int = 10
    learning_rate: float = 0.05
    weight_decay: float = 1e-4
    batch: int = 32
    scale: Literal["log", "plain"] = "log"

    fixed: ClassVar[tuple[str, ...]] = ("epochs", "learning_rate", "weight_decay", "batch", "scale")
    usual_rule: ClassVar[str | None] = "above:score=0.5"
    card: ClassVar[Card | None] = Card(
        paper="Zeng, Park, Mao and Jia, Rethinking the backdoor attacks' triggers: a frequency perspective, ICCV 2021",
        assumes="a trigger leaves traces in the spectrum of a picture, as patches, noise and blends do",
        clean=FEWEST,
        rate="threshold",
        claim="98.5 % of triggers found on average over eight attacks, trained on a whole clean data set",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.epochs < 1 or self.batch < 2:
            raise SpecError(f"epochs is {self.epochs}, batch {self.batch}; give at least 1, and 2.")
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise SpecError(
                f"learning_rate is {self.learning_rate}, weight_decay {self.weight_decay}; give more than 0, and at least 0."
            )
        if self.scale not in ("log", "plain"):
            raise SpecError(f"scale is '{self.scale}'; give log or plain.")

    def score(self, task: Task) -> Scores:
        """Return the probability that each row was tampered with."""
        need_probes(task, "frequency-analysis", FEWEST)
        folder = task.scratch / f"spectra-{self._key(task)}"
        if not task.train and run.finished(folder) is None:
            raise RunError(
                f"{task.scratch} has no finished {folder.name}. Finish the run first: untaint scan with the same settings and --out {task.scratch}."
            )
        values = task.once(folder, lambda: probabilities(task, self))
        return Scores(values=values, name="frequency-analysis", parts={"tampered": values})

    def _key(self, task: Task) -> str:
        told = f"{spec.text('frequency-analysis', self)} {task.seed}".encode()
        rows = np.concatenate([task.probes, [-1], task.examples.rows]).tobytes()
        return hashlib.sha256(told + rows).hexdigest()[:20]

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return nothing: the small networks are trained in seconds, and not kept."""
        return []

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how surely it looks tampered with."""
        return [f"its spectrum looks tampered with (probability {scores.values[row]:.2f})" for row in rows]

    def limits(self) -> list[str]:
        """Return what frequency analysis cannot tell."""
        return [
            "Clean pictures that differ from the probes in sharpness, noise or compression are set aside, too, and the more the fewer probes there are. Triggers without traces in the spectrum, as smooth ones and warps, are missed."
        ]


class Looker(nn.Module):
    """A small network that says how surely pictures, float32 (batch, channels, height, width) in [0, 1], were tampered with: logits (batch,)."""

    def __init__(self, size: tuple[int, int, int], scale: str) -> None:
        super().__init__()
        self.scale = scale
        channels, height, width = size
        down, across = min(height, MOST), min(width, MOST)
        layers: list[nn.Module] = []
        for wide, dropped in WIDTHS:
            for inside in (channels, wide):
                layers += [nn.Conv2d(inside, wide, 3, padding=1), nn.ELU(), nn.BatchNorm2d(wide)]
            layers += [nn.MaxPool2d(2, ceil_mode=True), nn.Dropout(dropped)]
            channels, down, across = wide, -(-down // 2), -(-across // 2)
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * down * across, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        seen = spectrum(images, self.scale)
        logits: Tensor = self.head(self.body(seen).flatten(1))[:, 0]
        return logits


def spectrum(images: Tensor, scale: str = "log") -> Tensor:
    """Return the cosine transform of each channel, of pictures in [0, 1]: float32 (batch, channels, at most 32, at most 32), the lowest frequencies first."""
    height, width = images.shape[2:]
    down, across = (torch.from_numpy(waves(side)).to(images.device) for side in (height, width))
    found = down @ (images.contiguous() * 255) @ across.T
    if max(height, width) > MOST:
        found = nn.functional.adaptive_avg_pool2d(found.square(), (min(height, MOST), min(width, MOST))).sqrt()
    return found.abs().log1p() if scale == "log" else found


@functools.lru_cache(maxsize=8)
def waves(side: int) -> NDArray[np.float32]:
    """Return the orthonormal cosine transform (type 2) along an axis: float32 (side, side), a frequency in each row."""
    place = np.arange(side)
    table = np.cos(np.pi * (2 * place[None, :] + 1) * place[:, None] / (2 * side)) * math.sqrt(2 / side)
    table[0] /= math.sqrt(2)
    return table.astype(np.float32)


def probabilities(task: Task, options: FrequencyAnalysis) -> NDArray[np.float32]:
    """Return for each row the probability that it was tampered with: float32 (all rows,), nan for no members; probes are looked at by networks that were not trained on them."""
    rows, probes = task.examples.rows, task.probes
    first = rng.choose(task.seed, f"{PURPOSE}/halves", probes, len(probes) // 2)
    second = np.setdiff1d(probes, first)
    turns = [(probes, np.setdiff1d(rows, probes)), (first, second), (second, first)]
    values = np.full(task.examples.total, np.nan, dtype=np.float32)
    store = PixelStore(task.examples, task.where or device())
    steps = sum(options.epochs * 2 * len(known) + len(asked) for known, asked in turns)
    with task.progress.step("look at spectra", steps) as step:
        for known, asked in turns:
            looker = trained(store, known, options, task.seed, step).eval()
            with torch.inference_mode():
                for block in parts(asked, task.examples.images.shape):
                    values[block] = looker(store.gather(block)[0]).sigmoid().cpu().numpy()
                    step.advance(len(block))
    if not np.isfinite(values[rows]).all():
        raise TrainingError(
            "the small network that looks at spectra says no finite numbers. Give a lower learning_rate."
        )
    return values


def trained(store: PixelStore, probes: NDArray[np.int64], options: FrequencyAnalysis, seed: int, step: Step) -> Looker:
    """Return a network that was trained to tell these probes from copies that were tampered with."""
    with keyed(store.where, seed, f"{PURPOSE}/network", len(probes)):
        looker = Looker(store.images.shape[1:], options.scale).train()
        looker.to(store.where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adadelta(
            looker.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        for epoch in range(options.epochs):
            order = rng.order(seed, f"{PURPOSE}/shuffle", epoch, probes)
            for rows in np.array_split(order, max(1, -(-2 * len(order) // options.batch))):
                shown = pairs(store, rows, probes, seed, epoch)
                wanted = torch.arange(2 * len(rows), device=store.where) >= len(rows)
                loss = nn.functional.binary_cross_entropy_with_logits(looker(shown), wanted.float())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step.advance(2 * len(rows))
    return looker


def pairs(store: PixelStore, rows: NDArray[np.int64], probes: NDArray[np.int64], seed: int, epoch: int) -> Tensor:
    """Return pictures, and behind them copies that were tampered with; half of either are mirrored."""
    images = store.gather(rows)[0]
    numbers = drawn(seed, f"{PURPOSE}/tampered", epoch, rows)
    lots = rng.uniform(seed, f"{PURPOSE}/other", epoch, rows, 3).T
    others = store.gather(probes[(lots[0] * len(probes)).astype(np.int64)])[0]
    even = torch.from_numpy(rng.uniform(seed, f"{PURPOSE}/noise", epoch, rows, images[0].numel()))
    noise = torch.special.ndtri(even.clamp_min(LEAST)).float().reshape(images.shape).to(store.where)
    both = torch.cat([images, tampered(images, others, numbers, noise)])
    flip = torch.from_numpy(lots[1:].reshape(-1) < 0.5)
    return torch.where(flip.to(store.where)[:, None, None, None], both.flip(3), both)
