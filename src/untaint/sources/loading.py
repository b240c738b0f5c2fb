"""``load``: a source's pictures, decoded once, as ``Examples``."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untaint.errors import SourceError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.sources import decode, pool
from untaint.sources.arrays import ArraySource
from untaint.sources.base import EncodedSource, Source, Unreadable
from untaint.sources.cache import PixelCache, cache_folder
from untaint.sources.opening import open_source
from untaint.sources.torch_dataset import TorchSource

__all__ = ["load"]

LARGEST = 64  # pixels; the default size is never above it
SAMPLE = 200  # pictures whose headers are read to find the default size
BATCH = 64  # pictures sent to a decoding process at a time


def load(
    source: Any,
    labels: Any = None,
    *,
    split: str = "train",
    size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache: Path | str | None = None,
    fewest_classes: int = 2,
    progress: Progress | None = None,
) -> Examples:
    """Return labelled pictures as ``Examples``: uint8 (rows, 3, size, size), decoded once and memory-mapped.

    Args:
        source: a folder with a folder per class; a folder with metadata.csv or .jsonl; a Parquet, Arrow,
            webdataset tar or zip file, or a folder of the first three; a hub id; one of torchvision's data sets
            by name (cifar10, cifar100, gtsrb, imagenette, imagenet); a ``datasets.Dataset``; a map-style torch
            ``Dataset`` of (picture, label); or (images, labels) as arrays.
        labels: one label per picture, when ``source`` is an array of pictures.
        split: which part, where the source has parts (train, validation, test).
        size: pixels per side; each picture is squashed to that square, never cropped. By default the median of the
            pictures' shorter sides (of up to 200 of them, evenly spaced), at most 64.
        image_column: the column of the pictures (or of their file names), guessed if not given.
        label_column: the column of the labels, guessed if not given.
        cache: the folder of the pixel cache; by default $UNTAINT_CACHE, else ``untaint`` in the user's cache folder.
        fewest_classes: of how many classes the pictures must be; 1 for triggered test pictures, which are all
            labelled as the attack's target.
        progress: is told how far decoding is.

    Pictures that cannot be decoded are no row; ``Examples.unreadable`` names them with the reason.

    Raises:
        SourceError: the source, its labels or all of its pictures cannot be read, or are of too few classes.
    """
    if isinstance(source, Examples):
        return source
    told = progress or Silent()
    if size is not None and size < 1:
        raise SourceError(f"the size is {size}. Give at least 1 pixel per side.")
    opened = open_source(source, labels, split=split, image_column=image_column, label_column=label_column, cache=cache)
    for remark in opened.remarks:
        told.say(remark)
    if not len(opened):
        raise SourceError(f"{opened.name} has no pictures. Give a source that has some.")
    chosen = size or default_size(opened)
    if isinstance(opened, ArraySource):
        images, unreadable = _from_array(opened, chosen), dict[int, str]()
    elif isinstance(opened, TorchSource):
        images, unreadable = _from_torch(opened, chosen, cache_folder(cache), told)
    elif isinstance(opened, EncodedSource):
        images, unreadable = _from_encoded(opened, chosen, cache_folder(cache), told)
    else:
        raise SourceError(f"a {type(opened).__name__} cannot be decoded. Derive it from EncodedSource.")
    return _examples(opened, images, unreadable, fewest_classes, told)


def default_size(source: Source) -> int:
    """Return the median shorter side of up to 200 evenly spaced pictures, at most 64."""
    sides: list[int] = []
    for place in source.sample(1 if isinstance(source, ArraySource) else SAMPLE):
        try:
            sides.append(min(source.measure(place)))
        except Unreadable:
            continue
    return min(int(np.median(sides)), LARGEST) if sides else LARGEST


def _from_array(source: ArraySource, size: int) -> NDArray[np.uint8]:
    if source.images.shape[2:] == (size, size):
        return source.images
    out = np.empty((len(source), source.images.shape[1], size, size), dtype=np.uint8)
    for row in range(len(source)):
        image = np.asarray(decode.squash(source.picture(row), size)).transpose(2, 0, 1)
        out[row] = image[: out.shape[1]]  # a grey picture is the same in all three channels
    return out


def _from_torch(
    source: TorchSource, size: int, cache: Path, told: Progress
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Read a data set whose pictures may differ from one day to the next: its pixels are not kept."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            pixels: NDArray[np.uint8] = np.memmap(file, dtype=np.uint8, mode="w+", shape=(len(source), 3, size, size))
    except OSError as error:
        raise SourceError(
            f"the pixel cache {cache} cannot be written: {error.strerror}. Name another folder in UNTAINT_CACHE."
        ) from error
    with told.step("decode", len(source)) as step:
        unreadable = source.read(size, pixels.__setitem__, step.advance)
    if unreadable:
        kept = np.setdiff1d(np.arange(len(source)), list(unreadable))
        for start in range(0, len(kept), 1024):  # forward in place: no row is overwritten before it was moved
            pixels[start : start + len(kept[start : start + 1024])] = pixels[kept[start : start + 1024]]
        pixels = pixels[: len(kept)]
    pixels.flags.writeable = False
    return pixels, unreadable


def _from_encoded(
    source: EncodedSource, size: int, cache: Path, told: Progress
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    known = source.identity()
    settings = f"{decode.VERSION} {size} {len(source)}"
    if known is None:  # in memory: decoded again each time, and not kept
        images = np.zeros((len(source), 3, size, size), dtype=np.uint8)
        return _in_memory(source, images, size, told)
    identity = hashlib.sha256(f"{known}\0{settings}".encode("utf-8", "surrogateescape")).hexdigest()
    store = PixelCache(cache, source.name, source.place(), size, identity)
    with store.locked():
        found = store.find()
        if found is not None:
            return found

        def into(path: str, offset: int) -> dict[int, str]:
            with told.step("decode", len(source)) as step:
                return pool.decode_into(path, offset, source.batches(BATCH), len(source), size, step.advance)

        return store.make(len(source), into)


def _in_memory(
    source: EncodedSource, images: NDArray[np.uint8], size: int, told: Progress
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    with tempfile.NamedTemporaryFile() as file, told.step("decode", len(source)) as step:
        unreadable = pool.decode_into(file.name, 0, source.batches(BATCH), len(source), size, step.advance)
        file.truncate(images.nbytes)
        images = np.fromfile(file.name, dtype=np.uint8).reshape(images.shape)
    return np.delete(images, list(unreadable), axis=0) if unreadable else images, unreadable


def _examples(
    source: Source, images: NDArray[np.uint8], unreadable: dict[int, str], fewest_classes: int, told: Progress
) -> Examples:
    keys, labels = source.keys, source.labels
    reasons = {keys[index]: reason for index, reason in unreadable.items()}
    if len(unreadable) == len(keys):
        key, reason = next(iter(reasons.items()))
        raise SourceError(
            f"none of the {len(keys):,} pictures in {source.name} can be read; '{key}': {reason}. Give other files."
        )
    if unreadable:
        kept = np.setdiff1d(np.arange(len(keys)), list(unreadable))
        keys, labels = [keys[index] for index in kept], labels[kept]
        told.say(f"{len(unreadable):,} pictures cannot be read and are set aside, first '{next(iter(reasons))}'")
    counts = np.bincount(labels, minlength=len(source.class_names))
    present = np.flatnonzero(counts)
    if len(present) < fewest_classes:
        only = source.class_names[present[0]]
        raise SourceError(
            f"all {len(keys):,} pictures in {source.name} are of one class, '{only}'. "
            "Give pictures of at least two classes."
        )
    for single in np.flatnonzero(counts == 1):
        told.say(f"class '{source.class_names[single]}' has one picture")
    return Examples.of(
        images, labels, class_names=source.class_names, keys=keys, source=source.name, unreadable=reasons
    )
