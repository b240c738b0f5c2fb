"""Writes docs/results.md and the table of README.md from results/: every table there is made here, none is typed.

With --check nothing is written, and it is an error if a page is not what would be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from untaint.bench import read_grid
from untaint.bench.checks import flags
from untaint.bench.groups import Group, Result, attackers, clean_accuracy, grouped, labels, mean_asr, spread
from untaint.bench.pictures import draw
from untaint.bench.runner import results_of
from untaint.bench.table import render

ROOT = Path(__file__).parents[1]
TABLE_ONLY = ("paper-score",)  # grids shown without plots
GRIDS = [path for path in sorted((ROOT / "experiments").glob("*.toml")) if path.stem != "smoke"]
PLOTS = ROOT / "docs" / "plots"
KINDS = {
    "roc": "True against false positive rates, attack by attack",
    "trajectories": "Loss by epoch under BaDLoss's watcher, by attack",
}
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
}
BY_ITSELF = 0.2  # success of a trigger without poison that is said
OPTIMIZERS = {"muon": "Muon", "adamw": "AdamW", "sgd": "SGD"}
RECORDINGS = (
    "With the same watcher, more pictures (and so more steps) make the paper's score worse at telling triggers that are easily learned, such as the patch and the lattice: "
    "below one half, it takes them for the least suspicious of all. While they are not yet learned, they stand out by their wrong labels. Scores on margins gain "
    "by the same step. It is not the network alone, then; it seems to matter how far the triggers are learned while it watches. Whether the paper's "
    "recipe does better with more pictures, or with a larger network, is not known yet."
)
METHODS = ("badloss (paper's score)", "badloss (best of 12 options, chosen on these attacks)", "cross-examination")


OTHERS = {
    "spectral": (
        "Spectral Signatures",
        "It is told nothing of the poison, and sets 15 % of each class aside. Under several attacks the defences that the paper compares leave 63 % "
        "on average; this one, with a target of its own for each attack, does far better here than the paper's score.",
    ),
    "clustering": ("Activation Clustering", ""),
    "label-errors": ("Confident learning (cleanlab)", ""),
}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def named(attack: str) -> str:
    """An attack as a column's head: what all of them share is left out."""
    return attack.replace(",rate=0.01", "").replace("target=", "to ").replace(":", " ")


def detection(facts: dict[str, Any]) -> str:
    columns = [*facts["attacks"], "all"]
    head = ["AUROC", *map(named, columns), "TPR at 5 / 1 / 0.1 % FPR"]
    rows = []
    for method in (method for method in METHODS if method in facts):
        own = facts[method]
        tpr = " / ".join(f"{own['all']['tpr_at_fpr'][rate]:.2f}" for rate in ("0.05", "0.01", "0.001"))
        rows.append([method, *(f"{own[c]['auroc']:.3f}" for c in columns), tpr])
    return table(head, rows)


def rejected(facts: dict[str, Any]) -> str:
    columns = [*facts["attacks"], "all"]
    head = ["found at 1 / 5 / 40 % rejected", *map(named, columns)]
    rows = []
    for method in (method for method in METHODS if method in facts):
        shares = [facts[method][column]["found_at_rejected"] for column in columns]
        rows.append([method, *(" / ".join(f"{own[share]:.2f}" for share in ("0.01", "0.05", "0.4")) for own in shares)])
    return table(head, rows)


def models(facts: dict[str, Any]) -> str:
    first = next(iter(facts["models"].values()))
    head = ["model trained on", *(name if name == "clean accuracy" else f"ASR {name}" for name in first)]
    return table(
        head, [[name, *(f"{100 * value:.1f} %" for value in own.values())] for name, own in facts["models"].items()]
    )


def command(cost: dict[str, Any]) -> str:
    """What the whole command took, if one call did it all."""
    after = " (it had been begun before)" if cost["resumed"] else ""
    return (
        f"Written by `untaint poison`, scanned by `untaint scan`: {cost['seconds'] / 60:.1f} minutes in all{after}, "
        f"peak memory {cost['peak_mib']:,} MiB with the pages of the pixel cache."
    )


def section(facts: dict[str, Any]) -> str:
    aside = facts["set aside"]
    parts = [
        f"### {facts['name']}",
        f"{facts['rows']:,} pictures of {facts['pixels']}x{facts['pixels']} pixels, {sum(facts['attacks'].values()):,} of them poisoned by "
        f"{len(facts['attacks'])} attackers at once, 250 probes, one seed. {facts['hardware']}.",
        *(
            [
                f"The scan took {sum(stage['seconds'] for stage in facts['seconds']):,.0f} seconds: {', '.join(stage['name'] + ' ' + format(stage['seconds'], '.0f') for stage in facts['seconds'])}."
            ]
            if facts.get("seconds")
            else []
        ),
        *([command(facts["scan"])] if "scan" in facts else []),
        detection(facts),
        rejected(facts),
        *([f"Best options of BaDLoss: `{facts[METHODS[1]]['options']}`."] if METHODS[1] in facts else []),
        f"Set aside by `{aside['rule']}`: {aside['rejected']:,} pictures, {aside['clean among them']:,} of them clean; "
        f"{sum(aside['found'].values()):,} of {sum(facts['attacks'].values()):,} poisoned ones found. {aside['note']}",
    ]
    if "models" in facts:
        parts.append(models(facts))
    return "\n\n".join(parts)


def benchmark(path: Path) -> str:
    """The tables of one grid file, of as many cells as are finished; nothing where none is."""
    grid = read_grid(path)
    found = results_of(grid, ROOT / "results" / grid.name)
    cells = sum(len(defenders) for _, defenders in grid.cells)
    if not found:
        return ""
    machines = sorted({result["hardware"] for result in found})
    if grid.name in TABLE_ONLY:
        parts = [recordings(found)]
    else:
        parts = [
            render(found, "markdown"),
            render(found, "markdown", per_attack=True).partition("Beware:")[0],
            shown(grid.name),
            what_it_says(found) if grid.name == "cpu" else "",
        ]
    said = f"`untaint bench experiments/{path.name}`: {len(found)} of its {cells} cells are finished. {'; '.join(machines)}."
    return "\n\n".join([f"## {grid.title}", said, *parts]).strip()


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


def what_it_says(found: Sequence[Result]) -> str:
    """In words, with the figures of the first setting: several attackers on 20,000 pictures of CIFAR-10."""
    groups = grouped(found)
    own = {group.defence: group for group in groups if group.title == groups[0].title}
    plain, oracle, cross = own["none"], own["oracle"], own["cross-examination"]
    paper = own["badloss @ fraction:share=0.4"]
    margins = own["badloss:observable=margin,centre=class @ fraction:share=0.4"]
    lot = own["random @ fraction:share=0.4"]

    def mean(group: Group, measure: Callable[[Result], float | None]) -> float:
        return 100 * fmean(group.values(measure))

    def points(group: Group) -> str:
        same = plain.at(group.seeds)
        return f"{mean(group, clean_accuracy) - mean(same, clean_accuracy):+.1f} points of clean accuracy"

    def beside(group: Group) -> str:
        if group.seeds == cross.seeds:
            return ""
        return f" (cross-examination with the same seed: {mean(cross.at(group.seeds), mean_asr):.1f} %)"

    def recall(group: Group) -> str:
        return f"{mean(group, lambda result: result['removal']['recall']):.0f} %"

    return "\n".join(
        [
            "What the first setting says:",
            "",
            f"- **The paper's score does poorly here.** That is the score on our watcher, 8 epochs of Muon on a small network, where the paper has 30 of AdamW on a "
            f"ResNet-50; what that changes is asked further down (*What the paper's score needs*). It rejects 40 %, finds {recall(paper)} of the poison "
            f"(40 % by lot: {recall(lot)}), and leaves a mean ASR of {mean(paper, mean_asr):.0f} % ({points(paper)}; by lot {points(lot)}). The plot of losses shows why: "
            "what the small model learns of a trigger it learns within few epochs, and such poison has losses of a hundredth and less. Between curves of "
            "cross-entropy that is a distance of about the median probe's own loss, while clean pictures that are hard to learn are several times as "
            "far away. Only poison whose trigger is not learned stands out, by its wrong label.",
            f"- **Its recording is good, and its idea.** Compared by margins beside the class's median, the same curves find {recall(margins)} at the same 40 %: "
            f"mean ASR {mean(margins, mean_asr):.1f} %, {points(margins)}. These options were chosen on such attacks.",
            f"- **Cross-examination** finds {recall(cross)} and sets {mean(cross, lambda result: result['removal']['share']):.1f} % aside: mean ASR "
            f"{mean(cross, mean_asr):.1f} % where the oracle, which knows who is poisoned, leaves {mean(oracle, mean_asr):.1f} %, {points(cross)}. What it misses is mostly the "
            "sinusoid, which keeps its right labels.",
            *(
                f"- **{name}** finds {recall(own[defence])} and sets {mean(own[defence], lambda result: result['removal']['share']):.1f} % aside: mean ASR "
                f"{mean(own[defence], mean_asr):.1f} %{beside(own[defence])}, {points(own[defence])}. {remark}".strip()
                for defence, (name, remark) in OTHERS.items()
                if defence in own
            ),
            *by_themselves(oracle),
        ]
    )


def fooling(oracle: Group) -> list[tuple[str, str, float, int]]:
    """The triggers that fool a model which never saw poison: attack, target, success rate, seed."""
    called = dict(zip(oracle.finished[0]["poisoned"], labels(attackers([oracle])), strict=True))
    return [
        (called[name], found["target"], found["asr"], result["origin"]["setting"]["seed"])
        for result in oracle.finished
        for name, found in result["model"]["attacks"].items()
        if found["asr"] > BY_ITSELF
    ]


def by_themselves(oracle: Group) -> list[str]:
    cases = [
        f"{attack} aimed at {target} {100 * rate:.0f} % (seed {seed})" for attack, target, rate, seed in fooling(oracle)
    ]
    if not cases:
        return []
    return [
        f"- **Some triggers need no backdoor.** A model that never saw poison takes pictures with the trigger for the target: {'; '.join(cases)}. "
        "No removal of poison leaves less than that there, and the mean ASR of such a seed says little of a defence."
    ]


def plots() -> None:
    """Draw the settings with several attackers, for the page to show."""
    for path in (path for path in GRIDS if path.stem not in TABLE_ONLY):
        grid = read_grid(path)
        found = results_of(grid, ROOT / "results" / grid.name)
        draw([result for result in found if len(result["poisoned"]) > 1], PLOTS / grid.name, KINDS)


def shown(name: str) -> str:
    """The plots of one grid file."""
    paths = sorted((PLOTS / name).glob("*.svg"))
    return "\n\n".join(f"![{KINDS[path.stem.rpartition('-')[2]]}]({path.relative_to(PLOTS.parent)})" for path in paths)


def readme(text: str) -> str:
    """The page README with its table made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"README.md has no {BEGIN}"
    assert end, f"README.md has no {END}"
    grid = read_grid(ROOT / "experiments" / "cpu.toml")
    groups = grouped(results_of(grid, ROOT / "results" / grid.name))
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
            rows.append([name, *(_percent(some) for some in values)])
    first = own[0].finished
    machines = sorted({result["hardware"] for group in own for result in group.finished})
    poisoned = sum(sum(result["poisoned"].values()) for result in first) / len(first)
    seeds = "one seed" if len(first) == 1 else f"{len(first)} seeds (mean ± standard deviation)"
    if single := next((group for group in own if len(group.seeds) == 1 and len(first) > 1), None):
        best = next(group for group in own if group.defence == "cross-examination").at(single.seeds)
        seeds += (
            f"; rows without ± are of one of them, where what untaint keeps gives {_percent(best.values(clean_accuracy))} "
            f"and {_percent(best.values(mean_asr))}"
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
        f"small networks, {' and '.join(machines)}; {seeds}.{missed}"
    )
    return before + begin + "\n" + table(head, rows) + "\n\n" + said + "\n" + end + after


def _percent(values: Sequence[float]) -> str:
    found = spread(values)
    if found is None:
        return ""
    mean, deviation = found
    return f"{100 * mean:.1f} %" if deviation is None else f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def speed() -> str:
    """One table of what the benchmarks of speed and memory measured."""
    found = [json.loads(path.read_text()) for path in sorted((ROOT / "results/speed").glob("*.json"))]
    machines = sorted({f"{facts['hardware']}, torch {facts['torch']}" for facts in found})
    rows = [[own["what"], own["figure"], own["limit"]] for facts in found for own in facts["figures"]]
    said = "Ratios are of runs that took turns on the same machine; it is shared, so that absolute figures vary by a fifth and more."
    return "\n\n".join(
        ["## Speed and memory", f"{'; '.join(machines)}. {said}", table(["what", "measured", "asked"], rows)]
    )


def page() -> str:
    found = [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("*.json"))]
    whole = [
        "# Results",
        "Made by `python scripts/render_results.py` from `results/`, which `untaint bench` and the files of `benchmarks/` write. AUROC of an attack: its rows "
        "against clean rows only. TPR at an FPR: over clean rows. ASR (attack success rate): over test pictures outside the target class. "
        "With one seed, differences of a point mean nothing.",
        "**What was tuned on what.** How the watchers train (Muon, whitening, 8 epochs), which signs are measured and how they are put together were "
        "chosen while looking at CIFAR-10, 20,000 pictures, under five attacks: patch, pixel, two blends, sinusoid. The same "
        "was then run on GTSRB under the same attacks; three things were changed after looking at it, and at CIFAR-10 with "
        "all its pictures: the company of a probe is judged without that probe, signs are taken beside the class's probes, "
        "and the rule reads off the quartiles how far clean scores reach to the right. All of GTSRB and the clothing pictures came last: a smaller batch "
        "and corrections of a whole class's scores were tried on them, and not taken. Nothing was chosen while looking at narcissus or frequency. "
        "The attacks are the published ones but for the lattice (a pattern blend at 0.1) and narcissus (see the grid file).",
        *filter(None, map(benchmark, GRIDS)),
        "## Whole data sets, by the command line",
        "One seed each, five attacks, probes among the clean rows. BaDLoss is measured on one watcher of the same small network, 20 epochs of SGD on "
        "everything. The models here were trained with ten times the weight decay of today's recipe, which cost some 3 points of clean accuracy.",
        *map(section, found),
        speed(),
    ]
    return "\n\n".join(whole) + "\n"


def pages() -> dict[Path, str]:
    """Each page, and what it should be."""
    front = ROOT / "README.md"
    return {ROOT / "docs" / "results.md": page(), front: readme(front.read_text())}


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        stale = [str(path.relative_to(ROOT)) for path, text in pages().items() if path.read_text() != text]
        sys.exit(f"not as results/ has it: {', '.join(stale)}. Run scripts/render_results.py." if stale else 0)
    plots()
    for path, text in pages().items():
        path.write_text(text)
