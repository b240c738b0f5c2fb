"""What the rule false-discovery promises and keeps, on drawn scores: no pictures, seconds.

    python benchmarks/false_discovery.py

Prints, for clean scores of several shapes: how many clean rows are set aside where nothing is poisoned, and with
poison (normal, 8 standard deviations of the clean scores away) which share of it is found and which share of what is set
aside is clean. The rule is asked for q = 0.1; means of 12 draws of 10,000 rows, 250 of them probes unless said.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from untaint.scores import FalseDiscovery, Scores

Draw = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda generator, count: generator.normal(size=count),
    "Student, 5 degrees of freedom": lambda generator, count: generator.standard_t(5, count),
    "gamma, shape 16": lambda generator, count: generator.gamma(16, size=count),
}
DRAWS = 12


def rejected(values: np.ndarray, probes: int) -> np.ndarray:
    scores = Scores(values=values.astype(np.float32), name="drawn")
    nobody = np.zeros(len(values), dtype=np.int64)
    return FalseDiscovery(0.1).decide(scores, labels=nobody, probes=np.arange(probes)).rejected


def alarms(draw: Draw, count: int, probes: int) -> tuple[float, int]:
    """Return how many clean rows are set aside on average, and in how many draws there were any."""
    counts = [int(rejected(draw(np.random.default_rng(seed), count), probes).sum()) for seed in range(DRAWS)]
    return float(np.mean(counts)), sum(count > 0 for count in counts)


def found(draw: Draw, share: float, count: int = 10_000) -> tuple[float, float]:
    """Return the share of poison that is found, and the share of what is set aside that is clean."""
    hits, wrong = [], []
    clean = count - int(count * share)
    for seed in range(DRAWS):
        generator = np.random.default_rng(seed)
        own = draw(generator, clean)
        aside = rejected(np.r_[own, generator.normal(8 * own.std(), own.std(), count - clean) + own.mean()], 250)
        hits.append(aside[clean:].mean())
        wrong.append(aside[:clean].sum() / max(1, aside.sum()))
    return float(np.mean(hits)), float(np.mean(wrong))


def main() -> None:
    print("nothing poisoned: clean rows set aside (draws with any)")
    for name, draw in SHAPES.items():
        for count, probes in ((10_000, 50), (10_000, 250), (50_000, 50), (50_000, 250)):
            mean, any_ = alarms(draw, count, probes)
            print(f"  {name:32s} {count:7,d} rows {probes:4d} probes   {mean:6.1f} ({any_} of {DRAWS})")
    print("poisoned: share found, share of what is set aside that is clean")
    for name, draw in SHAPES.items():
        for share in (0.01, 0.05, 0.1, 0.2, 0.3, 0.4):
            hits, wrong = found(draw, share)
            print(f"  {name:32s} {share:4.0%} poison   found {hits:.3f}   clean {wrong:.3f}")


if __name__ == "__main__":
    main()
