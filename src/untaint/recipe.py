"""``Recipe``: how one model is trained; ``Preset``: the recipes of a whole scan, by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from untaint.errors import SpecError, did_you_mean

__all__ = ["PRESETS", "VERSION", "Preset", "Recipe", "preset", "preset_of"]

VERSION = 1  # raised by hand whenever the same recipe trains another model than before

Augment = Literal["none", "crop", "crop-flip", "resized-crop"]
Pixels = Literal["plain", "normalised", "whitened"]
Precision = Literal["auto", "float32", "bfloat16"]
_WORDS: dict[str, tuple[str, ...]] = {
    "optimizer": ("sgd", "adamw", "muon"),
    "schedule": ("one-cycle", "cosine"),
    "augment": get_args(Augment),
    "pixels": get_args(Pixels),
    "precision": get_args(Precision),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is trained.

    ``model``: ``proxy``, or a name of torchvision or timm. ``horizon``: the epochs over which the
    learning rate falls, default ``epochs``; the paper watches 30 epochs of a 100-epoch schedule.
    ``one-cycle``: linear up over a fifth of the steps, then linear to zero. ``clamp``: the largest
    loss that one example may have. ``floor``: the mean loss of a batch at which training is held; below it steps go up (flooding: Ishida et al., ICML 2020). ``pixels``: ``plain`` = in [0, 1]; ``normalised`` = centred and
    scaled by the training set's own channel moments; ``whitened`` = the same, and then filtered so
    that a pixel no longer follows from its neighbours: what pictures have little of, such as a
    faint trigger, becomes as large as what they have much of. ``muon``: see training/muon.py; its
    weight decay is decoupled, and on convolutions alone.
    """

    model: str = "proxy"
    epochs: int = 20
    horizon: int | None = None
    batch: int = 125
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    augment: Augment = "none"
    pixels: Pixels = "normalised"
    clamp: float | None = None
    floor: float | None = None
    precision: Precision = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                raise SpecError(f"no {name} '{getattr(self, name)}'.{did_you_mean(str(getattr(self, name)), known)}")
        for name in ("epochs", "batch", "learning_rate"):
            if not getattr(self, name) > 0:
                raise SpecError(f"{name} is {getattr(self, name)}; give a number above zero.")
        if self.floor is not None and not self.floor > 0:
            raise SpecError(f"floor is {self.floor}; give a loss above zero, or none.")
        if self.horizon is not None and self.horizon < self.epochs:
            raise SpecError(
                f"horizon is {self.horizon}, less than the {self.epochs} epochs; give at least {self.epochs}."
            )

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of one step, counted from 0 over the whole training."""
        total = (self.horizon or self.epochs) * steps_per_epoch
        if self.schedule == "cosine":
            from math import cos, pi

            # torch's CosineAnnealingLR steps once an epoch, and so does the paper's code
            epoch = step // steps_per_epoch
            return self.learning_rate * 0.5 * (1 + cos(pi * epoch / (self.horizon or self.epochs)))
        rise = max(1, round(0.2 * total))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (total - step) / max(1, total - rise)

    def facts(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; without a floor that there is not, which recipes had none of before."""
        facts = asdict(self)
        if self.floor is None:
            del facts["floor"]
        return facts


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The recipes of a scan: ``watch`` (the watchers), ``witness``, ``retrain`` (the clean model)."""

    name: str
    detector: str
    reject: str
    watch: Recipe
    witness: Recipe
    retrain: Recipe
    record: Literal["eval", "train"] = "eval"

    def with_model(self, model: str | None) -> Preset:
        """Return the same preset with another model in all its recipes."""
        if model is None:
            return self
        return self._each(model=model)

    def _each(self, **changes: Any) -> Preset:
        return replace(
            self,
            watch=replace(self.watch, **changes),
            witness=replace(self.witness, **changes),
            retrain=replace(self.retrain, **changes),
        )

    def changed(
        self,
        *,
        model: str | None = None,
        epochs: int | None = None,
        augment: Augment | None = None,
        precision: Precision | None = None,
        record: Literal["eval", "train"] | None = None,
        compile: bool = False,
    ) -> Preset:
        """Return the preset with some settings changed.

        ``epochs`` are those watched; with ``fast`` the witness and the clean model take as many.
        """
        changed = self.with_model(model)
        if epochs is not None:
            horizon = self.watch.horizon and max(self.watch.horizon, epochs)
            changed = replace(changed, watch=replace(changed.watch, epochs=epochs, horizon=horizon))
            if horizon is None:  # no part of a longer schedule: the other models are trained as long
                changed = replace(
                    changed,
                    witness=replace(changed.witness, epochs=epochs),
                    retrain=replace(changed.retrain, epochs=epochs),
                )
        if augment is not None:
            changed = replace(
                changed,
                witness=replace(changed.witness, augment=augment),
                retrain=replace(changed.retrain, augment=augment),
            )
        if precision is not None:
            changed = changed._each(precision=precision)
        if compile:
            changed = changed._each(compile=True)
        if record is not None:
            changed = replace(changed, record=record)
        return changed


_FAST = Recipe(epochs=8, optimizer="muon", learning_rate=0.05, weight_decay=0.5)
_AUGMENTED = replace(_FAST, augment="crop-flip", epochs=12)
# the decay of the watchers would cost a model for use 3 points of accuracy (CIFAR-10, held-out training pictures)
_RETRAIN = replace(_AUGMENTED, weight_decay=0.05)
# ResNet-50, AdamW, cosine over the full horizon, pixels in [0, 1], loss clamped (METHODS of the paper)
_PAPER = Recipe(
    model="resnet50",
    epochs=30,
    horizon=100,
    batch=128,
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=1e-4,
    schedule="cosine",
    pixels="plain",
    clamp=100.0,
)

PRESETS: dict[str, Preset] = {
    "fast": Preset(
        name="fast",
        detector="cross-examination",
        reject="false-discovery:q=0.1",
        watch=_FAST,
        witness=_AUGMENTED,
        retrain=_RETRAIN,
    ),
    "paper": Preset(
        name="paper",
        detector="badloss",
        reject="fraction:share=0.4",
        watch=_PAPER,
        witness=replace(_PAPER, epochs=100, augment="crop-flip"),
        retrain=replace(_PAPER, epochs=100, augment="crop-flip"),
    ),
}


def preset(name: str) -> Preset:
    """Return a preset by name."""
    if name not in PRESETS:
        raise SpecError(f"no preset '{name}'.{did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def preset_of(facts: dict[str, Any]) -> Preset:
    """Return the preset that ``dataclasses.asdict`` wrote as plain values."""
    recipes = {name: Recipe(**facts[name]) for name in ("watch", "witness", "retrain")}
    return Preset(**{**facts, **recipes})
