"""The figures of README.md: its table, and the sentences below it."""

from __future__ import annotations

import json

from _grids import ROOT
from _markdown import machines, percent, table
from _words import CROSS, Figures, by_attack, fooling

from untaint.bench import read_grid
from untaint.bench.checks import flags
from untaint.bench.groups import Group, Result, clean_accuracy, grouped, mean_asr
from untaint.bench.runner import results_of

BEGIN, END = "<!-- made by scripts/render_results.py -->", "<!-- until here -->"
ROWS = {
    "none": "everything",
    "oracle": "what is clean, told by who poisoned it",
    "random @ fraction:share=0.1": "all but a tenth, drawn by lot",
    "spectral": "what Spectral Signatures keeps",
    "clustering": "what Activation Clustering keeps",
    "label-errors": "what confident learning (cleanlab) keeps",
    "badloss @ fraction:share=0.4": "what BaDLoss's score keeps (our watcher)",
    "badloss:observable=margin,centre=class @ fraction:share=0.4": "what BaDLoss on margins keeps (our watcher)",
    "cross-examination": "**what untaint keeps**",
    "pattern": "what untaint's `--detector pattern` keeps (for triggers at a fixed place)",
}


def found_in(name: str) -> list[Result]:
    """The results of a grid."""
    grid = read_grid(ROOT / "experiments" / f"{name}.toml")
    return results_of(grid, ROOT / "results" / grid.name)


def readme(text: str) -> str:
    """The page README with its figures made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"README.md has no {BEGIN}"
    assert end, f"README.md has no {END}"
    groups = grouped(found_in("cpu"))
    own = [group for group in groups if group.title == groups[0].title]
    head = ["model trained on", "clean accuracy", "mean attack success", "poison found", "clean pictures lost"]
    rows = []
    for defence, name in ROWS.items():
        for group in (group for group in own if group.defence == defence):
            counts = [
                (sum(result["poisoned"].values()), result["rows"], result.get("removal", {}))
                for result in group.finished
            ]
            shares = [
                [removed["poisoned"] / poisoned for poisoned, _, removed in counts if removed],
                [removed["clean"] / (rows - poisoned) for poisoned, rows, removed in counts if removed],
            ]
            values = [
                group.values(lambda result: float(result["model"]["clean accuracy"])),
                group.values(mean_asr),
                *shares,
            ]
            rows.append([name, *(percent(some) for some in values)])
    first = own[0].finished
    made_on = machines(result["hardware"] for group in own for result in group.finished)
    poisoned = sum(sum(result["poisoned"].values()) for result in first) / len(first)
    seeds = "one seed" if len(first) == 1 else f"{len(first)} seeds (mean ± standard deviation)"
    if single := next((group for group in own if len(group.seeds) == 1 and len(first) > 1), None):
        best = next(group for group in own if group.defence == "cross-examination").at(single.seeds)
        seeds += (
            f"; rows without ± are of one of them, where what untaint keeps gives {percent(best.values(clean_accuracy))} "
            f"and {percent(best.values(mean_asr))}"
        )
    marks = flags(next(group for group in own if group.defence == "none"), own)
    never, sometimes = (
        [text.partition(f" {word}")[0] for text in marks if word in text]
        for word in ("was not learned", "was learned with")
    )
    missed = f" Hardly learned by the undefended model: {', '.join(never)}." if never else ""
    missed += f" Learned by it with some seeds only: {', '.join(sometimes)}." if sometimes else ""
    alone = [
        f"{attack} aimed at {target}"
        for attack, target, _, _ in fooling(next(group for group in own if group.defence == "oracle"))
    ]
    missed += f" Fooling even a model that saw no poison: {', '.join(alone)}." if alone else ""
    said = (
        f"CIFAR-10, {first[0]['rows']:,} pictures, {len(first[0]['attacks'])} attackers at once who poison {poisoned:,.0f} of them; "
        f"small networks, {made_on}; {seeds}.{missed}"
    )
    parts = [table(head, rows), said, elsewhere(), unseen()]
    return before + begin + "\n" + "\n\n".join(parts) + "\n" + end + after


def elsewhere() -> str:
    """What a scan does on the other data set, and on whole ones by the command line."""
    groups = [group for group in grouped(found_in("cpu")) if group.title.startswith("gtsrb 20,000, seven")]
    signs = Figures.of(groups, groups[0].title)
    many = signs.own[CROSS]
    parts = [
        f"On {many.finished[0]['rows']:,} traffic signs (GTSRB, {len(many.seeds)} seeds) the mean attack success falls from {signs.asr('none'):.1f} to {signs.asr(CROSS):.1f} %, "
        f"with {signs.points(CROSS).partition(' [')[0]}."
    ]
    for data, called in (("cifar10", "CIFAR-10"), ("gtsrb", "GTSRB")):
        path = ROOT / "results" / f"{data}-files.json"
        if not path.exists():
            continue
        facts = json.loads(path.read_text())
        before, after = (facts["models"][name] for name in ("undefended", CROSS))
        attacks = [name for name in before if name != "clean accuracy"]
        mean = [100 * sum(one[name] for name in attacks) / len(attacks) for one in (before, after)]
        threads = int(facts["hardware"].split()[0])
        parts.append(
            f"On all of {called} ({facts['rows']:,} pictures, {len(attacks)} attackers, one seed; {facts['scan']['seconds'] / 60:.0f} minutes on "
            f"{'one thread' if threads == 1 else f'{threads} threads'}) it falls from {mean[0]:.1f} to {mean[1]:.1f} %, and clean accuracy from "
            f"{100 * before['clean accuracy']:.1f} to {100 * after['clean accuracy']:.1f} %."
        )
    return " ".join(parts)


def unseen() -> str:
    """What it does where nobody had looked, and where nothing is poisoned."""
    parts = [
        "The method was developed while looking at these attacks ([what was tuned on what](docs/results.md#what-was-tuned-on-what)), seeds included. On unseen draws, one each: "
    ]
    draws = [
        group
        for group in grouped(found_in("examination"))
        if group.title.split(", ")[1:2] == ["seven"] and group.defence == CROSS
    ]
    said = [removed(group) for group in draws]
    parts.append("; ".join(said) + ".")
    clean = [result for result in found_in("clean") if "removal" in result]
    rows = {result["rows"] for result in clean}
    alarms = sum(result["removal"]["clean"] > 0 for result in clean)
    parts.append(
        f" Of {len(clean)} draws of {' or '.join(f'{count:,}' for count in sorted(rows))} pictures without poison, from both, {alarms or 'none'} had a picture set aside; some of these had been looked at before."
    )
    return "".join(parts)


def removed(group: Group) -> str:
    """How well a draw's poison is told from the rest, and how much of it is set aside."""
    (result,) = group.finished
    called = {"cifar10": "CIFAR-10", "gtsrb": "traffic signs (GTSRB)"}[group.title.split()[0]]
    own, poisoned = result["removal"], sum(by_attack(result).values())
    return f"{called}, AUROC {result['detection']['all']['auroc']:.4f}, {own['poisoned']:,} of {poisoned:,} poisoned pictures set aside with {own['clean']:,} clean ones"
