"""The training loop: one model, some rows, a recipe; recorded, checkpointed, resumable.

Everything random is keyed by (seed, epoch, row), so a run that was killed and continued ends with
the same bits as one that was not (same machine and thread count).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng, run
from untaint.errors import InputError, RunError, SpecError, TrainingError
from untaint.examples import Examples
from untaint.models.build import build, features_of, head_of
from untaint.progress import Progress, Silent, Step
from untaint.recipe import Precision, Recipe
from untaint.recorder import Recorder
from untaint.training import checkpoint, cost
from untaint.training.device import autocast, device, keyed, trial
from untaint.training.muon import Muon
from untaint.training.objective import Batch, Objective
from untaint.training.pixels import PixelStore, augmented, draws, first_layer

__all__ = ["Watch", "blocks", "fit", "predict"]

EVAL_BATCH = 500
PASS = 0.25  # of a training step: what it takes to look at a picture and not to learn from it


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What to record while a model trains.

    ``rows``: which rows, trained on or not. ``when``: ``eval`` = a pass of its own in eval mode
    after each epoch, without augmentation; ``train`` = in the training step (only rows trained
    on). ``epochs``: which epochs, default all. ``features``: at which epochs penultimate features
    are kept too.
    """

    rows: NDArray[np.int64]
    when: Literal["eval", "train"] = "eval"
    epochs: Collection[int] | None = None
    features: Collection[int] = ()

    def wants(self, epoch: int) -> bool:
        """Tell whether this epoch (from 0) is recorded."""
        return self.epochs is None or epoch in self.epochs


def fit(
    examples: Examples,
    recipe: Recipe,
    out: Path,
    *,
    seed: int,
    watch: Watch | None = None,
    model: Callable[[], nn.Module] | None = None,
    where: torch.device | None = None,
    progress: Progress | None = None,
    what: str = "train",
    after_epoch: Callable[[nn.Module, int], None] | None = None,
    objective: Objective | None = None,
) -> nn.Module:
    """Train a model on the members of ``examples`` and leave it in ``out``; returns it in eval mode.

    ``out`` gets ``model.safetensors``, ``model.json``, and with ``watch`` the trajectories. A
    finished ``out`` is loaded, an unfinished one continued. ``model``: makes an untrained network
    of your own. ``after_epoch``: is given the model, in eval mode, and the number of each epoch that is trained now, from 0; it should change nothing.
    ``objective``: what training goes down, if not the mean cross-entropy. Raises TrainingError when the loss is not finite.
    """
    training = _Training(examples, recipe, out, seed=seed, watch=watch, model=model, where=where, objective=objective)
    if run.finished(out) is not None:
        checkpoint.drop_state(out)  # killed between the two
        return checkpoint.load_model(out, training.model if model else None).to(training.where)
    training.restore()
    total = training.work(recipe.epochs)
    with (progress or Silent()).step(what, total, done=training.work(training.epoch)) as step:
        while training.epoch < recipe.epochs:
            try:
                training.one_epoch(step)
            except RuntimeError as error:
                if recipe.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    reason = str(error).splitlines()[0].rstrip(".")
                    raise SpecError(f"torch.compile does not work here ({reason}). Leave out --compile.") from error
                raise
            if after_epoch is not None:
                after_epoch(training.model.eval(), training.epoch - 1)
    return training.finish()


class _Training:
    """One model being trained: what changes from epoch to epoch."""

    def __init__(
        self,
        examples: Examples,
        recipe: Recipe,
        out: Path,
        *,
        seed: int,
        watch: Watch | None,
        model: Callable[[], nn.Module] | None,
        where: torch.device | None,
        objective: Objective | None = None,
    ) -> None:
        if len(examples) < 2:
            raise InputError(f"there are {len(examples)} pictures to train on. Give at least 2.")
        self.examples, self.recipe, self.out, self.seed, self.watch = examples, recipe, out, seed, watch
        self.where = where or device()
        self.custom = model is not None
        self.size: tuple[int, int, int] = tuple(examples.images.shape[1:])
        if model is not None:
            with keyed(torch.device("cpu"), seed, "weights"):
                network = model()
        else:
            first = {} if recipe.pixels == "plain" else first_layer(examples, whitened=recipe.pixels == "whitened")
            network = build(recipe.model, len(examples.class_names), self.size, seed=seed, **first)
        self.model = network.to(self.where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = None if objective is None else objective.to(self.where)
        if objective is not None and watch is not None and watch.when == "train":
            raise SpecError("with an objective of its own a training records no steps. Record in eval mode.")
        # what a checkpoint holds
        self.whole = self.model if objective is None else nn.ModuleDict({"model": self.model, "objective": objective})
        self.epoch = 0

    def work(self, epochs: int) -> float:
        """Count pictures through training in so many epochs; one that is only recorded counts by what it takes."""
        passes: float = len(self.examples) * epochs
        if self.watch is not None and self.watch.when == "eval":
            passes += PASS * len(self.watch.rows) * sum(self.watch.wants(epoch) for epoch in range(epochs))
        return passes

    def restore(self) -> None:
        """Set up the optimizer, the pictures and the recorder, where the last checkpoint left them."""
        self.meter, self.cost = cost.Meter(), cost.cost_of(self.out)
        self.store = PixelStore(self.examples, self.where)
        self.optimizer = _optimizer(
            self.model, self.recipe, [] if self.objective is None else self.objective.parameters()
        )
        facts = checkpoint.restore_state(self.out, self.whole, self.optimizer) or {}
        self.epoch = int(facts.get("epoch", 0))
        self.files: dict[str, str] = facts.get("files", {})
        for name, expected in self.files.items():
            if not (self.out / name).exists() or run.digest(self.out / name) != expected:
                raise RunError(
                    f"{self.out / name} was altered since it was written. Remove {self.out} and give the same command again."
                )
        self.precision = facts.get("precision") or self._precision()
        self.forward = torch.compile(self.model) if self.recipe.compile else self.model
        self.recorder: Recorder | None = None
        if self.watch is not None:
            recorded = sum(self.watch.wants(epoch) for epoch in range(self.epoch))
            self.recorder = Recorder(self.examples.labels, self.out, epoch=recorded)

    def _precision(self) -> Precision:
        if self.recipe.precision != "auto":
            return self.recipe.precision
        return trial(self.model, self.recipe, self.size, self.where).precision

    def batches(self) -> Iterator[NDArray[np.int64]]:
        """Go through the members in this epoch's order, in batches whose sizes differ by at most one."""
        order = rng.order(self.seed, "shuffle", self.epoch, self.examples.rows)
        return iter(np.array_split(order, self.steps))

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return max(1, -(-len(self.examples) // self.recipe.batch))

    def one_epoch(self, step: Step) -> None:
        """Train one epoch, record it, and leave a checkpoint."""
        self.model.train()
        recording = (
            self.recorder if self.watch and self.watch.when == "train" and self.watch.wants(self.epoch) else None
        )
        numbers = draws(self.recipe.augment, self.seed, self.epoch, self.examples.total)
        losses = torch.zeros((), device=self.where)
        with features_of(self.model) as features, keyed(self.where, self.seed, "layers", self.epoch):
            for index, rows in enumerate(self.batches()):
                rate = self.recipe.learning_rate_at(self.epoch * self.steps + index, self.steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                images, labels = self.store.gather(rows)
                shown = augmented(images, self.recipe.augment, None if numbers is None else numbers[rows])
                if self.objective is None:
                    logits = self._logits(shown)
                    loss = self._usual(logits, labels)
                else:
                    loss = self.objective.loss(self._batch(rows, images, shown, labels))
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                if self.objective is not None:
                    self.objective.stepped(self.model)
                losses += loss.detach()
                if recording is not None and self.watch is not None:
                    recording.record(
                        rows, logits, features[0] if features and self.epoch in self.watch.features else None
                    )
                step.advance(len(rows))
        self._check(float(losses) / self.steps)
        if self.recorder is not None and self.watch is not None and self.watch.wants(self.epoch):
            if self.watch.when == "eval":
                self._examine(step)
            self._note(self.recorder.end_epoch())
        self.epoch += 1
        self._save()
        self.cost.and_then(self.meter.cost()).save(self.out)

    def _logits(self, images: Tensor) -> Tensor:
        with autocast(self.where, self.precision):
            logits: Tensor = self.forward(images)
        return logits

    def _usual(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch, as the recipe clamps it and holds it up."""
        each = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        loss = (each if self.recipe.clamp is None else each.clamp(max=self.recipe.clamp)).mean()
        return loss if self.recipe.floor is None else (loss - self.recipe.floor).abs() + self.recipe.floor

    def _batch(self, rows: NDArray[np.int64], images: Tensor, shown: Tensor, labels: Tensor) -> Batch:
        augment = self.recipe.augment

        def again(number: int) -> Tensor:
            drawn = draws(augment, self.seed, self.epoch, self.examples.total, f"augment/{number}")
            return augmented(images, augment, None if drawn is None else drawn[rows])

        return Batch(
            rows=rows,
            images=shown,
            labels=labels,
            epoch=self.epoch,
            epochs=self.recipe.epochs,
            model=self.model,
            forward=lambda pictures: self._logits(pictures).float(),
            again=again,
        )

    def _check(self, loss: float) -> None:
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at epoch {self.epoch} (from 0) with learning rate {self.recipe.learning_rate:g}. "
                "Give a lower learning rate, or precision float32."
            )

    def _examine(self, step: Step) -> None:
        """Record the watched rows in eval mode, without augmentation."""
        assert self.recorder is not None and self.watch is not None  # noqa: PT018
        wants_features = self.epoch in self.watch.features
        self.model.eval()
        with torch.inference_mode(), features_of(self.model) as features:
            for rows in blocks(self.watch.rows):
                images, _ = self.store.gather(rows)
                with autocast(self.where, self.precision):
                    logits = self.forward(images)
                self.recorder.record(rows, logits, features[0] if wants_features and features else None)
                step.advance(PASS * len(rows))

    def _note(self, paths: list[Path]) -> None:
        self.files.update({str(path.relative_to(self.out)): run.digest(path) for path in paths})

    def _save(self) -> None:
        facts = {"files": self.files, "precision": self.precision}
        checkpoint.save_state(self.out, self.whole, self.optimizer, self.epoch, facts)

    def finish(self) -> nn.Module:
        """Leave the model in the folder, marked as done."""
        checkpoint.save_model(self.out, self.model, self._card())
        passing = ("checkpoint_", "state.json", ".lock", cost.NAME)
        files = [path for path in self.out.rglob("*") if path.is_file() and not path.name.startswith(passing)]
        run.finish(self.out, files=files, precision=self.precision)
        checkpoint.drop_state(self.out)
        return self._in_eval_mode()

    def _in_eval_mode(self) -> nn.Module:
        network: nn.Module = self.model.eval()
        return network

    def _card(self) -> dict[str, Any]:
        return {
            "model": "custom" if self.custom else self.recipe.model,
            "class_names": list(self.examples.class_names),
            "size": list(self.size),
            "rows": len(self.examples),
            "source": self.examples.source,
            "seed": self.seed,
            "precision": self.precision,
            "recipe": self.recipe.facts(),
        }


def _matrices(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Part the weights: matrices and convolutions between hidden layers, and all others.

    Among the others are the head and convolutions of each channel by itself.
    """
    head = head_of(model)
    hidden: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for weight in model.parameters():
        inner = weight.dim() in (2, 4) and weight.shape[1] > 1 and (head is None or weight is not head.weight)
        (hidden if inner else others).append(weight)
    return hidden, others


def _optimizer(model: nn.Module, recipe: Recipe, more: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
    everything = [*model.parameters(), *more]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(everything, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "muon":
        hidden, others = _matrices(model)
        return Muon(
            hidden,
            [*others, *everything[len(hidden) + len(others) :]],
            recipe.learning_rate,
            recipe.momentum,
            recipe.weight_decay,
        )
    return torch.optim.SGD(
        everything,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )


def blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Return the rows in blocks of which each passes through a model at once."""
    return (rows[start : start + EVAL_BATCH] for start in range(0, len(rows), EVAL_BATCH))


def predict(model: nn.Module, examples: Examples, where: torch.device | None = None) -> NDArray[np.float32]:
    """Return a model's logits for the members of ``examples``: float32 (members, classes)."""
    place = where or device()
    store = PixelStore(examples, place)
    model = model.to(place).eval()
    parts: list[Tensor] = []
    with torch.inference_mode():
        for rows in blocks(examples.rows):
            parts.append(model(store.gather(rows)[0]).float())
    logits: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    return logits
