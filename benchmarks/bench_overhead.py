"""What `untaint bench` adds to the work that it runs: planting, defences, and measuring their models.

    python benchmarks/bench_overhead.py

The same three defences on 1,000 pictures of the packaged sample, by a grid file and by hand, in turns; processor seconds, which
other processes on the machine change least. By hand: the case is prepared once, the defences share their models, every model is
measured as the bench does. What the bench does besides: reading the grid, checking it, claims, finding out
what is finished, and a sealed file for each cell. Writes results/speed/bench_overhead.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from keeping import keep

from untaint.bench.case import prepare, read
from untaint.bench.grid import read_grid
from untaint.bench.measures import behaviour, detection, histogram, removal
from untaint.bench.runner import Runner
from untaint.defenses import DEFENSES, Task
from untaint.progress import Silent
from untaint.scores import parse_rule
from untaint.training.checkpoint import load_model
from untaint.training.device import device

RULES = {"none": None, "random": "fraction:share=0.1", "spectral": None}
TEXT = """
[data.sample]
source = "sample"
[attacks]
two = ["patch:target=1,cell=3,rate=0.05", "blend:target=2,alpha=0.2,rate=0.05"]
[[grid]]
data = "sample"
rows = 1000
attacks = "two"
epochs = 4
defences = ["none", "random @ fraction:share=0.1", "spectral"]
"""


def by_the_bench(folder: Path, where: torch.device) -> None:
    path = folder / "grid.toml"
    path.write_text(TEXT)
    Runner(read_grid(path), results=folder / "results", work=folder / "work", where=where).run()


def by_hand(folder: Path, where: torch.device) -> None:
    (folder / "grid.toml").write_text(TEXT)
    ((setting, _),) = read_grid(folder / "grid.toml").cells
    train, test = read(read_grid(folder / "grid.toml").sources["sample"], Silent())
    case = prepare(setting, train, test, Silent())
    recipes = setting.recipes()
    precision = None
    for name, rule in RULES.items():
        judge = DEFENSES.build(name)
        chosen = rule or getattr(judge, "usual_rule", None) or recipes.reject
        task = Task(
            examples=case.examples,
            probes=case.probes,
            preset=recipes,
            rule=parse_rule(chosen),
            scratch=folder / name,
            store=folder / "models",
            seed=0,
            progress=Silent(),
            where=where,
        )
        precision = precision or task.trial().precision
        outcome = judge.defend(replace(task, preset=recipes.changed(precision=precision)))
        if outcome.scores is not None and outcome.verdict is not None:
            detection(case, outcome.scores)
            removal(case, outcome.verdict)
            histogram(case, outcome.scores)
        assert outcome.model is not None
        behaviour(case, load_model(outcome.model), where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    ratios = []
    for number in range(asked.rounds + 1):
        taken = []
        for work in (by_hand, by_the_bench)[:: 1 if number % 2 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                begin = time.process_time()
                work(Path(folder), device())
                taken.append(time.process_time() - begin)
        first, second = taken[:: 1 if number % 2 else -1]
        if number:  # the first round sets kernels up
            ratios.append(second / first)
        print(f"by hand {first:.1f} s, by the bench {second:.1f} s")
    spread = f"{min(ratios):.3f} to {max(ratios):.3f} in {asked.rounds} rounds"
    what = "processor seconds of a small grid by the bench over the same work by hand, measuring included"
    keep("bench_overhead", [(what, f"{statistics.median(ratios):.3f} ({spread})", "<= 1.03")])


if __name__ == "__main__":
    main()
