"""The section of docs/results.md on one grid of the benchmark: its tables, its plots, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from _markdown import machines, table
from _words import (
    by_attack,
    minutes_of,
    on_choices,
    on_costs,
    on_guards,
    on_models,
    on_probes,
    on_repairs,
    on_resnet18,
    on_studies,
    what_it_says,
)
from scipy import stats

from untaint.bench import read_grid
from untaint.bench.groups import Group, Result, attackers, grouped, labels
from untaint.bench.pictures import draw
from untaint.bench.runner import results_of
from untaint.bench.table import render

ROOT = Path(__file__).parents[1]
PLOTS = ROOT / "docs" / "plots"
KINDS = {
    "roc": "True against false positive rates, attack by attack",
    "trajectories": "Loss by epoch under BaDLoss's watcher, by attack",
    "sweep": "Detection along each thing that is changed while all else stays",
}
WORDS = {
    "cpu": what_it_says,
    "resnet18": on_resnet18,
    "probes": on_probes,
    "choices": on_choices,
    "cost": on_costs,
    "examination": on_models,
    "adaptive": on_models,
    "robustness": on_studies,
    "repair": on_repairs,
    "eigenguard": on_guards,
}
DETECTED = [
    "AUROC",
    "worst attack",
    "TPR at 1 % FPR",
    "poison set aside",
    "clean set aside",
    "of these attacks less than nine in ten",
]
OPTIMIZERS = {"muon": "Muon", "adamw": "AdamW", "sgd": "SGD"}
RECORDINGS = (
    "With either recipe of the small proxy, more pictures (and so more steps) make the paper's score worse, and worst at triggers that are easily learned, such as the patch "
    "and the lattice: below one half, it takes them for the least suspicious of all. While they are not yet learned, they stand out by their wrong labels. Scores on "
    "margins gain by the same step. ResNet-18, on 5,000 pictures for 10 epochs, does no better than the proxy. The paper's score is above that on margins by class once, "
    "with its own recipe on 5,000 pictures. So neither that recipe nor a larger network alone makes up for it; it seems to matter how far the triggers are learned "
    "while it watches. Whether its ResNet-50 on 50,000 pictures for 30 epochs behaves otherwise is not known: it needs a GPU."
)


def benchmark(path: Path) -> str:
    """The tables of one grid file, of as many cells as are finished; nothing where none is."""
    grid = read_grid(path)
    found = results_of(grid, ROOT / "results" / grid.name)
    cells = sum(len(defenders) for _, defenders in grid.cells)
    if not found:
        return ""
    if grid.name in TABLES:
        tables = [TABLES[grid.name](found), shown(grid.name)]
    else:
        per_attack = render(found, "markdown", per_attack=True).partition("Beware:")[0]
        tables = [render(found, "markdown"), per_attack, shown(grid.name)]
    words = WORDS[grid.name]([result for result in found if "error" not in result]) if grid.name in WORDS else ""
    said = f"`untaint bench experiments/{path.name}`: {len(found)} of its {cells} cells are finished. {machines(result['hardware'] for result in found)}."
    return "\n\n".join(filter(None, [f"## {grid.title}", said, *tables, words]))


def recordings(found: Sequence[Result]) -> str:
    """One line for each watcher: what is scored on its recording, by AUROC over all attacks, and the paper's score by attack."""
    groups = grouped(found)
    scores = list(dict.fromkeys(group.called for group in groups))
    attacks = list(dict.fromkeys(name for result in found for name in result["poisoned"]))
    called = dict(zip(attacks, labels(attackers(groups)), strict=True))
    rows = []
    for title in dict.fromkeys(group.title for group in groups):
        own = {group.called: group.finished[0] for group in groups if group.title == title}
        first = next(iter(own.values()))
        recipe = first["origin"]["watch"]
        watcher = f"{recipe['model']}, {recipe['epochs']} epochs of {OPTIMIZERS[recipe['optimizer']]}"
        paper = own[scores[0]]["detection"]
        rows.append(
            [
                watcher,
                f"{first['rows']:,}",
                *(f"{own[name]['detection']['all']['auroc']:.3f}" if name in own else "" for name in scores),
                *(f"{paper[name]['auroc']:.3f}" for name in attacks),
            ]
        )
    drawn = table(["watcher", "pictures", *scores, *(f"paper's: {called[name]}" for name in attacks)], rows)
    return f"AUROC over all attacks, and of the paper's score by attack; one seed.\n\n{drawn}\n\n{RECORDINGS}"


def alarms(found: Sequence[Result]) -> str:
    """One line for each setting without poison: in how many runs anything was set aside, and how much."""
    rows = []
    for group in grouped(found):
        counts = [int(result["removal"]["rejected"]) for result in group.finished]
        some, runs = sum(count > 0 for count in counts), len(counts)
        low, high = (
            float(stats.beta.ppf(part, *ends))
            for part, ends in ((0.025, (some, runs - some + 1)), (0.975, (some + 1, runs - some)))
        )
        interval = f"{100 * (0 if some == 0 else low):.1f} to {100 * (1 if some == runs else high):.1f} %"
        rows.append(
            [group.title, group.called, str(runs), str(some), interval, f"{sum(counts) / runs:.1f}", str(max(counts))]
        )
    head = [
        "setting",
        "defence",
        "runs",
        "with any alarm",
        "95 % interval (Clopper and Pearson)",
        "set aside on average",
        "at most",
    ]
    return table(head, rows)


def detected(found: Sequence[Result]) -> str:
    """One line for each setting and detector: how well poison is told from the rest, and who is set aside."""
    groups = [group for group in grouped(found) if group.defence not in ("none", "oracle")]
    several = len({group.called for group in groups}) > 1
    noisy = any("label noise" in one["detection"] for group in groups for one in group.finished)
    rows = []
    for group in groups:
        for result in group.finished:
            named = [f"{group.title}, seed {result['origin']['setting']['seed']}", group.called]
            if not noisy:
                rows.append([*named[: 1 + several], *_detected(group, result)])
                continue
            wrong = result["detection"].get("label noise", {}).get("rows", 0)
            aside = f"{result['removal']['label noise']:,} of {wrong:,}" if wrong else ""
            rows.append([*named[: 1 + several], *_detected(group, result), aside])
    head = [*("setting", "detector")[: 1 + several], *DETECTED, *(["wrong labels set aside"] if noisy else [])]
    return table(head, rows)


def _detected(group: Group, result: Result) -> list[str]:
    """The figures of one result, as DETECTED names them."""
    every, removal = result["detection"], result["removal"]
    own = by_attack(result)
    poisoned = sum(own.values())
    aside = [f"{removal['poisoned']:,} of {poisoned:,}", f"{removal['clean']:,}"]
    if not poisoned:
        return ["", "", "", *aside, ""]
    names = dict(zip(result["poisoned"], labels(attackers([group])), strict=True))
    worst = min(names, key=lambda name: every[name]["auroc"])
    missed = [
        f"{names[name]} {count} of {own[name]}"
        for name, count in removal["per attack"].items()
        if count < 0.9 * own[name]
    ]
    return [
        f"{every['all']['auroc']:.4f}",
        f"{every[worst]['auroc']:.3f} ({names[worst]})",
        f"{100 * every['all']['tpr_at_fpr']['0.01']:.1f} %",
        *aside,
        "; ".join(missed),
    ]


def parts(found: Sequence[Result], *, costs: bool = False) -> str:
    """One line for each detector of the one setting of a grid: how well it does over all attacks, and by attack; perhaps what its models cost."""
    groups = grouped(found)
    names = dict(zip(groups[0].finished[0]["poisoned"], labels(attackers(groups)), strict=True))
    rows = []
    for group in groups:
        result = group.finished[0]
        every, removal = result["detection"], result["removal"]
        rows.append(
            [
                group.called,
                f"{every['all']['auroc']:.4f}",
                f"{100 * every['all']['tpr_at_fpr']['0.01']:.1f} %",
                f"{removal['poisoned']:,}",
                f"{removal['clean']:,}",
                *([f"{minutes_of(result):.1f}"] if costs else []),
                *(f"{every[name]['auroc']:.3f}" for name in names),
            ]
        )
    poisoned = sum(groups[0].finished[0]["poisoned"].values())
    head = ["", "AUROC", "TPR at 1 % FPR", f"set aside of {poisoned:,} poisoned", "others set aside"]
    head += [*(["processor minutes of its models"] if costs else []), *names.values()]
    return f"{groups[0].title}; the last columns are AUROC by attack.\n\n{table(head, rows)}"


def costs(found: Sequence[Result]) -> str:
    """One line for each number of epochs and each detector: what its models cost, and how well it does."""
    rows = []
    for group in grouped(found):
        for result in group.finished:
            every, removal = result["detection"], result["removal"]
            rows.append(
                [
                    str(result["origin"]["watch"]["epochs"]) if result["stages"] else "none",
                    group.called,
                    f"{minutes_of(result):.1f}",
                    f"{every['all']['auroc']:.4f}",
                    f"{100 * every['all']['tpr_at_fpr']['0.01']:.1f} %",
                    f"{removal['poisoned']:,} of {sum(result['poisoned'].values()):,}",
                    f"{removal['clean']:,}",
                ]
            )
    rows.sort(key=lambda row: (row[1], float(row[2])))
    head = [
        "epochs",
        "",
        "processor minutes of its models",
        "AUROC",
        "TPR at 1 % FPR",
        "poison set aside",
        "others set aside",
    ]
    return table(head, rows)


def plots(path: Path) -> None:
    """Draw the settings of one grid file that have several attackers, or along what it sweeps over, for the page to show."""
    grid = read_grid(path)
    found = results_of(grid, ROOT / "results" / grid.name)
    if path.stem in SWEEPS:
        draw(found, PLOTS / grid.name, ["sweep"])
    elif path.stem not in TABLES:
        draw(
            [result for result in found if len(result.get("poisoned", ())) > 1],
            PLOTS / grid.name,
            ["roc", "trajectories"],
        )


def shown(name: str) -> str:
    """The plots of one grid file."""
    paths = sorted((PLOTS / name).glob("*.svg"))
    return "\n\n".join(f"![{KINDS[path.stem.rpartition('-')[2]]}]({path.relative_to(PLOTS.parent)})" for path in paths)


SWEEPS = ("robustness", "probes", "cost")  # grids that are drawn along what they sweep over
TABLES = {  # of grids that are shown in a table of their own
    "paper-score": recordings,
    "clean": alarms,
    "ablation": parts,
    "choices": partial(parts, costs=True),
    "cost": costs,
    **dict.fromkeys(("probes", "examination", "robustness", "adaptive"), detected),
}
