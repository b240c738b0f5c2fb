"""Seconds to plant seven attacks in 50,000 pictures of 32 x 32: choosing, stamping, relabelling and the ledger.

    python benchmarks/stamping.py

Made-up pictures; the optimisation of narcissus' noise is apart (done before the clock starts, on fewer steps: what is
added takes as long whatever it is). Median and 95 % interval of some rounds. Writes results/speed/stamping.json.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from keeping import interval, keep

from untaint.attacks import ATTACKS
from untaint.examples import Examples
from untaint.poisoning import poison

SEVEN = (
    "patch:target=0,rate=0.01",
    "pixel:target=1,rate=0.01",
    "blend:target=2,pattern=noise,rate=0.01",
    "blend:target=3,pattern=lattice,rate=0.01",
    "sinusoid:target=4,class-rate=0.1",
    "narcissus:target=5,class-rate=0.005",
    "frequency:target=6,rate=0.01",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=50_000)
    asked = parser.parse_args()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (asked.pictures, 3, 32, 32), dtype=np.uint8)
    examples = Examples.of(images, generator.integers(0, 10, asked.pictures))
    attacks = [ATTACKS.build(text) for text in SEVEN]
    noise = generator.uniform(-16, 16, (3, 32, 32))
    object.__setattr__(attacks[5], "levels", noise)
    taken = []
    for _ in range(asked.rounds):
        begin = time.perf_counter()
        _, ledger = poison(examples, attacks, seed=0)
        taken.append(time.perf_counter() - begin)
    middle, low, high = interval(taken)
    what = f"planting 7 attacks in {asked.pictures:,} pictures of 32 x 32 ({len(ledger.poisoned()):,} poisoned)"
    keep("stamping", [(what, f"{middle:.2f} s ({low:.2f} to {high:.2f}; {asked.rounds} rounds)", "5 s")])


if __name__ == "__main__":
    main()
