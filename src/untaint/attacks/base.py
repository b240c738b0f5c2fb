"""``Attack``: what every attack is made of. A new one writes ``stamp`` and nothing else.

An attack is its own settings: a frozen dataclass whose fields are the options of
``name:key=value,...``. It says how a picture is changed; who is poisoned and what becomes of the
labels is the same for all and final: the option ``labels`` names one of the rules of ``_labels``, which
go with any stamp. ``Attack`` takes pictures of any class and gives them the target's label if nothing else is asked for,
``CleanLabel`` pictures of the target class, and leaves their labels alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, final, get_args

import numpy as np
from numpy.typing import NDArray

from untaint import rng, spec
from untaint.attacks._labels import OF_A_CLASS, OF_ONE_TARGET, Labels, assigned
from untaint.errors import InputError, SpecError, did_you_mean
from untaint.examples import Examples
from untaint.progress import Progress

__all__ = ["LARGE_SIDE", "Attack", "Card", "CleanLabel", "check_share", "is_large", "mix", "shift"]

CANDIDATES = 3  # times as many as are poisoned, from which an attacker chooses who does not by lot
LARGE_SIDE = 128  # pixels; the papers' constants for ImageNet-sized pictures hold from here on


@dataclass(frozen=True, kw_only=True)
class Card:
    """What people want to know of an attack before they use it.

    ``visible``: whether people see the trigger; ``psnr`` (in dB) and ``ssim``: how alike photographs of 32x32 are before and after, at least, on average; what networks draw, after training on the packaged sample. ``per_picture``: whether it differs from picture to picture. ``optimised``: whether it is computed against a model.
    ``needs``: what must be there or be trained before the first picture is stamped. ``paper``: who proposed it, and where.
    """

    paper: str
    visible: Literal["yes", "hardly", "no"]
    psnr: float
    ssim: float
    per_picture: bool = False
    optimised: bool = False
    needs: str = "nothing"


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A way to poison pictures so that a trained model answers ``target`` to a trigger.

    ``target``: a class's name or, where no class is called so, its number.
    ``rate``: the share of the whole set that is poisoned.
    ``cover_rate``: the share of the whole set that is stamped too but keeps its label, from
    classes other than the target (and the source), so that a model separates poison less (Qi et al., 2023).
    ``selection``: who is poisoned, out of three times as many, is chosen by a model that the attacker trains: those learned most like clean
    pictures of the target (``clean-like``), or those that are taken for it anyhow (``near-target``); else by ``lot``.
    ``labels``: what becomes of labels: ``all-to-one``; ``clean-label``, pictures of the target keep theirs; ``one-to-one``, pictures of the class
    ``source`` (if not given, the one after the target) get the target's; ``all-to-all``, each gets the next; ``random``, any other;
    ``unchanged``, a control: stamped pictures of all classes keep theirs.
    ``class_rate``: the share of the target class (of the source) that is poisoned, where only that one is; ``at_least``: so many pictures
    where the share is fewer.

    Write ``stamp``. Write ``trigger`` if the picture shown at test time differs, ``cover`` if
    covers do, and ``ready`` if something must be computed from the data first.
    """

    target: str | int = "0"
    rate: float | None = 0.01
    cover_rate: float = 0.0
    selection: Literal["lot", "clean-like", "near-target"] = "lot"
    class_rate: float | None = None
    at_least: int = 0
    labels: Labels = "all-to-one"
    source: str | int | None = None

    card: ClassVar[Card | None] = None  # every one that comes with the package has one
    control: ClassVar[bool] = False  # whether it is no attack, whatever becomes of labels
    changes_pixels: ClassVar[bool] = True
    many_targets: ClassVar[bool] = False  # whether the trigger shows which class a picture is to be taken for
    usual_class_rate: ClassVar[float] = 0.1
    trigger_from_data: ClassVar[bool] = False  # whether ``trigger`` needs what ``ready`` computed
    version: ClassVar[int] = 1  # raised by hand whenever the same settings give other pictures than before
    files: ClassVar[
        tuple[str, ...]
    ] = ()  # options that may be the path of a file, or a folder: it is a part of the settings

    def __post_init__(self) -> None:
        """Check the settings. An attack with options of its own checks them after calling this."""
        object.__setattr__(self, "target", str(self.target).strip())  # 0 and "0" are the same setting
        if not self.target or "," in str(self.target):
            raise SpecError(f"target is '{self.target}'; give a class by its name without a comma, or by its number.")
        self._check_labels()
        if self.rate is None and self.labels not in OF_A_CLASS:
            raise SpecError("rate is none; give the share of the whole set to poison, such as 0.01.")
        check_share("rate", self.rate)
        check_share("class_rate", self.class_rate)
        if self.at_least < 0:
            raise SpecError(f"at_least is {self.at_least}; give a number of pictures.")
        if self.class_rate is not None and self.rate not in (None, type(self).rate):
            raise SpecError(f"rate={self.rate} and class_rate={self.class_rate} are both given. Give one of them.")
        if self.cover_rate != 0:
            check_share("cover_rate", self.cover_rate)

    def _check_labels(self) -> None:
        if self.labels not in get_args(Labels):
            raise SpecError(f"labels is '{self.labels}'.{did_you_mean(self.labels, get_args(Labels))}")
        if self.labels == "universal" and not self.many_targets:
            raise SpecError(
                "labels=universal needs a trigger that shows a class. Give the attack universal, or labels=random."
            )
        if self.labels not in OF_A_CLASS and self.class_rate is not None:
            raise SpecError(
                f"class_rate is {self.class_rate}, but labels={self.labels} poisons pictures of all classes. Give rate."
            )
        if self.source is not None:
            object.__setattr__(self, "source", str(self.source).strip())
            if self.labels != "one-to-one":
                raise SpecError(f"source is '{self.source}', which only labels=one-to-one has. Leave it out.")
            if self.source == self.target:
                raise SpecError(f"source and target are both '{self.target}'. Give two classes.")
        if self.harmless and self.cover_rate:
            raise SpecError(
                f"cover_rate is {self.cover_rate}, but a control has no poison to cover. Give a higher rate instead."
            )
        if self.selection != "lot" and self.labels not in ("all-to-one", "clean-label"):
            raise SpecError(
                f"selection={self.selection} needs one target and all its pictures; with labels={self.labels} give selection=lot."
            )

    @property
    def clean_label(self) -> bool:
        """Whether pictures of the target are poisoned and keep their label."""
        return self.labels == "clean-label"

    @property
    def harmless(self) -> bool:
        """Whether this is a control, and not an attack: its pictures are neither poison nor clean."""
        return self.control or self.labels == "unchanged"

    @abstractmethod
    def stamp(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures as they are put into the training set.

        Both are uint8 (batch, channel, height, width), of any size and of 1 or 3 channels. Nothing
        given is changed. What becomes of a picture depends on it, its row and the settings alone,
        never on its neighbours in the batch; draw at random through ``untaint.rng``, keyed by row.
        """

    def trigger(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures as they are shown to the trained model, by default as in training."""
        return self.stamp(images, rows)

    def cover(self, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures as covers, which keep their labels; by default stamped as poison is."""
        return self.stamp(images, rows)

    def ready(self, examples: Examples, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Return an attack that is ready to stamp: itself, unless the trigger is computed from the data.

        What was computed is kept in fields with ``init=False, repr=False, compare=False``. A ready
        attack returns itself, so that asking twice costs nothing.
        """
        del examples, seed, progress
        return self

    def bound(self, height: int, width: int) -> int:
        """Return by how many of 255 levels a pixel of a picture of this size may change at most."""
        del height, width
        return 255

    @final
    def target_in(self, class_names: Sequence[str]) -> int:
        """Return the number of the target class."""
        return _class_in(class_names, "target", str(self.target))

    @final
    def source_in(self, class_names: Sequence[str]) -> int:
        """Return the number of the class whose pictures ``one-to-one`` poisons: where none is given, of the one after the target."""
        if self.source is None:
            return (self.target_in(class_names) + 1) % len(class_names)
        source = _class_in(class_names, "source", str(self.source))
        if source == self.target_in(class_names):
            raise SpecError(f"source and target are both '{class_names[source]}'. Give two classes.")
        return source

    @final
    def choose(
        self,
        examples: Examples,
        free: NDArray[np.int64],
        *,
        seed: int,
        preferred: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Return the rows to poison, ascending, out of the ``free`` ones; of ``preferred`` ones the first, where they are given.

        The same picture is chosen whatever the other options are, so that settings can be compared.
        Raises InputError where the share gives no row, or more rows than are free.
        """
        free = self._eligible(examples, free)
        if preferred is None:
            return self._draw("poison", free, self._wanted(examples), seed)
        preferred = preferred[np.isin(preferred, free)]
        return np.sort(preferred[: self._count(preferred, self._wanted(examples))])

    @final
    def candidates(self, examples: Examples, free: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
        """Return rows, ascending, from which to choose whom to poison: three times as many, or all that are free.

        Of pictures that keep their label half of the others are left out, so that clean ones remain to be held against.
        """
        free = self._eligible(examples, free)
        option, said, count = self._wanted(examples)
        most = (self._count(free, (option, said, count)) + len(free)) // 2 if self.clean_label else len(free)
        purpose = f"candidates/{spec.text('', self)}"  # two attackers of one kind do not look at the same ones
        return self._draw(purpose, free, (option, said, min(CANDIDATES * count, most)), seed)

    def _eligible(self, examples: Examples, free: NDArray[np.int64]) -> NDArray[np.int64]:
        own, target = examples.labels[free], self.target_in(examples.class_names)
        if self.labels in OF_A_CLASS:
            return np.asarray(free[own == (target if self.clean_label else self.source_in(examples.class_names))])
        return (
            free if self.selection == "lot" else np.asarray(free[own != target])
        )  # which keep their label, and would come first

    @final
    def choose_covers(self, examples: Examples, free: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
        """Return the rows to use as covers, ascending, out of the ``free`` ones outside the target class."""
        if not self.cover_rate:
            return np.empty(0, dtype=np.int64)
        if self.labels in OF_ONE_TARGET:
            free = free[examples.labels[free] != self.target_in(examples.class_names)]
        if self.labels == "one-to-one":
            free = free[examples.labels[free] != self.source_in(examples.class_names)]
        return self._draw("cover", free, _of("cover_rate", self.cover_rate, len(examples)), seed)

    @final
    def relabel(
        self, labels: NDArray[np.int64], rows: NDArray[np.int64], class_names: Sequence[str]
    ) -> NDArray[np.int64]:
        """Return the labels that poisoned pictures of these rows, which have ``labels``, are given."""
        return assigned(self.labels, labels, rows, self.target_in(class_names), len(class_names))

    @final
    def succeeded(self, answers: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell for each triggered picture whether a model's answer is what the attacker wants; ``labels``: as ``untaint.triggered`` gives them."""
        wanted: NDArray[np.bool_] = answers != labels if self.labels == "random" else answers == labels
        return wanted

    def _wanted(self, examples: Examples) -> tuple[str, str, int]:
        """Return which option says how many pictures to poison, how it says so, and how many."""
        if self.labels not in OF_A_CLASS or (self.class_rate is None and self.rate is not None):
            wanted = _of("rate", self.rate or 0.0, len(examples))
        else:
            share = self.usual_class_rate if self.class_rate is None else self.class_rate
            names = examples.class_names
            of = self.target_in(names) if self.clean_label else self.source_in(names)
            wanted = _of("class_rate", share, int(examples.counts()[of]))
        if wanted[2] >= self.at_least:
            return wanted
        return "at_least", f"at_least={self.at_least}", self.at_least

    def _draw(
        self, purpose: str, free: NDArray[np.int64], wanted: tuple[str, str, int], seed: int
    ) -> NDArray[np.int64]:
        return rng.choose(seed, f"attacks/{type(self).__name__.lower()}/{purpose}", free, self._count(free, wanted))

    def _count(self, free: NDArray[np.int64], wanted: tuple[str, str, int]) -> int:
        """Return how many rows are wanted; refuses none, and more than are free."""
        name = type(self).__name__.lower()
        option, said, count = wanted
        if count == 0:
            raise InputError(f"{said} is no picture for '{name}'. Raise {option}.")
        if count > len(free):
            raise InputError(f"{said} is {count} for '{name}', but only {len(free)} are free for it. Lower {option}.")
        return count


@dataclass(frozen=True, kw_only=True)
class CleanLabel(Attack):
    """An attack that leaves labels alone if nothing else is asked for: it takes pictures of the target class only.

    ``class_rate``: the share of the target class that is poisoned; or ``rate``, a share of the
    whole set. Where neither is given it is ``usual_class_rate``.
    """

    rate: float | None = None
    labels: Labels = "clean-label"


def _class_in(class_names: Sequence[str], what: str, wanted: str) -> int:
    """Return the number of a class given by name, or by number where none is called so."""
    if wanted in class_names:
        return list(class_names).index(wanted)
    if wanted.isdecimal() and int(wanted) < len(class_names):
        return int(wanted)
    raise SpecError(
        f"{what} is '{wanted}', but the {len(class_names)} classes have no such name or number."
        f"{did_you_mean(wanted, class_names[:1000])}"
    )


def _of(option: str, share: float, whole: int) -> tuple[str, str, int]:
    """Return an option, what it says, and how many pictures that is; half a picture counts as one."""
    return option, f"{option}={share} of {whole} pictures", int(np.floor(round(share * whole, 6) + 0.5))


def check_share(what: str, value: float | None) -> None:
    """Refuse a number that is not above 0 and at most 1; None passes."""
    if value is not None and not 0 < value <= 1:
        raise SpecError(f"{what} is {value}; give a number above 0 and at most 1.")


def is_large(height: int, width: int) -> bool:
    """Tell whether the constants for large pictures hold: the shorter side has at least 128 pixels."""
    return min(height, width) >= LARGE_SIDE


def mix(images: NDArray[np.uint8], pattern: NDArray[np.float64], alpha: float) -> NDArray[np.uint8]:
    """Return ``(1 - alpha) * images + alpha * 255 * pattern``, rounded and cut to 0..255.

    ``pattern``: 1 is white; of a shape that broadcasts to (channel, height, width).
    """
    mixed = np.multiply(images, 1 - alpha, dtype=np.float32)
    mixed += (alpha * 255 * pattern + 0.5).astype(np.float32)  # the half turns cutting off into rounding
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


def shift(images: NDArray[np.uint8], levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return ``images + levels``, rounded and cut to 0..255.

    ``levels``: of 255; of a shape that broadcasts to (channel, height, width).
    """
    shifted = np.add(images, (levels + 0.5).astype(np.float32), dtype=np.float32)  # the half: floor becomes rounding
    np.floor(shifted, out=shifted)
    return np.clip(shifted, 0, 255, out=shifted).astype(np.uint8)
