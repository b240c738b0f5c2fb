"""What recording costs: the training loop bare, recorded in the training step, and recorded in a pass of its own.

    python benchmarks/recording.py [--rows 2500] [--rounds 50]

Three trainings of one model on pictures of the packaged sample, an epoch each in turn, in an order that changes from
round to round; every epoch leaves its checkpoint, as in a scan. Writes the median of the ratios to the bare epoch of
the same round with its 95 % bootstrap interval, and training pictures a second.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from keeping import interval, keep

from untaint import samples
from untaint.progress import Silent
from untaint.recipe import preset
from untaint.sources import load
from untaint.training.loop import Watch, _Training

LIMITS = {"train": "x1.01", "eval": "x1.40"}
WAYS = {"train": "in the training step", "eval": "in a pass of its own"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    whole = load(samples.path())
    examples = whole.take(whole.rows[: given.rows])
    # rounds + 1 epochs of a schedule; what a step computes does not depend on where in it one is
    recipe = replace(preset("fast").watch, epochs=given.rounds + 1, precision=given.precision)
    spent: dict[str, list[float]] = {"bare": [], **{name: [] for name in WAYS}}
    with tempfile.TemporaryDirectory() as folder, Silent().step("", 1) as step:
        trainings = {}
        for name in spent:
            watch = Watch(rows=examples.rows, when=name) if name in WAYS else None  # type: ignore[arg-type]
            trainings[name] = _Training(
                examples, recipe, Path(folder) / name, seed=0, watch=watch, model=None, where=None
            )
            trainings[name].restore()
            trainings[name].one_epoch(step)  # warms it up
        shuffled = random.Random(0)
        for _ in range(given.rounds):
            for name in shuffled.sample(list(spent), len(spent)):
                begin = time.perf_counter()
                trainings[name].one_epoch(step)
                spent[name].append(time.perf_counter() - begin)
    rate = len(examples) / statistics.median(spent["bare"])
    figures = [(f"training step of `fast`, {given.precision}", f"{rate:,.0f} pictures/s", "2,000")]
    for name, said in WAYS.items():
        middle, low, high = interval([own / bare for own, bare in zip(spent[name], spent["bare"], strict=True)])
        ratio = f"x{middle:.3f} ({low:.3f} to {high:.3f}; {given.rounds} rounds) of the bare loop"
        figures.append((f"recording {said}", ratio, LIMITS[name]))
    keep("recording", figures)


if __name__ == "__main__":
    main()
