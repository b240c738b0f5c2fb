"""What the Hugging Face ``datasets`` library opens: its own objects, saved sets, webdataset tars, hub ids.

Only a hub id may reach the network; no code that comes with data is run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from untaint import run
from untaint.errors import SourceError
from untaint.sources import columns
from untaint.sources.table import TableSource
from untaint.sources.tree import choose_split

__all__ = ["from_arrow", "from_dataset", "from_hub", "from_saved", "from_tar", "is_dataset"]


def _library() -> Any:
    """Return the ``datasets`` module, silent and without telemetry."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


class _ArrowShards:
    """The rows of a ``datasets.Dataset``, taken as Arrow data, a batch at a time."""

    def __init__(self, dataset: Any, identity: str | None) -> None:
        self._dataset = dataset.with_format("arrow")
        self._identity = identity
        self.schema = dataset.features.arrow_schema

    def column(self, path: str) -> Any:
        name = path if path in self.schema.names else path.partition(".")[0]
        return columns.descend(self._dataset.select_columns([name])[:], path)

    def batches(self, column: str, size: int, start: int = 0) -> Iterator[Any]:
        name = column if column in self.schema.names else column.partition(".")[0]
        chosen = self._dataset.select_columns([name])
        for first in range(start, len(chosen), size):
            array = columns.descend(chosen[first : first + size], column)
            yield array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)

    def identity(self) -> str | None:
        return self._identity

    def place(self) -> str:
        return self._identity or ""


def is_dataset(thing: Any) -> bool:
    """Return whether a thing is an object of the ``datasets`` library, without importing it."""
    return any(kind.__module__.partition(".")[0] == "datasets" for kind in type(thing).__mro__)


def from_dataset(
    thing: Any,
    split: str,
    image_column: str | None,
    label_column: str | None,
    name: str = "",
    identity: str | None = None,
) -> TableSource:
    """Return the pictures of a ``Dataset`` or of one split of a ``DatasetDict``."""
    datasets = _library()
    if isinstance(thing, dict):
        chosen = choose_split(thing, split, name or "the DatasetDict")
        if chosen is None:
            raise SourceError(f"{name or 'the DatasetDict'} is empty. Give one with pictures.")
        return from_dataset(
            thing[chosen], split, image_column, label_column, f"{name} ({chosen})" if name else "", identity
        )
    if not isinstance(thing, datasets.Dataset):
        raise SourceError(f"a {type(thing).__name__} has no rows that can be numbered. Load it without streaming.")
    return TableSource(
        _ArrowShards(thing, identity or _files(thing)),
        name or repr(thing.info.dataset_name or "a Dataset"),
        image_column,
        label_column,
    )


def _files(dataset: Any) -> str | None:
    """Return the fingerprint of rows and the facts of the files behind them; None when they are in memory."""
    paths = [entry["filename"] for entry in dataset.cache_files]
    if not paths:
        return None
    facts = [(path, os.stat(path)) for path in paths]
    return repr((dataset._fingerprint, [(path, fact.st_size, fact.st_mtime_ns) for path, fact in facts]))


def from_saved(folder: Path, split: str, image_column: str | None, label_column: str | None) -> TableSource:
    """Return the pictures of a folder that ``save_to_disk`` wrote."""
    datasets = _library()
    try:
        thing = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder fails in many ways
        raise SourceError(
            f"{folder} cannot be read as a saved data set ({columns.line(error)}). Save it again."
        ) from None
    return from_dataset(thing, split, image_column, label_column, str(folder))


def from_arrow(paths: Sequence[Path], name: str, image_column: str | None, label_column: str | None) -> TableSource:
    """Return the pictures of ``.arrow`` files, one after the other."""
    datasets = _library()
    try:
        parts = [datasets.Dataset.from_file(str(path)) for path in paths]
        thing = datasets.concatenate_datasets(parts)
    except Exception as error:
        raise SourceError(f"{name} cannot be read as Arrow data ({columns.line(error)}). Write it again.") from None
    facts = [(str(path.absolute()), os.stat(path)) for path in paths]
    identity = repr([(path, fact.st_size, fact.st_mtime_ns) for path, fact in facts])
    return from_dataset(thing, "train", image_column, label_column, name, identity)


def from_tar(
    paths: Sequence[Path], name: str, cache: Path, image_column: str | None, label_column: str | None
) -> TableSource:
    """Return the pictures of tar files in the webdataset layout; their Arrow copy lies in the cache folder."""
    _library()
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    digests = [run.digest(path) for path in paths]
    try:  # the builder itself: load_dataset would report the use over the network
        builder = WebDataset(
            data_files={"train": [str(path) for path in paths]},
            cache_dir=str(cache / "webdataset"),
            hash="-".join(d[:16] for d in digests)[:200],
        )
        builder.download_and_prepare()
        thing = builder.as_dataset(split="train")
    except Exception as error:
        cause = error.__cause__ or error
        raise SourceError(
            f"{name} cannot be read as webdataset tar files ({columns.line(cause)}). "
            "Each sample needs the same members, as 0001.jpg and 0001.cls."
        ) from None
    return from_dataset(thing, "train", image_column, label_column, name, repr(digests))


def from_hub(name: str, split: str, image_column: str | None, label_column: str | None) -> TableSource:
    """Return the pictures of a data set on the Hugging Face hub (``owner/name`` or ``owner/name:config``)."""
    datasets = _library()
    repository, _, config = name.removeprefix("hub:").partition(":")
    try:
        thing = datasets.load_dataset(repository, config or None)
    except Exception as error:
        raise SourceError(
            f"there is no folder or file {name}, and no data set of that name could be fetched from the "
            "Hugging Face hub "
            f"({type(error).__name__}: {columns.line(error)}). Check the name, or the network."
        ) from None
    with suppress(AttributeError):
        thing = thing.copy()
    return from_dataset(thing, split, image_column, label_column, name)
