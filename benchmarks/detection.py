"""How well poison is found: several attackers at once on a data set, scored in three ways.

    python benchmarks/detection.py cifar10-20000 PATH --rows 20000 --out runs/cifar10-20000

Poisons the data in memory, scans it with the preset ``fast``, trains an undefended model and one watcher
on everything (for the paper's own score), and writes results/NAME.json: AUROC and the share of poison
found at 1, 5 and 40 % rejected, per attack and over all, for the paper's score, the best of its options and
cross-examination; what the default rule set aside; clean accuracy and attack success rate (ASR) before,
after, and after removing as many pictures at random. Resumes where it was. One seed: no error bars.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from untaint import rng, terminal
from untaint.attacks import ATTACKS
from untaint.concluding import versions
from untaint.defenses import Task
from untaint.defenses.badloss import BaDLoss
from untaint.defenses.cross_examination import CrossExamination
from untaint.examples import Examples
from untaint.poisoning import Ledger, poison, triggered
from untaint.progress import Progress
from untaint.recipe import Preset, Recipe, preset
from untaint.scanning import scan, train
from untaint.scores import parse_rule
from untaint.sources import load
from untaint.training.device import device, hardware
from untaint.training.evaluate import accuracy
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


def subset(examples: Examples, count: int | None) -> Examples:
    """A random part as a data set of its own."""
    if count is None or count >= len(examples):
        return examples
    rows = rng.choose(0, "subset", examples.rows, count)
    keys = [examples.keys[row] for row in rows]
    names = examples.class_names
    return Examples.of(np.array(examples.images[rows]), examples.labels[rows], class_names=names, keys=keys)


def figures(values: np.ndarray, ledger: Ledger) -> dict[str, Any]:
    """AUROC (an attack's rows against clean rows only), TPR at a share of false positives and of rows rejected."""
    values = np.nan_to_num(values, nan=-1e30)
    clean = values[ledger.clean()]
    found: dict[str, Any] = {}
    cuts = {share: np.quantile(values, 1 - share) for share in (0.01, 0.05, 0.4)}
    false = {rate: np.quantile(clean, 1 - rate) for rate in (0.001, 0.01, 0.05)}
    for number in [*range(len(ledger.attacks)), None]:
        own = values[ledger.poisoned(number)]
        truth = np.r_[np.zeros(len(clean)), np.ones(len(own))]
        found["all" if number is None else ledger.attacks[number]] = {
            "auroc": round(float(roc_auc_score(truth, np.r_[clean, own])), 4),
            "found_at_rejected": {str(share): round(float((own > cut).mean()), 3) for share, cut in cuts.items()},
            "tpr_at_fpr": {str(rate): round(float((own > cut).mean()), 3) for rate, cut in false.items()},
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


def after(model: Any, test: Examples, attacks: list[Any]) -> dict[str, float]:
    rates = {ATTACKS.name_of(a) + f" -> {a.target}": accuracy(model, triggered(test, a)) for a in attacks}
    return {"clean accuracy": accuracy(model, test), **{k: round(v, 4) for k, v in rates.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("data")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--augment", default="crop-flip")
    parser.add_argument("--attack", action="append")
    parser.add_argument(
        "--skip-models", action="store_true", help="only detection: no undefended, clean or control model"
    )
    parser.add_argument("--skip-badloss", action="store_true", help="no watcher on everything for the paper's score")
    given = parser.parse_args()
    bars = terminal.progress(False)
    whole = subset(load(given.data, size=given.size, progress=bars), given.rows)
    test = load(given.data, split="test", size=whole.images.shape[2], progress=bars)
    attacks = [ATTACKS.build(text) for text in given.attack or ATTACKS_USED]
    probes = rng.choose(7, "probes", whole.rows, 250)
    dirty, ledger = poison(whole, attacks, spare=probes)
    chosen = preset("fast").changed(augment=given.augment)
    result = scan(
        dirty, probes=probes, out=given.out / "scan", preset=chosen, retrain=not given.skip_models, progress=bars
    )
    rejected = result.verdict.rejected
    stages, trained = result.summary["stages"], len(CrossExamination.stages) + (not given.skip_models)
    facts: dict[str, Any] = {
        "name": given.name,
        "rows": len(dirty),
        "pixels": dirty.images.shape[2],
        "attacks": {text: len(ledger.poisoned(i)) for i, text in enumerate(ledger.attacks)},
        "seeds": 1,
        **({"seconds": stages} if len(stages) == trained else {}),
        **({} if given.skip_badloss else badloss(dirty, ledger, probes, chosen, given.out, bars)),
        "cross-examination": figures(result.scores.values, ledger),
        "set aside": set_aside(rejected, result.verdict.rule, result.verdict.note, ledger),
    }
    if not given.skip_models:
        undefended = train(dirty, out=given.out / "undefended", preset=chosen, progress=bars)
        random = dirty.without(rng.choose(1, "control", np.setdiff1d(dirty.rows, probes), int(rejected.sum())))
        control = train(random, out=given.out / "control", preset=chosen, progress=bars)
        models = {"undefended": undefended, "cross-examination": result.model(), "as many removed at random": control}
        facts["models"] = {name: after(model, test, attacks) for name, model in models.items()}
    facts |= {"hardware": hardware(device()), "versions": versions()}
    path = Path("results") / f"{given.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
