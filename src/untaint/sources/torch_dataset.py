"""Any map-style torch ``Dataset`` that gives (picture, label)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from untaint.errors import SourceError
from untaint.sources import decode
from untaint.sources import labels as labelling
from untaint.sources.arrays import ArraySource, picture_of, to_numpy
from untaint.sources.base import Source, Unreadable
from untaint.sources.pool import cores

__all__ = ["TorchSource", "from_torch", "is_map_style"]

ALONE = 1_000  # pictures; below this, starting other processes costs more than it saves


def is_map_style(thing: Any) -> bool:
    """Return whether a thing can be asked for its length and for one member by number."""
    return hasattr(thing, "__getitem__") and hasattr(thing, "__len__")


def from_torch(dataset: Any) -> Source:
    """Return the source of a data set; one of torchvision's that is an array in memory is used as that."""
    ours = type(dataset).__module__.startswith("torchvision.datasets")
    plain = all(getattr(dataset, name, None) is None for name in ("transform", "target_transform", "transforms"))
    data, targets = getattr(dataset, "data", None), getattr(dataset, "targets", None)
    if ours and plain and targets is not None and getattr(data, "ndim", 0) >= 3:
        return ArraySource(data, targets, class_names=getattr(dataset, "classes", None), name=type(dataset).__name__)
    return TorchSource(dataset)


class _Squashed:
    """The same data set, giving (uint8 (3, size, size) or None, label, reason): runs in the loader's processes."""

    def __init__(self, dataset: Any, size: int | None) -> None:
        self.dataset = dataset
        self.size = size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8] | None, Any, str]:
        with decode.quiet():
            picture, label = _member(self.dataset, index)
            if isinstance(picture, Unreadable):
                return None, label, str(picture)
            if self.size is None:
                return None, label, ""
            return np.asarray(decode.squash(picture, self.size)).transpose(2, 0, 1), label, ""


def _member(dataset: Any, index: int) -> tuple[Image.Image | Unreadable, Any]:
    """Return (picture, label) of one member; a member that cannot be read at all has the label None."""
    try:
        member = dataset[index]
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Unreadable(decode.explain(error)), None
    if not isinstance(member, (tuple, list)) or len(member) != 2:
        raise SourceError(
            f"member {index} of the data set is a {type(member).__name__}. It must be a pair: (picture, label)."
        )
    label = to_numpy(member[1])
    if label.size != 1:
        advice = "untaint needs exactly one class per picture: multi-label data cannot be used."
        raise SourceError(f"member {index} of the data set has a label of the shape {label.shape}. {advice}")
    try:
        return picture_of(member[0]), label.reshape(()).item()
    except Unreadable as error:
        return error, label.reshape(()).item()


def _as_given(batch: list[Any]) -> list[Any]:
    return batch


class TorchSource(Source):
    """The members of a map-style data set, read through its own ``__getitem__``."""

    def __init__(self, dataset: Any) -> None:
        """Take the data set; its members are only read when they are asked for."""
        self.dataset = dataset
        count = len(dataset)
        self.name = type(dataset).__name__
        self.keys = [f"{row:0{len(str(max(count - 1, 0)))}d}" for row in range(count)]
        self.class_names = ()
        self._known = False

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each picture; asking reads through the data set once."""
        if not self._known:
            self.read(None, lambda *_: None, lambda _: None)
        return self._labels

    def picture(self, index: int) -> Image.Image:
        """Return one picture in RGB."""
        with decode.quiet():
            picture, _ = _member(self.dataset, index)
        if isinstance(picture, Unreadable):
            raise picture
        return picture

    def read(
        self, size: int | None, store: Callable[[int, NDArray[np.uint8]], None], advance: Callable[[int], None]
    ) -> dict[int, str]:
        """Go through once: store each picture squashed, learn the labels; return why some cannot be read."""
        unreadable: dict[int, str] = {}
        values: list[Any] = []
        for batch in self._batches(size):
            for image, label, reason in batch:
                row = len(values)
                values.append(label)
                if reason:
                    unreadable[row] = reason
                elif image is not None:
                    store(row, image)
            advance(len(batch))
        self._set_labels(values, unreadable)
        return unreadable

    def _batches(self, size: int | None) -> Any:
        from torch.utils.data import DataLoader

        workers = cores() if len(self.keys) > ALONE else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking a process that has threads
            context = "fork" if workers and Path("/proc").exists() else None
            loader: DataLoader[Any] = DataLoader(
                _Squashed(self.dataset, size),  # type: ignore[arg-type]
                batch_size=64,
                num_workers=workers,
                collate_fn=_as_given,
                multiprocessing_context=context,
            )
            yield from loader

    def _set_labels(self, values: list[Any], unreadable: dict[int, str]) -> None:
        where = f"the data set {self.name}"
        kept = [place for place, value in enumerate(values) if value is not None or place not in unreadable]
        names = getattr(self.dataset, "classes", None)
        names = [n if isinstance(n, str) else str(n[0]) for n in names] if isinstance(names, (list, tuple)) else None
        present = [values[place] for place in kept]
        labels, self.class_names = _numbered(present, names, lambda i: self.keys[kept[i]], where)
        self._labels = np.zeros(len(values), dtype=np.int64)  # a member that cannot be read has no label either
        self._labels[kept] = labels
        self._known = True


def _numbered(
    values: list[Any], names: list[str] | None, key: Callable[[int], str], where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if names and values and all(isinstance(value, (int, np.integer)) for value in values):
        return labelling.integers(np.array(values), names, key, where)
    return labelling.classes_of(values, key, where, typed=True)
