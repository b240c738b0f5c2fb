"""EigenGuard put behind a layer of any network, by the layer's name, and taken out again."""

from __future__ import annotations

import copy
import difflib
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from untaint.errors import InputError, SpecError
from untaint.models._spectrum import Common
from untaint.models.eigenguard import EigenGuard

__all__ = ["BEFORE_POOL", "Guard", "Guarded", "insert_eigenguard", "layer_named", "remove_eigenguard", "tensor_of"]

BEFORE_POOL = "before-pool"
LAST = (
    "layer4",
    "features",
    "body",
    "encoder",
    "blocks",
    "stages",
)  # what common networks call what ends before the pooling
SHOWN = 8  # names in a message


@dataclass(frozen=True, kw_only=True)
class Guard:
    """EigenGuard by its options, and where it is put: what ``resnet18+eigenguard:k=50,at=layer3`` says behind the plus."""

    at: str = BEFORE_POOL
    k: int = 50
    remainder: float = 1e-3
    common: Common = "kth"
    matrix: Literal["flat", "channel"] = "flat"
    eval: Literal["running", "batch"] = "running"
    gradient: Literal["held", "exact"] = "held"

    def put_into(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model with EigenGuard in it; raises SpecError for a layer that there is not, or for an option out of range."""
        options = asdict(self)
        return insert_eigenguard(model, options.pop("at"), **options)


class Guarded(nn.Module):
    """A layer, and EigenGuard behind it."""

    def __init__(self, inside: nn.Module, guard: EigenGuard) -> None:
        super().__init__()
        self.inside = inside
        self.guard = guard

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """Return the layer's features, their strongest directions equalised."""
        features = tensor_of(self.inside(*given, **named), self.guard.layer)
        guarded: Tensor = self.guard(features)
        return guarded


def insert_eigenguard(model: nn.Module, at: str = BEFORE_POOL, **options: Any) -> nn.Module:
    """Return a copy of a model with EigenGuard behind one of its layers; the model given stays as it is.

    ``at``: the layer's name as in ``model.named_modules()`` or the end of it, such as ``"layer3"``, or ``"before-pool"``: the last layer before the pooling (the features of
    VGG, MobileNet and the proxy, the fourth stage of a ResNet, all blocks of a ViT). ``options``: those of ``EigenGuard``. Weights are
    the same, under names with ``inside`` in them; ``remove_eigenguard`` gives the old names back. Insert several times for several layers.

    Raises SpecError for a layer that there is not, InputError where one is guarded already.
    """
    guarded = copy.deepcopy(model)
    name, inside = layer_named(guarded, at)
    parent, _, last = name.rpartition(".")
    holder = guarded.get_submodule(parent)
    if isinstance(inside, (Guarded, EigenGuard)) or isinstance(holder, Guarded):
        raise InputError(f"there is an EigenGuard at {name} already. Take it out with remove_eigenguard first.")
    guard = EigenGuard(**options)
    guard.layer = name
    setattr(holder, last, Guarded(inside, guard).train(inside.training))
    return guarded


def remove_eigenguard(model: nn.Module) -> nn.Module:
    """Return a copy of a model without any EigenGuard; the model given stays as it is.

    Raises InputError if it has none.
    """
    if not any(isinstance(module, EigenGuard) for module in model.modules()):
        raise InputError("the model has no EigenGuard to take out: use it as it is.")
    plain = copy.deepcopy(model)
    if isinstance(plain, EigenGuard):
        return nn.Identity()
    for holder in list(plain.modules()):
        for name, inside in list(holder.named_children()):
            if isinstance(inside, Guarded):
                setattr(holder, name, inside.inside)
            elif isinstance(inside, EigenGuard) and not isinstance(holder, Guarded):
                setattr(holder, name, nn.Identity())
    return plain


def layer_named(model: nn.Module, at: str) -> tuple[str, nn.Module]:
    """Return the full name of the layer asked for, and the layer; ``at`` as for ``insert_eigenguard``.

    Raises SpecError for one that there is not.
    """
    names: list[str] = [name for name, _ in model.named_modules() if name]
    if at == BEFORE_POOL:
        found = [name for known in LAST for name in names if name.rpartition(".")[2] == known]
        if found:
            name = min(found, key=lambda name: name.count("."))
            return name, model.get_submodule(name)
        tops = [name for name, _ in model.named_children()]
        raise SpecError(
            f"where {type(model).__name__} pools its features is not known. Name the layer before, one of {', '.join(tops[:SHOWN]) or 'none'}."
        )
    inner = [name for name in names if name.endswith(f".{at}")]  # a network may stand in a larger one
    highest = min((name.count(".") for name in inner), default=0)
    found = [at] if at in names else [name for name in inner if name.count(".") == highest]
    if len(found) == 1:
        return found[0], model.get_submodule(found[0])
    near = found[:SHOWN] or difflib.get_close_matches(at, names, SHOWN, 0.4) or names[:SHOWN]
    raise SpecError(
        f"{type(model).__name__} has no layer {at!r}{', or several' if found else ''}. There are {', '.join(near) or 'none'}, and others; model.named_modules() has all."
    )


def tensor_of(out: Any, at: str) -> Tensor:
    """Return what a layer gives; raises SpecError if that is not one tensor."""
    if not isinstance(out, Tensor):
        raise SpecError(f"the layer {at} gives a {type(out).__name__}, not one tensor. Name another layer.")
    return out
