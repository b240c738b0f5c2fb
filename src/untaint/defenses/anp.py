"""ANP: channels that tip a model over when their weights are disturbed are cut off (Wu D. and Wang Y., NeurIPS 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from untaint.defenses.base import Card, Mender
from untaint.errors import SpecError
from untaint.training.tuning import Clean

__all__ = ["ANP", "masks_of"]

Weights = dict[str, Tensor]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm2d)
RATE, MOMENTUM = 0.2, 0.9  # of the masks
PARTS = 100  # in which channels are cut off


@dataclass(frozen=True, kw_only=True)
class ANP(Mender):
    """The undefended model without the channels on which it leans most when an adversary may change each by ``epsilon`` of itself.

    A mask from 0 to 1 on the scale of every channel of every normalisation is learned on clean pictures: by ``alpha`` the loss as it is, by the rest the loss after the adversary took one
    step of sign, on scales and shifts. Channels whose mask ends below ``threshold`` are cut off (0.2 in the paper), but those lowest first (of equal ones, those nearest to the picture) and no more than cost ``drop`` of accuracy on the clean pictures:
    in a small network many masks end at 0, and together these channels are most of it. ``drop=1`` is the paper's rule alone. The paper has 2,000 ``steps`` of batches of 128.
    """

    epsilon: float = 0.4
    alpha: float = 0.2
    threshold: float = 0.2
    drop: float = 0.05
    steps: int = 2000
    batch: int = 125

    card: ClassVar[Card | None] = Card(
        paper="Wu and Wang: Adversarial neuron pruning purifies backdoored deep models, NeurIPS 2021",
        assumes="a backdoor sits in a few channels, which tip the model over when weights are disturbed",
        clean=10,
        claim="with 1 % of the pictures known to be clean it removes single backdoors, at hardly any loss",
    )
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.epsilon > 0 or self.steps < 1 or self.batch < 2:
            raise SpecError(
                f"epsilon is {self.epsilon}, steps {self.steps}, batch {self.batch}; give more than 0, at least 1, and at least 2."
            )
        for name in ("alpha", "threshold", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give a number from 0 to 1.")

    def mend(self, model: nn.Module, clean: Clean) -> nn.Module:
        """Return the model without these channels."""
        masks = masks_of(model, clean, self.epsilon, self.alpha, self.steps, self.batch)
        order = sorted(
            ((float(mask[channel]), name, channel) for name, mask in masks.items() for channel in range(len(mask))),
        )
        candidates = [(name, channel) for value, name, channel in order if value < self.threshold]
        count = _most(model, candidates, clean, self.drop)
        _cut(model, candidates[:count])
        clean.progress.say(f"{count} of {len(order)} channels are cut off.")
        return model.eval()


def masks_of(model: nn.Module, clean: Clean, epsilon: float, alpha: float, steps: int, batch: int) -> dict[str, Tensor]:
    """Return the mask of each normalisation's channels, by its name: float32 from 0 to 1.

    Statistics of the normalisations stay as they are. Raises SpecError for a model that has none with weights.
    """
    model = model.to(clean.where).eval()
    norms = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, NORMS) and isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
    }
    if not norms:
        raise SpecError(
            "the model has no normalisation whose channels could be cut off, which ANP needs. Give another."
        )
    fixed = {name: (layer.weight.detach(), layer.bias.detach()) for name, layer in norms.items()}
    masks = {name: torch.ones_like(weight).requires_grad_() for name, (weight, _) in fixed.items()}
    optimizer = torch.optim.SGD(masks.values(), lr=RATE, momentum=MOMENTUM)

    def loss(images: Tensor, labels: Tensor, scale: Weights, shift: Weights) -> Tensor:
        changed = {f"{name}.weight": weight * scale[name] for name, (weight, _) in fixed.items()}
        changed |= {f"{name}.bias": bias * shift[name] for name, (_, bias) in fixed.items()}
        return nn.functional.cross_entropy(functional_call(model, changed, (images,)).float(), labels)

    with clean.progress.step("look for channels that tip it over", steps, unit="steps") as step:
        for images, labels in clean.batches(steps, batch):
            noise = {
                name: (torch.zeros_like(w).requires_grad_(), torch.zeros_like(b).requires_grad_())
                for name, (w, b) in fixed.items()
            }
            tipped = loss(
                images,
                labels,
                {name: masks[name].detach() + noise[name][0] for name in masks},
                {name: 1 + noise[name][1] for name in masks},
            )
            slopes = torch.autograd.grad(tipped, [one for pair in noise.values() for one in pair])
            away = dict(zip(noise, zip(slopes[::2], slopes[1::2], strict=True), strict=True))
            plain = loss(images, labels, masks, {name: torch.ones_like(b) for name, (_, b) in fixed.items()})
            worst = loss(
                images,
                labels,
                {name: masks[name] + epsilon * away[name][0].sign() for name in masks},
                {name: 1 + epsilon * away[name][1].sign() for name in masks},
            )
            optimizer.zero_grad(set_to_none=True)
            (alpha * plain + (1 - alpha) * worst).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                for mask in masks.values():
                    mask.clamp_(0, 1)
            step.advance(1)
    return {name: mask.detach().cpu() for name, mask in masks.items()}


def _most(model: nn.Module, candidates: list[tuple[str, int]], clean: Clean, drop: float) -> int:
    """Return how many of the channels can be cut off, in their order, before accuracy falls by more than ``drop``, by hundredths of them, or one by one."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    least, found = clean.accuracy(model) - drop, 0
    parts = sorted({math.ceil(len(candidates) * part / PARTS) for part in range(1, PARTS + 1)})
    for count in parts:
        _cut(model, candidates[found:count])
        if clean.accuracy(model) < least:
            break
        found = count
    model.load_state_dict(kept)
    return found


def _cut(model: nn.Module, channels: list[tuple[str, int]]) -> None:
    with torch.no_grad():
        for name, channel in channels:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            weight[channel] = 0
