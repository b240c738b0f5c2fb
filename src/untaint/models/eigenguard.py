"""``EigenGuard``: a layer that gives the strongest directions of a batch's features one common strength and damps the others.

A trigger makes its pictures alike in a few directions of the features, which are then the strongest. With those equalised, a trigger has no more to
say than what pictures naturally show, and ordinary training neglects it. Nothing is filtered and no clean pictures are needed. (ICLR 2024, submission 4413.)
The layer needs torch alone; the mathematics is in ``_spectrum``.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, Self

import torch
from torch import Tensor, distributed, nn

from untaint.errors import SpecError, TrainingError
from untaint.models._spectrum import Common, Directions, directions, gains, guarded_exactly, guarded_with, merged

__all__ = ["EigenGuard"]

RANKS = (2, 3, 4)  # how many axes features may have
SHARE_OF_BATCH = 0.4  # what k is counts beside the batch alone: docs/eigenguard.md


class EigenGuard(nn.Module):
    """Features whose ``k`` largest singular values are equal, and the others small.

    Goes anywhere into a network, between an encoder and its head for example, and gives back features of the shape and type that it is given:
    (batch, channels), (batch, tokens, channels) or (batch, channels, height, width). What is looked at is one matrix:
    with ``matrix="flat"`` (the paper's) a row for each picture, with ``"channel"`` a row for each place of each picture.

    ``k``: how many singular values become equal; more than the matrix has are capped, with one warning, or an error if ``strict``.
    ``remainder``: what the others are multiplied by. ``common``: the value that the top ones get, the k-th of them (the paper's) or their mean.
    ``eval``: in eval mode, ``"running"`` applies a fixed linear map made of means over the batches trained on (``momentum``: the weight of the newest,
    as in BatchNorm), so that a picture's prediction does not depend on the others; ``"batch"`` does as in training (the paper's). Kept as ``evaluating``, which may be changed.
    ``gradient``: ``"held"`` takes the singular vectors for constants; ``"exact"`` does not. ``steps``: after so many batches in training mode features pass as they are, in
    eval mode too, and ``remove_eigenguard`` changes no prediction any more; without it (the paper's) the layer stays at work.

    With several processes (``DistributedDataParallel``) each equalises its own batch, and the means are of all of them; after ``convert_sync`` they equalise all their batches as one. Computed in float32 under autocast. Raises SpecError for options out of range and TrainingError for features that are not finite.
    """

    basis: Tensor
    lengths: Tensor
    batches: Tensor

    def __init__(
        self,
        k: int = 50,
        *,
        remainder: float = 1e-3,
        common: Common = "kth",
        matrix: Literal["flat", "channel"] = "flat",
        eval: Literal["running", "batch"] = "running",
        gradient: Literal["held", "exact"] = "held",
        momentum: float = 0.1,
        steps: int | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise SpecError(f"k is {k!r}. Give a whole number from 1 on: how many singular values become equal.")
        if not 0 <= remainder <= 1:
            raise SpecError(f"remainder is {remainder}. Give 0 to 1: what smaller singular values are multiplied by.")
        if not 0 < momentum <= 1:
            raise SpecError(f"momentum is {momentum}. Give more than 0, and 1 at most.")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise SpecError(
                f"steps is {steps!r}. Give a whole number from 1 on, of batches that the layer is at work, or None."
            )
        for name, value, known in (
            ("common", common, ("kth", "mean")),
            ("matrix", matrix, ("flat", "channel")),
            ("eval", eval, ("running", "batch")),
            ("gradient", gradient, ("held", "exact")),
        ):
            if value not in known:
                raise SpecError(f"{name} is {value!r}. Give {known[0]!r} or {known[1]!r}.")
        self.k, self.remainder, self.common, self.momentum, self.strict = k, float(remainder), common, momentum, strict
        self.matrix, self.evaluating, self.gradient, self.steps = matrix, eval, gradient, steps
        self.layer = ""  # its name in a model, for messages
        self.together = False  # see convert_sync
        self._capped = False
        self.register_buffer("basis", torch.zeros(k, 0))
        self.register_buffer("lengths", torch.zeros(k))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @classmethod
    def recommended(cls, *, batch: int, **options: Any) -> Self:
        """Return the layer with ``k`` of 0.4 of a batch, and all else as in the paper: of what was tried, nothing did better on pictures that had not been looked at.

        ``batch``: pictures in a training batch. ``options``: as for the class, where another is wanted. What it defends against, and what not: docs/eigenguard.md.
        Raises SpecError for a batch below 1.
        """
        if batch < 1:
            raise SpecError(f"batch is {batch}. Give how many pictures a training batch has.")
        return cls(**({"k": max(1, round(SHARE_OF_BATCH * batch))} | options))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape and type."""
        if features.ndim not in RANKS or not features.is_floating_point():
            raise SpecError(
                f"{self._called()} was given {features.dtype} of shape {tuple(features.shape)}. It takes floating-point features: (batch, channels), "
                "(batch, tokens, channels) or (batch, channels, height, width)."
            )
        with torch.autocast(features.device.type, enabled=False):
            precise = features if features.dtype == torch.float64 else features.float()
            table, back = self._table(precise)
            done = None if self.steps is None else self.batches >= self.steps
            fixed = self.evaluating == "running" and not self.training
            guarded = self._fixed(table) if fixed else self._batch(table)
            if done is not None:  # chosen on the device, so that no step waits
                guarded = torch.where(done, table, guarded)
            whole = guarded.reshape(back)
            if self.matrix == "channel" and features.ndim == 4:
                whole = whole.movedim(-1, 1)
        return whole.to(features.dtype).contiguous(memory_format=_format(features))

    @staticmethod
    def convert_sync(model: nn.Module) -> nn.Module:
        """Return the model, in which every EigenGuard now equalises the batches of all processes as one while training, as SyncBatchNorm does.

        Features of all processes are gathered for it. Raises SpecError where ``gradient`` is ``"exact"``, which needs the whole batch in one process.
        """
        for module in model.modules():
            if isinstance(module, EigenGuard):
                if module.gradient == "exact":
                    raise SpecError(
                        f"{module._called()} has gradient 'exact', which needs the whole batch in one process. Give gradient='held'."
                    )
                module.together = True
        return model

    def tried(self) -> None:
        """Take batches of any size from now on, without a word: this is a copy of which only the speed is tried."""
        self.strict, self._capped = False, True

    def extra_repr(self) -> str:
        """Return the options, as they were given."""
        return (
            f"k={self.k}, remainder={self.remainder:g}, common={self.common!r}, matrix={self.matrix!r}, eval={self.evaluating!r}, "
            f"gradient={self.gradient!r}, momentum={self.momentum:g}" + (f", steps={self.steps}" if self.steps else "")
        )

    def _table(self, features: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return features as a matrix, and the shape that it is to have again."""
        if self.matrix == "flat":
            return features.flatten(1), tuple(features.shape)
        last = features.movedim(1, -1) if features.ndim == 4 else features
        return last.flatten(0, -2), tuple(last.shape)

    def _batch(self, table: Tensor) -> Tensor:
        """Equalise the spectrum of these rows, and remember it while training."""
        self._check(table)
        if self.together and self.training and _several():
            return self._of_all(table)
        k = self._most(*table.shape)
        found = directions(table, k)
        if self.gradient == "exact":
            guarded, projected = guarded_exactly(table, k, self.remainder, self.common), found.left.T @ table.detach()
        else:
            guarded, projected = guarded_with(table, found, self.remainder, self.common)
        if self.training:
            self._remember(projected.detach() / len(table) ** 0.5)
        return guarded

    def _of_all(self, table: Tensor) -> Tensor:
        """Equalise the spectrum of the rows of all processes, and return this one's."""
        from torch.distributed.nn.functional import all_reduce  # which not every build of torch has

        sizes = [table.new_zeros(1, dtype=torch.long) for _ in range(distributed.get_world_size())]
        distributed.all_gather(sizes, sizes[0] + len(table))
        counts = [int(size) for size in sizes]
        padded = nn.functional.pad(table.detach(), (0, 0, 0, max(counts) - len(table))).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        found = directions(whole, self._most(*whole.shape))
        own = torch.split(found.left, counts)[distributed.get_rank()]
        guarded, projected = guarded_with(table, Directions(own, found.there), self.remainder, self.common, all_reduce)
        self._remember(projected.detach() / len(whole) ** 0.5, of_all=True)
        return guarded

    def _remember(self, projected: Tensor, of_all: bool = False) -> None:
        """Add a batch's directions to the means; those of all processes, where several train together, unless they are ``of_all`` already."""
        if _several() and not of_all:
            own = nn.functional.pad(projected, (0, 0, 0, self.k - len(projected))).contiguous()
            every = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
            distributed.all_gather(every, own)
            projected = torch.cat(every) / len(every) ** 0.5
        if self.basis.shape[1] == 0:
            self.basis = projected.new_zeros(self.k, projected.shape[1])
        self.batches += 1
        weight = torch.clamp(1 / self.batches.to(projected.dtype), min=self.momentum)  # the first batches count alike
        basis, lengths = merged(self.basis.to(projected.dtype), self.lengths.to(projected.dtype), projected, weight)
        self.basis, self.lengths = basis, lengths

    def _fixed(self, table: Tensor) -> Tensor:
        """Apply the linear map that the means make."""
        if self.basis.shape[1] == 0:
            raise SpecError(
                f"{self._called()} has seen no batch, so that it has no running directions. Train first, load trained weights, or give eval='batch'."
            )
        basis, lengths = self.basis.to(table.dtype), self.lengths.to(table.dtype)
        if table.shape[1] != basis.shape[1]:
            raise SpecError(
                f"{self._called()} learned directions of {basis.shape[1]:,} features, but was given {table.shape[1]:,}. Give pictures of the size that it was trained on, "
                "or matrix='channel', which does not depend on it."
            )
        there = lengths > 0
        more = (gains(lengths, there, self.common) - self.remainder) * there
        return self.remainder * table + (table @ basis.T * more) @ basis

    def _most(self, rows: int, columns: int) -> int:
        """Return k, or as many singular values as there are."""
        most: int = min(self.k, rows, columns)
        if most < self.k and not torch.compiler.is_compiling():
            said = f"{self._called()} was asked to equalise k={self.k} singular values, but a matrix of {rows:,} x {columns:,} has only {most}"
            if self.strict:
                raise SpecError(f"{said}. Give a smaller k, larger batches, or drop the last batch of an epoch.")
            if not self._capped:
                self._capped = True
                warnings.warn(f"{said}: all of them are. This is said once.", stacklevel=4)
        return most

    def _check(self, table: Tensor) -> None:
        """Raise if features are not finite: nothing could be said of their directions."""
        if torch.compiler.is_compiling() or bool(torch.isfinite(table.detach().sum())):
            return
        bad = int((~torch.isfinite(table.detach())).any(1).sum())
        if bad:
            raise TrainingError(
                f"{self._called()} was given features that are not finite: {bad:,} of {len(table):,} rows have nan or inf. Training went wrong before this layer; "
                "lower the learning rate, or look for pictures that are not finite."
            )

    def _called(self) -> str:
        return f"EigenGuard at {self.layer}" if self.layer else "EigenGuard"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take on the number of features of what is loaded, if none is known yet."""
        given = state_dict.get(prefix + "basis")
        if (
            given is not None
            and given.ndim == 2
            and len(given) == self.k
            and 0 in (self.basis.shape[1], given.shape[1])
        ):
            self.basis = self.basis.new_zeros(given.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _format(features: Tensor) -> torch.memory_format:
    """Return the order in which these features lie in memory."""
    channels_last = features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not features.is_contiguous() else torch.contiguous_format
