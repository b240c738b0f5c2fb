"""Something put behind a layer of any network, by the layer's name: EigenGuard, which is also taken out again."""

from __future__ import annotations

import copy
import difflib
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from untaint.errors import InputError, SpecError
from untaint.models._spectrum import Common
from untaint.models.eigenguard import EigenGuard

__all__ = [
    "BEFORE_POOL",
    "Behind",
    "Guard",
    "insert_eigenguard",
    "layer_named",
    "put_behind",
    "remove_eigenguard",
    "tensor_of",
]

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


class Behind(nn.Module):
    """A layer, and another that is ``added`` behind it; ``layer``: the name of the first in its model, for messages."""

    def __init__(self, inside: nn.Module, added: nn.Module, layer: str) -> None:
        super().__init__()
        self.layer = layer
        self.inside = inside
        self.added = added

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """Return what the added layer makes of the layer's features."""
        out: Tensor = self.added(tensor_of(self.inside(*given, **named), self.layer))
        return out


def put_behind(model: nn.Module, at: str, added: nn.Module) -> Behind:
    """Put a layer behind the one that is called ``at``, as for ``insert_eigenguard``, in this very model; return both.

    Raises SpecError for a layer that there is not.
    """
    name, inside = layer_named(model, at)
    parent, _, last = name.rpartition(".")
    both = Behind(inside, added, name).train(inside.training)
    setattr(model.get_submodule(parent), last, both)
    return both


@dataclass(frozen=True, kw_only=True)
class Guard:
    """EigenGuard behind a layer, by its options: ``resnet18+eigenguard:k=50,at=layer3``."""

    at: str = BEFORE_POOL
    k: int = 50
    remainder: float = 1e-3
    common: Common = "kth"
    matrix: Literal["flat", "channel"] = "flat"
    eval: Literal["running", "batch"] = "running"
    gradient: Literal["held", "exact"] = "held"
    steps: int | None = None

    def put_into(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model with EigenGuard in it; raises SpecError for a layer that there is not, or for an option out of range."""
        options = asdict(self)
        return insert_eigenguard(model, options.pop("at"), **options)


def insert_eigenguard(
    model: nn.Module, at: str = BEFORE_POOL, *, guard: EigenGuard | None = None, **options: Any
) -> nn.Module:
    """Return a copy of a model with EigenGuard behind one of its layers; the model given stays as it is.

    ``at``: the layer's name as in ``model.named_modules()`` or the end of it, such as ``"layer3"``, or ``"before-pool"``: the last layer before the pooling (the features of
    VGG, MobileNet and the proxy, the fourth stage of a ResNet, all blocks of a ViT). ``options``: those of ``EigenGuard``; or ``guard``, one that is made already, which is copied. Weights are
    the same, under names with ``inside`` in them; ``remove_eigenguard`` gives the old names back. Insert several times for several layers.

    Raises SpecError for a layer that there is not, or for options beside a guard; InputError where one is guarded already.
    """
    if guard is not None and options:
        raise SpecError(
            f"an EigenGuard was given, and {', '.join(options)} beside it. Give options to the one that you make."
        )
    guarded = copy.deepcopy(model)
    name, inside = layer_named(guarded, at)
    holder = guarded.get_submodule(name.rpartition(".")[0])
    if isinstance(inside, EigenGuard) or _is_guarded(inside) or (isinstance(holder, Behind) and _is_guarded(holder)):
        raise InputError(f"there is an EigenGuard at {name} already. Take it out with remove_eigenguard first.")
    guard = EigenGuard(**options) if guard is None else copy.deepcopy(guard)
    guard.layer = name
    put_behind(guarded, at, guard)
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
            if isinstance(inside, Behind) and isinstance(inside.added, EigenGuard):
                setattr(holder, name, inside.inside)
            elif isinstance(inside, EigenGuard) and not (isinstance(holder, Behind) and holder.added is inside):
                setattr(holder, name, nn.Identity())
    return plain


def _is_guarded(layer: nn.Module) -> bool:
    """Tell whether an EigenGuard was put behind a layer, perhaps with others."""
    while isinstance(layer, Behind):
        if isinstance(layer.added, EigenGuard):
            return True
        layer = layer.inside
    return False


def layer_named(model: nn.Module, at: str) -> tuple[str, nn.Module]:
    """Return the full name of the layer asked for, and the layer; ``at`` as for ``insert_eigenguard``.

    A layer inside of one that something was put behind is found by the name that it had before. Raises SpecError for one that there is not.
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
    found = found or [name for name in names if f".{_before(model, name)}".endswith(f".{at}")]
    if len(found) == 1:
        return found[0], model.get_submodule(found[0])
    near = found[:SHOWN] or difflib.get_close_matches(at, names, SHOWN, 0.4) or names[:SHOWN]
    raise SpecError(
        f"{type(model).__name__} has no layer {at!r}{', or several' if found else ''}. There are {', '.join(near) or 'none'}, and others; model.named_modules() has all."
    )


def _before(model: nn.Module, name: str) -> str:
    """Return the name that a layer had before something was put behind those that it is in."""
    parts = name.split(".")
    kept = [
        part
        for place, part in enumerate(parts)
        if not (part == "inside" and isinstance(model.get_submodule(".".join(parts[:place])), Behind))
    ]
    return ".".join(kept)


def tensor_of(out: Any, at: str) -> Tensor:
    """Return what a layer gives; raises SpecError if that is not one tensor."""
    if not isinstance(out, Tensor):
        raise SpecError(f"the layer {at} gives a {type(out).__name__}, not one tensor. Name another layer.")
    return out
