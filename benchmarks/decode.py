"""How fast pictures become training pixels: untaint beside ``datasets`` with a torch ``DataLoader``.

    python benchmarks/decode.py [PATH] [--name sample] [--size 64] [--repeats 5] [--workers N]

Both sides read the same files, decode every picture, squash it to the same square and give uint8
pixels, on the same cores. Not the same on both sides: untaint's time includes opening the source,
starting its processes and writing its (empty) cache, while the peer's Arrow copy is made beforehand;
the peer resizes with Pillow's default (bicubic), untaint with Hamming and, for a large JPEG, while it
is decoded. The two take turns; the ratio is that of each pair of runs: above 1, untaint is faster.
``decoder alone`` is one process
that does nothing but open and decode pictures that are in memory, times the number of cores: an
upper bound that supposes every core to be free, at full size and without any resizing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from keeping import keep

import untaint.sources as sources
from untaint.sources import decode, loading, pool
from untaint.sources.base import EncodedSource, read


def ours(path: str, size: int) -> float:
    """Seconds from the path to decoded pixels, nothing kept from before."""
    with tempfile.TemporaryDirectory() as cache:
        begin = time.perf_counter()
        sources.load(path, size=size, cache=cache)
        return time.perf_counter() - begin


class Squash:
    """The peer's transform: a batch of PIL pictures to uint8 tensors."""

    def __init__(self, size: int, column: str) -> None:
        self.size, self.column = size, column

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        small = [np.asarray(picture.convert("RGB").resize((self.size, self.size))) for picture in batch[self.column]]
        return {self.column: [torch.from_numpy(pixels.copy()).permute(2, 0, 1) for pixels in small]}


def peer_data(path: str) -> tuple[Any, str]:
    """The same pictures as a ``datasets.Dataset``, prepared beforehand (its own copy is not timed)."""
    import datasets

    datasets.disable_progress_bars()
    place = Path(path)
    tables = sorted(str(table) for table in place.rglob("*.parquet")) if place.is_dir() else [path]
    if tables and tables[0].endswith(".parquet"):
        chosen = [table for table in tables if "train" in Path(table).name] or tables
        found = datasets.load_dataset("parquet", data_files=chosen, split="train")
    else:
        found = datasets.load_dataset("imagefolder", data_dir=path, split="train")
    column = next(name for name, kind in found.features.items() if isinstance(kind, datasets.Image))
    return found.select_columns([column]), column


def peers(data: Any, column: str, size: int, workers: int) -> float:
    """Seconds that a DataLoader takes to go through the decoded, squashed pictures once."""
    from torch.utils.data import DataLoader

    begin = time.perf_counter()
    loader = DataLoader(data.with_transform(Squash(size, column)), batch_size=64, num_workers=workers)
    count = sum(len(batch[column]) for batch in loader)
    assert count == len(data)
    return time.perf_counter() - begin


def alone(path: str) -> float:
    """Pictures a second that one core decodes when it does nothing else."""
    source = sources.open_source(path)
    assert isinstance(source, EncodedSource)
    encoded = [read(source.item(index)) for index in range(min(len(source), 2000))]
    with decode.quiet():
        begin = time.perf_counter()
        for data in encoded:
            decode.opened(data).load()
        return len(encoded) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="sample", help="what to call the pictures in the results")
    parser.add_argument("path", nargs="?", default=str(Path(__file__).parents[1] / "src/untaint/samples"))
    parser.add_argument("--size", type=int, help="pixels per side; as untaint.load chooses if not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=pool.cores(), help="processes of the DataLoader")
    options = parser.parse_args()
    source = sources.open_source(options.path)
    size = options.size or loading.default_size(source)
    data, column = peer_data(options.path)
    print(f"{len(source):,} pictures from {source.name} to {size} x {size}, {pool.cores()} cores")
    if len(data) != len(source):
        raise SystemExit(
            f"datasets finds {len(data):,} pictures there: no fair comparison. Give a folder without splits."
        )
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(options.repeats):
        mine.append(len(source) / ours(options.path, size))
        theirs.append(len(data) / peers(data, column, size, options.workers))
    limit = [alone(options.path) * pool.cores() for _ in range(options.repeats)]
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    figure = (
        f"{statistics.median(mine):,.0f} pictures/s, x{statistics.median(ratios):.2f} ({min(ratios):.2f} to "
        f"{max(ratios):.2f}; {options.repeats} rounds) of `datasets` + `DataLoader`; the decoder alone "
        f"{statistics.median(limit):,.0f}"
    )
    what = f"decoding {len(source):,} pictures of {options.name} to {size} x {size}"
    keep(f"decode-{options.name}", [(what, figure, "")])


if __name__ == "__main__":
    main()
