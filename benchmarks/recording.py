"""What recording costs: the training loop bare, recorded in the training step, and recorded in a pass of its own.

    python benchmarks/recording.py [--rows 5000] [--rounds 7]

Runs the three in turn on the packaged sample, one epoch each per round, and prints the medians of the ratios
to the bare loop of the same round, with the smallest and largest; and training pictures per second. The
same model, pictures, order and checkpoint in all three.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from untaint import samples
from untaint.examples import Examples
from untaint.recipe import Recipe, preset
from untaint.sources import load
from untaint.training.device import device, hardware
from untaint.training.loop import Watch, fit


def seconds(examples: Examples, recipe: Recipe, watch: Watch | None, folder: Path) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.perf_counter()
    fit(examples, recipe, folder, seed=0, watch=watch)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    whole = load(samples.path())
    examples = whole.take(whole.rows[: given.rows])
    recipe = replace(preset("fast").watch, epochs=1, precision=given.precision)
    ways = {
        "bare": None,
        "train": Watch(rows=examples.rows, when="train"),
        "eval": Watch(rows=examples.rows, when="eval"),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        seconds(examples, recipe, None, Path(folder) / "warm")
        for _ in range(given.rounds):
            for name, watch in ways.items():
                spent[name].append(seconds(examples, recipe, watch, Path(folder) / name))
    print(f"{hardware(device())}, {len(examples)} pictures, {given.rounds} rounds, {given.precision}")
    print(f"training step: {len(examples) / statistics.median(spent['bare']):,.0f} pictures/s")
    for name in ("train", "eval"):
        ratios = [own / bare for own, bare in zip(spent[name], spent["bare"], strict=True)]
        print(f"recorded in {name}: x{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
