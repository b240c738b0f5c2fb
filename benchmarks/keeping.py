"""Where the benchmarks of speed and memory leave what they measured: ``results/speed/NAME.json``.

``python scripts/render_results.py`` makes the table of docs/results.md from these.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from untaint.training.device import device, hardware


def keep(name: str, figures: Sequence[tuple[str, str, str]]) -> None:
    """Write down what was measured: (what, figure, limit or ""); print it too."""
    facts = {
        "hardware": hardware(device()),
        "torch": torch.__version__,
        "figures": [{"what": what, "figure": figure, "limit": limit} for what, figure, limit in figures],
    }
    path = Path("results/speed") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(facts["hardware"])
    for what, figure, limit in figures:
        print(f"{what}: {figure}" + (f" (limit {limit})" if limit else ""))


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """Return the median and its 95 % bootstrap interval."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(draws))
    return statistics.median(values), medians[round(0.025 * draws)], medians[round(0.975 * draws) - 1]
