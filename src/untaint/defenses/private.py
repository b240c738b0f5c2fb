"""Private: training in which no single picture has much to say (DP-SGD: Abadi et al., CCS 2016), as a defence against poison (Hong et al., 2020; Borgnia et al., 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from untaint import run, spec
from untaint.defenses.base import Card, Defense, Outcome, Task
from untaint.errors import InputError, SpecError
from untaint.models.build import parted
from untaint.models.group_norm import Grouped
from untaint.models.inserting import Guard
from untaint.models.whitening import Whiten
from untaint.training.objective import Batch, Objective

__all__ = ["Clipping", "Private", "clipped_sum", "epsilon"]

NUMBERS = 2**26  # of the gradients of single pictures that are held at once: 256 MB
ORDERS = (1.01, 1.02, 1.05, *(1 + tenth / 10 for tenth in range(1, 100)), *range(11, 65), 96, 128, 256, 512, 1024)
FAR, FINE = 12, 8  # deviations that are integrated over, and steps in each


@dataclass(frozen=True, kw_only=True)
class Private(Defense):
    """A model trained on everything by gradients of which each picture's is cut to the length ``clip``, and noise added; nothing is set aside.

    The noise of a batch's sum has the deviation ``noise`` times ``clip`` in each weight. Few pictures, as poison, cannot then move the model far: an (epsilon, delta) of differential privacy bounds how far. It is left in ``privacy.json`` beside the
    model and said to the progress, for the ``noise``, the batches and the ``epochs`` of this training; 0 epochs: as many as the clean model has. It is of the weights' training alone, not of the mean and scale of the pictures' colours, and
    reckons, as is usual, as if batches were drawn anew each time. Steps are of SGD with momentum at ``learning_rate``, since those of the preset are not made for noise. Batch normalisation, in which pictures
    have to do with each other, becomes group normalisation (``+group-norm`` in the model's name; of ``groups`` groups). It is dear: each step takes about twice as long, and in float32.

    Clipping is what resists poison according to Hong et al.; noise costs accuracy, and the more the fewer pictures there are. Which defaults are theirs is not known; these are ours. Gradients of single pictures come of
    ``torch.func``, and epsilon of Renyi's divergence (Mironov, Talwar and Zhang, 2019); no library is needed.
    """

    clip: float = 1.0
    noise: float = 0.5
    delta: float = 1e-5
    epochs: int = 0
    batch: int = 500
    learning_rate: float = 1.0
    momentum: float = 0.9
    groups: int = 8

    card: ClassVar[Card | None] = Card(
        paper="Hong, Chandrasekaran, Kaya, Dumitras and Papernot: On the effectiveness of mitigating data poisoning attacks with gradient shaping, arXiv 2002.11497, 2020",
        assumes="poison is so little that what no picture alone can teach it cannot teach either",
        claim="poisoning of many kinds made harder, at a loss of accuracy",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("clip", "learning_rate"):
            if not getattr(self, name) > 0:
                raise SpecError(f"{name} is {getattr(self, name)}; give more than 0.")
        if not self.noise >= 0:
            raise SpecError(f"noise is {self.noise}; give at least 0, which only clips.")
        if not 0 < self.delta < 1 or not 0 <= self.momentum < 1:
            raise SpecError(
                f"delta is {self.delta}, momentum {self.momentum}; give above 0 and below 1, and from 0 to below 1."
            )
        if self.epochs < 0 or self.batch < 1:
            raise SpecError(f"epochs is {self.epochs}, batch {self.batch}; give at least 0, and at least 1.")
        Grouped(groups=self.groups)

    def defend(self, task: Task) -> Outcome:
        """Return the model; nothing is scored."""
        layer, own, recipe = Grouped(groups=self.groups), task.model, task.preset.retrain
        recipe = replace(
            recipe,
            epochs=self.epochs or recipe.epochs,
            horizon=None,
            batch=self.batch,
            optimizer="sgd",
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=0.0,
            schedule="one-cycle",
            precision="float32",
        )
        if own is not None:
            task = replace(task, model=lambda: layer.put_into(own()))
        else:
            for inserted in parted(recipe.model)[1]:
                if isinstance(inserted, Guard | Whiten):
                    raise SpecError(f"in {recipe.model} pictures have to do with each other. Give another model.")
            recipe = replace(recipe, model=f"{recipe.model}+{spec.text('group-norm', layer)}")
        place = task.fit(
            "model", recipe, objective=Clipping(self.clip, self.noise), what="train with clipped gradients and noise"
        )
        self._account(task, recipe.epochs)
        return Outcome(scores=None, verdict=None, model=place)

    def _account(self, task: Task, epochs: int) -> None:
        """Write down and say how private the training was."""
        steps = max(1, -(-len(task.examples) // self.batch))
        found = epsilon(self.noise, 1 / steps, steps * epochs, self.delta)
        facts = {"epsilon": found if math.isfinite(found) else None, "delta": self.delta, "steps": steps * epochs}
        run.write_json(task.scratch / "privacy.json", {**facts, "noise": self.noise, "clip": self.clip})
        said = f"epsilon is {found:.3g}" if math.isfinite(found) else "no epsilon can be given"
        task.progress.say(f"how private the training was: {said} at delta {self.delta:g}.")


class Clipping(Objective):
    """A loss whose slope is the mean of the batch's gradients, each cut to the length ``clip``, with noise of ``noise`` times that in their sum."""

    def __init__(self, clip: float, noise: float) -> None:
        super().__init__()
        self.clip, self.noise = clip, noise

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, of that slope."""
        weights = dict(batch.model.named_parameters())
        sums, losses = clipped_sum(batch.model, batch.images, batch.labels, self.clip)
        total = torch.zeros((), device=batch.images.device)
        for name, weight in weights.items():
            noisy = sums[name] + self.noise * self.clip * torch.randn_like(weight)  # the training keys what layers draw
            total = total + (weight * (noisy / len(batch.rows))).sum()
        return total - total.detach() + losses / len(batch.rows)


def clipped_sum(model: nn.Module, images: Tensor, labels: Tensor, clip: float) -> tuple[dict[str, Tensor], Tensor]:
    """Return the sum over pictures of the gradient of each one's cross-entropy, cut to the length ``clip``, by the names of weights; and the sum of the cross-entropies.

    Raises SpecError for a network in which a picture cannot be looked at by itself.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(given: dict[str, Tensor], image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(model, (given, buffers), (image[None],))
        value = nn.functional.cross_entropy(logits.float(), label[None])
        return value, value.detach()

    each = vmap(grad(loss, has_aux=True), in_dims=(None, 0, 0), randomness="different")
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    total = torch.zeros((), device=images.device)
    most = max(1, NUMBERS // sum(weight.numel() for weight in weights.values()))
    for start in range(0, len(images), most):
        some, told = images[start : start + most], labels[start : start + most]
        try:
            slopes, losses = each(weights, some, told)
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise SpecError(
                f"no gradient of each picture can be had of this network ({reason}). Give another."
            ) from error
        lengths = torch.stack([slope.flatten(1).norm(dim=1) for slope in slopes.values()]).norm(dim=0)
        scale = clip / lengths.clamp(min=clip)
        for name, slope in slopes.items():
            sums[name] += torch.tensordot(scale, slope, dims=1)
        total = total + losses.sum()
    return sums, total


def epsilon(noise: float, share: float, steps: int, delta: float) -> float:
    """Return the epsilon of differential privacy of so many steps, each on a random ``share`` of the pictures with noise of ``noise`` times the longest gradient; inf without noise.

    By Renyi's divergence of the subsampled Gaussian mechanism (Mironov, Talwar and Zhang, 2019), and the conversion of Balle et al. (AISTATS 2020).
    """
    if not 0 < share <= 1 or steps < 1 or not 0 < delta < 1:
        raise InputError(f"share is {share}, steps {steps}, delta {delta}; give up to 1, at least 1, and below 1.")
    if noise <= 0:
        return math.inf
    best = math.inf
    for order in ORDERS:
        spent = steps * _divergence(noise, share, order)
        converted = spent + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        best = min(best, max(0.0, converted))
    return best


def _divergence(noise: float, share: float, order: float) -> float:
    """Return Renyi's divergence of an order above 1 after one step: the log of the mean of a ratio of densities to that power, over the order less one."""
    if share == 1:
        return order / (2 * noise**2)
    # the density without the picture is a Gaussian at 0; to the power its mass lies between 0 and the order
    at = np.arange(-FAR * noise, order + FAR * noise, noise / FINE)
    ratio = np.logaddexp(math.log1p(-share), math.log(share) + (2 * at - 1) / (2 * noise**2))
    density = -(at**2) / (2 * noise**2) - math.log(FINE * math.sqrt(2 * math.pi))
    return float(np.logaddexp.reduce(density + order * ratio)) / (order - 1)
