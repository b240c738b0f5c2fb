"""How fast, and in how much memory, the BaDLoss distance of many recorded rows is computed.

    python benchmarks/scoring.py [--rows 1000000 5000000] [--epochs 30] [--probes 250]

Synthetic epoch files go to a temporary folder (4 bytes a row and epoch: 600 MB for five million).
Memory is the process's own (anonymous) memory, above what it had before, less the result's 4 bytes a row; the
memory-mapped epoch files are the system's to drop. Rows are read from the page cache as they were just written.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from keeping import keep

from untaint import run
from untaint.defenses._distance import distances
from untaint.trajectories import Trajectories


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--probes", type=int, default=250)
    given = parser.parse_args()
    figures = []
    for observable, centre in (("ce", "none"), ("margin", "class")):
        for rows in sorted(given.rows):
            result = measure(rows, given.epochs, given.probes, {"observable": observable, "centre": centre})
            figures.append(
                (
                    f"scoring {rows:,} rows, {given.epochs} epochs, {given.probes} probes, `{observable}`"
                    + (", class-centred" if centre == "class" else ""),
                    f"{result['rows_per_second']:,} rows/s, {result['extra_memory_mb']:.0f} MB beyond the result",
                    "500,000 rows/s",
                )
            )
    keep("scoring", figures)


def measure(rows: int, epochs: int, probes: int, options: dict[str, str]) -> dict[str, float]:
    needed = rows * epochs * 4
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < 1.2 * needed:
        sys.exit(
            f"{tempfile.gettempdir()} has {free / 1e9:.1f} GB free, {1.2 * needed / 1e9:.1f} are needed. Set TMPDIR."
        )
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), rows, epochs)
        # a fresh process: one that wrote the files has freed memory left, which would hide growth
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            return fresh.submit(score, Path(folder), probes, options).result()


def score(folder: Path, probes: int, options: dict[str, Any]) -> dict[str, float]:
    trajectories = Trajectories(folder)
    rows = trajectories.rows
    labels = np.arange(rows) % 10
    distances(trajectories, np.arange(2), observable=options["observable"], k=1, epochs=[0])  # threads, libraries
    with Peak() as peak:
        begin = time.perf_counter()
        result = distances(trajectories, np.arange(probes), labels=labels, **options)
        seconds = time.perf_counter() - begin
    assert np.isfinite(result).all()
    return {
        "rows": rows,
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "extra_memory_mb": round((peak.bytes - result.nbytes) / 1e6, 1),
    }


def write(folder: Path, rows: int, epochs: int) -> None:
    """Leave logits that grow with the epochs, at a speed of each row's own; other observables are links to them."""
    generator = np.random.default_rng(0)
    speed = generator.normal(1, 0.3, rows).astype(np.float32)
    for epoch in range(epochs):
        name = f"epoch_{epoch:03d}.npy"
        noise = generator.standard_normal(rows, dtype=np.float32)
        run.save_array(folder / "scaled-logit" / name, speed * np.float32(np.log1p(epoch)) * 2 + noise)
        for other in ("margin", "predicted"):
            (folder / other).mkdir(exist_ok=True)
            os.link(folder / "scaled-logit" / name, folder / other / name)


class Peak:
    """The largest growth of this process's anonymous memory, looked at every 5 ms; Linux only."""

    bytes = 0

    def __enter__(self) -> Peak:
        self._before, self._done = anonymous(), threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, anonymous() - self._before)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()


def anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    sys.exit("memory can only be measured on Linux.")


if __name__ == "__main__":
    main()
