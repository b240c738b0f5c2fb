"""A whole scan by the command line, as a user makes it: what it found, how long it took, how much memory it needed.

    python benchmarks/whole_scan.py cifar10-files PATH --out runs/cifar10-files [--undefended] [--random] [--badloss]

Draws 250 probes from PATH, writes it again with poison by five attackers at once (the probes stay clean), scans
what was written, and evaluates the clean model on the untouched and the triggered test pictures; with
--undefended and --random, a model trained on everything and one trained without as many pictures drawn at random,
too; with --badloss, the paper's score. Each step but the last is one untaint command, skipped if it was done. Writes
results/NAME.json, with the scan's wall-clock seconds and peak resident memory, the pixel cache's pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from untaint import rng, terminal
from untaint.attacks import ATTACKS
from untaint.bench.measures import compared
from untaint.defenses import Task
from untaint.defenses.badloss import BaDLoss
from untaint.examples import Examples
from untaint.poisoning import Ledger
from untaint.progress import Progress
from untaint.recipe import Preset, Recipe, preset
from untaint.run import write_keys
from untaint.scores import parse_rule
from untaint.sources import load
from untaint.training.loop import Watch
from untaint.trajectories import Trajectories

ATTACKS_USED = (
    "patch:target=0,rate=0.01",
    "pixel:target=1,rate=0.01",
    "blend:pattern=noise,target=2,rate=0.01",
    "blend:pattern=lattice,alpha=0.1,target=3,rate=0.01",
    "sinusoid:target=4,class-rate=0.1",
)
# The paper watches 30 epochs of a slow schedule; the small proxy has learned most triggers after 20 of this one.
PLAIN = Recipe(epochs=20, optimizer="sgd", learning_rate=0.1, weight_decay=5e-4)
OPTIONS = [
    BaDLoss(observable=observable, centre=centre, standardise=standardise)  # type: ignore[arg-type]
    for observable in ("ce", "log-ce", "margin")
    for centre in ("none", "class")
    for standardise in ("none", "probes")
]


def figures(values: np.ndarray, ledger: Ledger) -> dict[str, Any]:
    """Each attack's rows against clean rows only: AUROC, true positive rates, and the share found at so many rejected of all."""
    values = np.nan_to_num(values.astype(np.float64), nan=-1e30)
    clean = np.sort(values[ledger.clean()])
    cuts = {share: np.quantile(values, 1 - share) for share in (0.01, 0.05, 0.4)}
    found = {}
    for number in [*range(len(ledger.attacks)), None]:
        own = values[ledger.poisoned(number)]
        measured = compared(own, clean)
        found["all" if number is None else ledger.attacks[number]] = {
            "auroc": measured["auroc"],
            "found_at_rejected": {str(share): round(float((own > cut).mean()), 3) for share, cut in cuts.items()},
            "tpr_at_fpr": measured["tpr_at_fpr"],
        }
    return found


def set_aside(rejected: np.ndarray, rule: str, note: str, ledger: Ledger) -> dict[str, Any]:
    """What the rule did: how many it set aside, and how many of each attack and of no attack are among them."""
    return {
        "rule": rule,
        "note": note,
        "rejected": int(rejected.sum()),
        "clean among them": int(rejected[ledger.clean()].sum()),
        "found": {text: int(rejected[ledger.poisoned(i)].sum()) for i, text in enumerate(ledger.attacks)},
    }


def badloss(
    dirty: Examples,
    ledger: Ledger,
    probes: np.ndarray,
    chosen: Preset,
    out: Path,
    bars: Progress,
    rows: np.ndarray | slice = slice(None),
) -> dict[str, Any]:
    """The paper's score, and the best of its options, from one watcher trained on everything.

    ``rows``: where among ``dirty`` the ledger's rows are.
    """
    task = Task(
        examples=dirty, probes=probes, preset=chosen, rule=parse_rule("fraction"), scratch=out, seed=0, progress=bars
    )
    folder = task.fit("watcher-full", PLAIN, watch=Watch(rows=dirty.rows), what="one watcher on everything")
    recorded = Trajectories(folder / "trajectories")
    tried = [figures(option.compare(recorded, dirty.labels, probes).values[rows], ledger) for option in OPTIONS]
    best = max(range(len(OPTIONS)), key=lambda number: tried[number]["all"]["auroc"])
    return {
        "badloss (paper's score)": figures(BaDLoss().compare(recorded, dirty.labels, probes).values[rows], ledger),
        "badloss (best of 12 options, chosen on these attacks)": {"options": repr(OPTIONS[best]), **tried[best]},
    }


def untaint(*words: object, quiet: bool = False) -> str:
    """Run one command; return what it printed."""
    command = [sys.executable, "-m", "untaint", *map(str, words)]
    print("$ untaint", *words[:6], flush=True)
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if quiet else None).stdout or ""


def scanned(data: Path, probes: Path, out: Path, given: list[str]) -> dict[str, Any]:
    """Scan once; return wall-clock seconds and peak memory of the call that did it."""
    facts = out.with_name(out.name + ".cost.json")
    if not facts.exists():
        begun, resumed = time.monotonic(), (out / "data.json").exists()
        command = [sys.executable, "-m", "untaint", "scan", data, "--probes", probes, "--out", out, *given]
        print("$ untaint", *command[3:], flush=True)
        _, status, used = os.wait4(subprocess.Popen(list(map(str, command))).pid, 0)
        if status:
            sys.exit(f"the scan ended with exit code {os.waitstatus_to_exitcode(status)}.")
        peak = used.ru_maxrss / 1024  # KiB on Linux
        cost = {"seconds": round(time.monotonic() - begun), "peak_mib": round(peak), "resumed": resumed}
        facts.write_text(json.dumps(cost) + "\n")
    return dict(json.loads(facts.read_text()))


def trained(data: Path, out: Path, options: list[str]) -> Path:
    """Train a model to compare with, if that was not done; return its folder."""
    if not (out / "done.json").exists():
        untaint("train", data, "--out", out, *options)
    return out


def write_random(path: Path, scores: dict[str, list[Any]], count: int) -> Path:
    """Write the keys of as many rows as were set aside, none of them a probe, drawn at random."""
    able = np.array([row for row, probe in enumerate(scores["probe"]) if not probe], dtype=np.int64)
    write_keys(path, (scores["key"][row] for row in rng.choose(1, "control", able, count)))
    return path


def accuracies(model: Path, data: Path, attacks: list[str]) -> dict[str, float]:
    """Return clean accuracy and, per attack, the share of triggered pictures that are taken for the target."""

    def right(what: Path) -> float:
        return float(json.loads(untaint("evaluate", model, what, "--json", "--quiet", quiet=True))["accuracy"])

    found, triggered = {"clean accuracy": right(data)}, data.with_name(data.name + ".triggered")
    names: list[str] = []
    for attack in map(ATTACKS.build, attacks):
        names.append(ATTACKS.name_of(attack))
        again = names.count(names[-1])
        folder = triggered / (names[-1] if again == 1 else f"{names[-1]}-{again}")
        found[f"{names[-1]} -> {attack.target}"] = round(right(folder), 4)
    return found


def truth(data: Path, keys: list[str]) -> tuple[Ledger, np.ndarray]:
    """Return the ledger, and for each of its rows the row among ``keys``."""
    ledger = Ledger.load(data.with_name(data.name + ".ledger.parquet"))
    place = {key: row for row, key in enumerate(keys)}
    return ledger, np.array([place[key] for key in ledger.keys])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--attack", action="append")
    parser.add_argument("--undefended", action="store_true", help="also train and evaluate a model on everything")
    parser.add_argument("--random", action="store_true", help="also a model trained without as many drawn at random")
    parser.add_argument("--badloss", action="store_true", help="also the paper's score, from a watcher on everything")
    parser.add_argument("--scan", action="append", default=[], metavar="OPTION", help="such as --scan=--augment=crop")
    given = parser.parse_args()
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    data, run, probes = out / "data", out / "run", out / "probes.txt"
    if not probes.exists():
        untaint("probes", given.data, "--suggest", 250, "--out", probes)
    if not data.exists():
        attacks = [word for text in given.attack or ATTACKS_USED for word in ("--attack", text)]
        untaint("poison", given.data, *attacks, "--spare", probes, "--out", data)
    cost = scanned(data, out / "data.spare.txt", run, given.scan)
    scores = pq.read_table(run / "scores.parquet").to_pydict()
    ledger, rows = truth(data, scores["key"])
    values = np.array(scores["score"], dtype=np.float32)[rows]
    rejected = np.array([verdict == "rejected" for verdict in scores["verdict"]])[rows]
    summary = json.loads((run / "summary.json").read_text())
    facts: dict[str, Any] = {
        "name": given.name,
        "rows": len(values),
        "pixels": json.loads((run / "data.json").read_text())["size"][1],
        "attacks": {text: len(ledger.poisoned(number)) for number, text in enumerate(ledger.attacks)},
        "seeds": 1,
        "seconds": summary["stages"],
        "scan": cost,
        "cross-examination": figures(values, ledger),
        "set aside": set_aside(rejected, summary["rule"]["text"], summary["rule"]["note"], ledger),
    }
    if given.badloss:
        dirty, bars = load(data), terminal.progress(False)
        chosen, vouched = preset("fast"), dirty.find(out / "data.spare.txt")
        facts |= badloss(dirty, ledger, vouched, chosen, out, bars, truth(data, list(dirty.keys))[1])
    models = {"cross-examination": run / "model"} if summary["clean_model"] else {}  # none with --scan=--no-retrain
    options = [word for word in given.scan if word != "--no-retrain"]
    if given.undefended:
        models = {"undefended": trained(data, out / "undefended", options), **models}
    if given.random:
        drawn = write_random(out / "random.txt", scores, int(rejected.sum()))
        models["as many removed at random"] = trained(data, out / "random", [*options, "--without", str(drawn)])
    if models:
        facts["models"] = {name: accuracies(folder, data, list(ledger.attacks)) for name, folder in models.items()}
    facts |= {"hardware": summary["hardware"], "versions": summary["versions"]}
    path = Path("results") / f"{given.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
