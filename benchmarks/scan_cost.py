"""What a whole default scan costs, over what training the model that it leaves costs; and all in it that is no training.

    python benchmarks/scan_cost.py [PATH] [--rows 50000]

Pictures of PATH (a data set that `untaint scan` takes; the packaged sample if none is given), five attackers at once, 250 probes, the clean model
included. Stages are timed in the run itself, so that both sides of a ratio are of the same minutes. What is no training is looking for patterns, scoring,
grouping, deciding and the report; its memory is that of a fresh process that scores the run again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from keeping import keep
from scoring import Peak
from whole_scan import ATTACKS_USED

import untaint as ut
from untaint import rng, samples
from untaint.attacks import ATTACKS
from untaint.poisoning import poison
from untaint.training.cost import Meter, cost_of

MANY = 40_000  # pictures; with fewer, watchers train for 160 steps all the same, and nothing was asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default=str(samples.path()))
    parser.add_argument("--rows", type=int, default=50_000)
    given = parser.parse_args()
    whole = ut.load(given.path)
    drawn = whole.take(rng.choose(0, "benchmarks/scan-cost", whole.rows, given.rows))
    dirty, ledger = poison(drawn, [ATTACKS.build(text) for text in ATTACKS_USED], seed=0)
    probes = rng.choose(0, "benchmarks/scan-cost/probes", ledger.clean(), 250)
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        meter = Meter()
        result = ut.scan(dirty, probes=probes, out=run)
        total = meter.cost()
        stages = {path.name: cost for path in sorted(run.iterdir()) if (cost := cost_of(path)).seconds}
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            again, memory = fresh.submit(scored, run).result()
    model, trained = stages["model"], sum(cost.seconds for cost in stages.values())
    watched = [name for name in stages if name != "model"]
    told = "; ".join(f"{name} {stages[name].seconds / model.seconds:.2f}" for name in watched)
    hits = np.isin(result.rejected, ledger.poisoned()).sum()
    rows = f"{len(dirty):,} pictures"
    keep(
        f"scan_cost-{len(dirty)}",
        [
            (
                f"a whole scan of {rows} over the training of its clean model",
                f"{total.seconds / model.seconds:.2f} of {model.seconds:.0f} s ({told}); {hits:,} of {len(ledger.poisoned()):,} poisoned pictures and "
                f"{len(result.rejected) - hits:,} others set aside",
                "<= 3" if len(dirty) > MANY else "",
            ),
            (
                f"all in it that is no training, {rows}",
                f"{total.seconds - trained:.0f} s; scoring, grouping, deciding and the report once more {again:.0f} s and {memory / 2**30:.1f} GiB",
                "<= 30 s, 2 GiB",
            ),
        ],
    )


def scored(run: Path) -> tuple[float, int]:
    """Return the seconds, and the bytes of memory, that it takes to score a run again."""
    with Peak() as peak:
        begin = time.perf_counter()
        ut.score(run)
        seconds = time.perf_counter() - begin
    return seconds, peak.bytes


if __name__ == "__main__":
    main()
