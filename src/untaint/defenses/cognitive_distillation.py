"""Cognitive distillation: rows of which little is needed for the model to say what it says (Huang, Ma, Erfani and Bailey, 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untaint import rng
from untaint.defenses._perturbed import above_probes_by_deviation, beside, finite, parts, reference
from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import SpecError
from untaint.scores import Scores
from untaint.training.device import autocast

__all__ = ["CognitiveDistillation", "mask_norms"]

BETAS = (0.1, 0.1)  # of Adam
SIDE = 32  # of the pictures for which the paper's gamma is meant
BYTES = 2**30  # that the layers' outputs may take, and their gradients


@dataclass(frozen=True, kw_only=True)
class CognitiveDistillation(Detector):
    """How small a part of a picture the model's answer needs: by how many deviations its mask is smaller than that of the probes, on average.

    A mask, 0 to 1, is sought for each row with which the undefended model's answer stays as it is, what is masked being a colour that is drawn anew at each of
    ``steps`` steps of Adam with ``learning_rate``. It costs by how much the answer differs, ``gamma`` times its sum (in pictures of another size, of as large a share of 32x32)
    and ``beta`` times its mean squared differences between neighbours. The part ``share`` is its mean. ``keep``: what is to stay, ``probabilities`` (the sum of their differences)
    or ``logits`` (the mean of theirs). The rule taken here is the paper's, Huang et al. (ICLR 2023): a deviation below the mean. Without probes, rows drawn by lot stand in for
    them, which may be poisoned.

    ``beta`` is that of a later benchmark, the authors' for small pictures is 1. That probabilities can be kept is ours (``gamma=0.003`` suits them): in a small network a trigger
    decides what the answer is, but not how unlikely all others are, so that its own few pixels do not keep the logits. It helped against one patch, and did harm under seven attackers.
    """

    learning_rate: float = 0.1
    gamma: float = 0.01
    beta: float = 10.0
    steps: int = 100
    keep: Literal["probabilities", "logits"] = "logits"

    card: ClassVar[Card | None] = Card(
        paper="Huang, Ma, Erfani and Bailey: Distilling cognitive backdoor patterns within an image, ICLR 2023",
        assumes="a small part of a picture is all that a trigger needs",
        rate="threshold",
        claim="minimal masks tell single backdoors of many kinds from clean pictures; measured by others at 10 %: 86 % found, with 16 % of clean pictures",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED,)
    usual_rule: ClassVar[str | None] = "above:score=1"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.steps < 1:
            raise SpecError(f"steps is {self.steps}; give at least 1, such as 100.")
        if not 0 < self.learning_rate < np.inf:
            raise SpecError(f"learning_rate is {self.learning_rate}; give a number above 0, such as 0.1.")
        for name in ("gamma", "beta"):
            if not 0 <= getattr(self, name) < np.inf:
                raise SpecError(f"{name} is {getattr(self, name)}; give a number that is not negative.")

    def score(self, task: Task) -> Scores:
        """Return by how many deviations each row's mask is smaller than the probes'."""
        options = f"{self.learning_rate:g}-{self.gamma:g}-{self.beta:g}-{self.steps}-{self.keep}-{task.seed}"
        share = task.once(beside(task, f"cognitive-distillation-{options}"), lambda: mask_norms(task, self))
        values = above_probes_by_deviation(-share, task.compared_with).astype(np.float32)
        return Scores(values=values, name="cognitive-distillation", parts={"share": share})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the pictures that pass through the undefended model; a step for a mask takes as long as one of training."""
        count = len(task.examples)
        return [(UNDEFENDED, (task.preset.retrain.epochs + self.steps) * count, 0)]

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how much of it the model needs."""
        return [f"{scores.parts['share'][row]:.1%} of the picture is all that the model needs" for row in rows]

    def limits(self) -> list[str]:
        """Return what cognitive distillation cannot tell."""
        return [
            "Triggers that are spread over the whole picture need as large a mask as what it shows, or a larger one. Clean pictures with little in them need a small one, and some are set aside, poison or not.",
        ]


def mask_norms(task: Task, options: CognitiveDistillation) -> NDArray[np.float32]:
    """Return the mean of each row's mask: float32 (all rows,), nan for no members. Raises InputError if the model's answers are not finite."""
    model, store = reference(task)
    rows, steps, precision = task.examples.rows, options.steps, task.preset.watch.precision
    values = np.full(task.examples.total, np.nan, dtype=np.float32)
    most = _fitting(model, store.gather(rows[:1])[0])
    with task.progress.step("distil", len(rows) * steps) as step:
        for block in parts(rows, task.examples.images.shape, most):
            images = store.gather(block)[0]
            channels = images.shape[1]
            drawn = rng.uniform(task.seed, "defenses/cognitive-distillation", 0, block, steps * channels)
            colours = torch.from_numpy(drawn.astype(np.float32).reshape(-1, steps, channels, 1, 1)).to(images.device)
            weights = torch.ones_like(images[:, :1]).requires_grad_()
            optimizer = torch.optim.Adam([weights], lr=options.learning_rate, betas=BETAS)
            with autocast(images.device, precision), torch.no_grad():
                whole = model(images).float()
            finite(whole)
            for colour in colours.unbind(1):
                optimizer.zero_grad(set_to_none=True)
                mask = (weights.tanh() + 1) / 2
                with autocast(images.device, precision):
                    given = model(images * mask + (1 - mask) * colour).float()
                loss = _difference(given, whole, options.keep)
                loss = loss + options.gamma * SIDE**2 * mask.mean(dim=(1, 2, 3)) + options.beta * _roughness(mask)
                loss.sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step.advance(len(block))
            values[block] = finite(((weights.detach().tanh() + 1) / 2).mean(dim=(1, 2, 3)))
    return values


def _difference(given: Tensor, whole: Tensor, keep: str) -> Tensor:
    """Return by how much an answer differs from that to the whole picture, both as logits: (batch,)."""
    if keep == "logits":
        return (given - whole).abs().mean(dim=1)
    return (given.softmax(dim=1) - whole.softmax(dim=1)).abs().sum(dim=1)


def _roughness(mask: Tensor) -> Tensor:
    """Return the squared differences of neighbours, per pixel: (batch,)."""
    down, across = mask.diff(dim=2).square().sum(dim=(1, 2, 3)), mask.diff(dim=3).square().sum(dim=(1, 2, 3))
    return (down + across) / mask[0].numel()


def _fitting(model: nn.Module, picture: Tensor) -> int:
    """Return how many pictures there may be in a batch: what all layers give, and its gradient, must find room."""
    given: list[int] = []

    def count(_: nn.Module, __: Any, out: Any) -> None:
        given.append(out.numel() * out.element_size() if isinstance(out, Tensor) else 0)

    handles = [layer.register_forward_hook(count) for layer in model.modules() if not list(layer.children())]
    try:
        with torch.inference_mode():
            model(picture)
    finally:
        for handle in handles:
            handle.remove()
    return max(1, BYTES // max(1, 2 * sum(given)))
