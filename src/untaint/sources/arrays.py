"""Pictures that are NumPy arrays or torch tensors already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from untaint.errors import SourceError
from untaint.sources import labels as labelling
from untaint.sources.base import Source, Unreadable

__all__ = ["ArraySource", "picture_of", "to_numpy"]


class ArraySource(Source):
    """Pictures in one array; uint8 pictures are not copied."""

    def __init__(
        self,
        images: Any,
        labels: Any,
        *,
        class_names: Sequence[str] | None = None,
        keys: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> None:
        """Take (count, [channels,] height, width[, channels]) images, uint8 or float to 1, and one label each."""
        self.name = name
        self.images = _channels_first(to_numpy(images))
        values = to_numpy(labels)
        if values.ndim != 1:
            advice = "untaint needs exactly one class per picture: multi-label and one-hot labels cannot be used."
            raise SourceError(f"the labels have the shape {values.shape}. {advice}")
        if len(values) != len(self.images):
            raise SourceError(
                f"there are {len(self.images)} pictures but {len(values)} labels. Give one label per picture."
            )
        width = len(str(max(len(values) - 1, 0)))
        self.keys = list(keys) if keys is not None else [f"{row:0{width}d}" for row in range(len(values))]
        if values.dtype.kind in "iuf":
            self._labels, self.class_names = labelling.integers(values, class_names, self.keys.__getitem__, name)
        else:
            self._labels, self.class_names = labelling.classes_of(
                values.tolist(), self.keys.__getitem__, name, typed=True
            )

    def picture(self, index: int) -> Image.Image:
        """Return one picture in RGB."""
        return picture_of(self.images[index].transpose(1, 2, 0))

    def measure(self, index: int) -> tuple[int, int]:
        """Return (width, height), the same for all."""
        return int(self.images.shape[3]), int(self.images.shape[2])


def to_numpy(thing: Any) -> NDArray[Any]:
    """Return an array of an array, a tensor or a list, on the host."""
    if hasattr(thing, "detach"):
        thing = thing.detach().cpu().numpy()
    try:
        array: NDArray[Any] = np.asarray(thing)
    except ValueError as error:
        raise SourceError(f"these pictures or labels make no array ({error}). Give them all the same shape.") from None
    return array


def _channels_first(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Return uint8 (count, channels, height, width) with 1 or 3 channels."""
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape:
        raise SourceError(
            f"the pictures have the shape {images.shape}. "
            "Give (count, height, width, channels) or (count, channels, height, width)."
        )
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.shape[1] not in (1, 3):
        raise SourceError(
            f"the pictures have the shape {images.shape}: neither axis 1 nor axis 3 has 1 or 3 channels. "
            "Give grey or RGB pictures."
        )
    return _bytes(images)


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8)
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.asarray(np.rint(values * values.dtype.type(255)), dtype=np.uint8)
    if values.dtype.kind in "iu" and low >= 0 and high <= 255:
        return values.astype(np.uint8)
    raise SourceError(
        f"the pictures are {values.dtype} from {low:g} to {high:g}. "
        "Give uint8, or floats from 0 to 1 (before any normalisation)."
    )


def picture_of(thing: Any) -> Image.Image:
    """Return an RGB picture of a PIL image, a (height, width[, channels]) array or (channels, height, width) tensor."""
    from untaint.sources import decode

    if isinstance(thing, Image.Image):
        return decode.finished(thing)
    first = hasattr(thing, "detach")
    array = to_numpy(thing)
    if array.ndim == 3 and (first or array.shape[2] not in (1, 3, 4)) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise Unreadable(f"an array of the shape {array.shape} is no picture")
    try:
        return decode.finished(Image.fromarray(_bytes(np.ascontiguousarray(array))))
    except SourceError as error:
        raise Unreadable(str(error)) from None
