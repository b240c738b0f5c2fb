"""CBD: a model that keeps away from what another one learned first (Zhang Z., Liu, Wang, Lu and Hu, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from untaint import run
from untaint.defenses.base import Card, Defense, Outcome, Task
from untaint.errors import InputError, SpecError
from untaint.models.build import head_of
from untaint.recipe import Precision
from untaint.training.device import autocast, device, keyed
from untaint.training.objective import Batch, Objective

__all__ = ["CBD", "Critic", "Deconfounding"]

STAGE = "confounder"
BETAS = (0.9, 0.999)  # of Adam
TINY = 1e-8
WARM = 10  # turns of the power iteration before the first step


@dataclass(frozen=True, kw_only=True)
class CBD(Defense):
    """A model trained on everything, in which a row counts the less the sooner a first model learned it, and whose features are to say nothing of the first one's; nothing is set aside.

    The first model is trained for ``epochs`` only, of the clean model's own schedule: triggers are learned by then, and most else is not (of few pictures, or of a short schedule, see how well that
    model does: fewer epochs leave more accuracy, too few miss the trigger). In the second, by the recipe of the clean model, the cross-entropy of a row is
    weighted by the first model's loss of it as a share of both models' (the first's is small: the row counts little). ``strength`` times a lower bound of how much its features and the first model's have to do with each
    other (in the sense of Wasserstein's distance) is added: a critic of Lipschitz constant 1 is trained, by Adam at ``critic_rate``, to tell pairs of features of the same picture from those of two. ``bottleneck`` times the squared
    length of the features stands for what they say of the picture.

    The paper's: the three terms, 5 epochs, 0.1 (of SGD, where here the preset's recipe stands) and 0.2. Ours: weights of the second and third term, two layers of the critic as wide as the features, and that the other
    picture of a pair is the batch's next. Raises InputError for a network without a linear head.
    """

    epochs: int = 5
    strength: float = 1.0
    bottleneck: float = 1e-4
    critic_rate: float = 0.2

    card: ClassVar[Card | None] = Card(
        paper="Zhang, Liu, Wang, Lu and Hu: Backdoor defense via deconfounded representation learning, CVPR 2023",
        assumes="triggers are learned within a few epochs, and what clean pictures show is not",
        claim="six attacks on several data sets made much weaker, at high accuracy on clean pictures",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.epochs < 1:
            raise SpecError(f"epochs is {self.epochs}; give how long the first model is trained, at least 1.")
        for name in ("strength", "bottleneck"):
            if not getattr(self, name) >= 0:
                raise SpecError(f"{name} is {getattr(self, name)}; give a weight of at least 0.")
        if not self.critic_rate > 0:
            raise SpecError(f"critic_rate is {self.critic_rate}; give a learning rate above 0.")

    def defend(self, task: Task) -> Outcome:
        """Return the second model; nothing is scored."""
        recipe = task.preset.retrain
        early = replace(recipe, epochs=self.epochs, horizon=max(recipe.horizon or recipe.epochs, self.epochs))
        facts = run.finished(task.fit(STAGE, early, what="train the model of what is learned first"))
        assert facts is not None
        objective = Deconfounding(
            task.load(STAGE).to(task.where or device()),
            strength=self.strength,
            bottleneck=self.bottleneck,
            critic_rate=self.critic_rate,
            precision=facts["precision"],
            seed=task.seed,
        )
        return Outcome(
            scores=None,
            verdict=None,
            model=task.fit("model", recipe, objective=objective, what="train a model away from it"),
        )


class Deconfounding(Objective):
    """The loss of the second model; ``first``: the first one, on the device, which stays as it is."""

    def __init__(
        self,
        first: nn.Module,
        *,
        strength: float = 1.0,
        bottleneck: float = 1e-4,
        critic_rate: float = 0.2,
        precision: Precision = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        head = head_of(first)
        if head is None:
            raise InputError("the model has no linear layer, so that it has no penultimate features. Give another.")
        self._first = (first.eval().requires_grad_(False),)  # in a tuple: neither trained nor kept with the objective
        self.strength, self.bottleneck, self.precision = strength, bottleneck, precision
        self.critic = Critic(2 * head.in_features, critic_rate, seed)

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted cross-entropy, and what the features say of the first model's and of the picture."""
        (first,) = self._first
        with torch.no_grad(), autocast(batch.images.device, self.precision), seen_by_head(first) as theirs:
            told = first(batch.images)
        with seen_by_head(batch.model) as own:
            logits = batch.forward(batch.images)
        features, known = own[0], theirs[0]
        sooner = nn.functional.cross_entropy(told.float(), batch.labels, reduction="none")
        each = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        loss = (weights(sooner, each.detach()) * each).mean() + self.bottleneck * features.square().sum(1).mean()
        if self.strength:
            self.critic.learn(features.detach(), known)
            loss = loss + self.strength * self.critic(features, known)
        return loss


def weights(sooner: Tensor, later: Tensor) -> Tensor:
    """Return how much rows count: the first model's loss as a share of both models', (batch,)."""
    return sooner / (sooner + later).clamp(min=TINY)


class Critic(nn.Module):
    """How much two features of one picture have to do with each other: by how much it rates pairs of them above pairs of two pictures'.

    Two layers, each divided by its largest singular value, so that no rating changes by more than the pair does. All that it learns are buffers.
    """

    along: Tensor
    inner: Tensor
    steps: Tensor

    def __init__(self, width: int, rate: float, seed: int = 0) -> None:
        super().__init__()
        self.rate, hidden = rate, max(1, width // 2)
        with keyed(torch.device("cpu"), seed, "defenses/cbd"):
            shapes = {"inner": (hidden, width), "bias": (hidden,), "outer": (1, hidden)}
            for name, shape in shapes.items():
                start = torch.zeros(shape) if name == "bias" else torch.randn(shape) / shape[-1] ** 0.5
                self.register_buffer(name, start)
                for moment in ("mean", "square"):
                    self.register_buffer(f"{name}_{moment}", torch.zeros(shape))
            self.names = tuple(shapes)
            self.register_buffer("along", nn.functional.normalize(torch.randn(hidden), dim=0))
        self.register_buffer("steps", torch.zeros(()))
        for _ in range(WARM):
            self._turn()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the difference of the mean ratings, a scalar with gradients to both features, each (batch, width)."""
        return self._apart(self._layers(), one, other)

    def learn(self, one: Tensor, other: Tensor) -> None:
        """Take one step of Adam up that difference."""
        self._turn()
        asked = [layer.clone().requires_grad_() for layer in self._layers()]
        slopes = torch.autograd.grad(self._apart(asked, one, other), asked)
        self.steps += 1
        for name, slope in zip(self.names, slopes, strict=True):
            mean, square = getattr(self, f"{name}_mean"), getattr(self, f"{name}_square")
            mean.lerp_(slope, 1 - BETAS[0])
            square.lerp_(slope.square(), 1 - BETAS[1])
            size = (square / (1 - BETAS[1] ** self.steps)).sqrt() + TINY
            getattr(self, name).add_(self.rate * mean / (1 - BETAS[0] ** self.steps) / size)

    def _layers(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.names]

    def _apart(self, layers: list[Tensor], one: Tensor, other: Tensor) -> Tensor:
        inner, bias, outer = layers
        with torch.no_grad():
            across = nn.functional.normalize(inner.T @ self.along, dim=0)
        largest = self.along @ inner @ across  # singular value
        together = torch.cat([torch.cat([one, other], 1), torch.cat([one, other.roll(1, 0)], 1)])
        hidden = nn.functional.leaky_relu(together @ (inner / largest).T + bias, 0.2)
        rated = hidden @ (outer / outer.norm()).T
        apart: Tensor = rated[: len(one)].mean() - rated[len(one) :].mean()
        return apart

    @torch.no_grad()
    def _turn(self) -> None:
        """Bring ``along`` nearer to the direction of the largest singular value."""
        across = nn.functional.normalize(self.inner.T @ self.along, dim=0)
        self.along = nn.functional.normalize(self.inner @ across, dim=0)


@contextmanager
def seen_by_head(model: nn.Module) -> Iterator[list[Tensor]]:
    """Give a list that holds what the last linear layer was given in the latest pass, with its gradients: float32 (batch, width)."""
    latest: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        latest[:] = [inputs[0].flatten(1).float()]

    head = head_of(model)
    assert head is not None  # of the same kind as the first model, which was asked
    handle = head.register_forward_pre_hook(keep)
    try:
        yield latest
    finally:
        handle.remove()
