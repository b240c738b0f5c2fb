"""The section of docs/attacks.md on whether each attack takes, and what the scan makes of it, from results/attacks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from _front import found_in
from _grids import ROOT
from _markdown import machines, table

from untaint.attacks import ATTACKS
from untaint.bench import read_grid
from untaint.bench.groups import Result, attackers_of, clean_accuracy

SCAN = "cross-examination"
TAKES = 0.2  # above a model without poison: learned
TELLS = 0.98  # AUROC
HEAD = [
    "attack",
    "poisoned",
    "clean accuracy",
    "success, undefended",
    "of a model without poison",
    "the same answer without the trigger",
    "AUROC",
    "TPR at 1 % FPR",
    "set aside",
    "clean ones set aside",
    "success after it",
    "clean accuracy after it",
]
TAKEN, SCANNED, TOGETHER = [0, 1, 2, 3, 4, 5], [0, 6, 7, 8, 9, 3, 10, 2, 11], [0, 1, 3, 4, 5, 6, 7, 8, 10]
CONTROLS = ["control", "pictures", "clean accuracy", "set aside", "others set aside", "clean accuracy after the scan"]


def takes() -> str:
    """A table of the attacks one at a time, of groups, and of controls; nothing where nothing was run."""
    found = found_in("attacks")
    by_title: dict[str, dict[str, Result]] = {}
    for result in found:
        by_title.setdefault(result["title"], {})[result["defence"]] = result
    pairs = [(own["none"], own.get(SCAN)) for own in by_title.values() if "none" in own]
    if not pairs:
        return ""
    grid = read_grid(ROOT / "experiments" / "attacks.toml")
    settings = len(grid.cells)
    attacks = [pair for pair in pairs if any(asr(pair[0], name) is not None for name in pair[0]["poisoned"])]
    controls = [pair for pair in pairs if pair not in attacks]
    single = [line for none, scan in attacks if len(none["poisoned"]) == 1 for line in lines(none, scan)]
    scanned = [line for line in single if line[SCANNED[-1]]]
    parts = [
        "## Do they take, and what does the scan make of them?",
        f"`untaint bench experiments/attacks.toml --data cifar10=PATH`: 10,000 pictures of CIFAR-10, the small network, 12 epochs, one seed, each attack by itself and then seven at once; the default scan, with 250 probes. "
        f"{sum(scan is not None for _, scan in pairs)} of {settings} settings are finished{'' if settings == len(pairs) else f', and {sum(scan is None for _, scan in pairs)} without the scan'}. {machines(result['hardware'] for result in found)}. "
        "Success: the share of the test pictures with the trigger that get the answer the attacker wants; beside it the same share of a model that was trained on these pictures without poison (`benchmarks/triggers_on_clean.py`), and the share that get this answer without the trigger. "
        "The scan was made before any of these attacks but patch, pixel, blend, sinusoid, frequency, warp and narcissus was there, and nothing was changed after these were.",
        part_of(single, TAKEN),
        "What the scan makes of them:\n\n" + part_of(scanned, SCANNED) if scanned else "",
        missed([(none, scan) for none, scan in attacks if scan is not None]),
        *(group(none, scan) for none, scan in attacks if len(none["poisoned"]) > 1),
        "Controls: a detector should not call these poison, though what does harm to a model may well be set aside.\n\n"
        + table(CONTROLS, [control(none, scan) for none, scan in controls])
        if controls
        else "",
    ]
    return "\n\n".join(filter(None, parts))


def missed(pairs: Sequence[tuple[Result, Result]]) -> str:
    """In words: what does not take, what still works after the scan, and which of that the score tells and the rule leaves."""
    dull, left, told = [], [], []
    for none, scan in pairs:
        for name, text in zip(none["poisoned"], attackers_of(none), strict=True):
            usual = without_poison().get(none["title"], {}).get(name) or none["model"]["attacks"][name]["untriggered"]
            called = f"`{text}`" + (" among seven" if len(none["poisoned"]) > 1 else "")
            if (asr(none, name) or 0) - usual < TAKES:
                dull.append(called)
            elif (asr(scan, name) or 0) - usual >= TAKES:
                left.append(called)
            if (
                scan["detection"][name]["auroc"] >= TELLS
                and scan["removal"]["per attack"][name] < none["poisoned"][name] / 2
            ):
                told.append(called)
    parts = [
        f"Hardly learned here (less than {100 * TAKES:.0f} points above a model without poison): {', '.join(dull)}."
        if dull
        else "",
        f"**What still works after the scan** (by {100 * TAKES:.0f} points or more): {', '.join(left)}."
        if left
        else "",
        f"Of these and of what is hardly learned the score tells {', '.join(told)} well (AUROC {TELLS} and more), and less than half is set aside: poison is at the upper end of the scores, but what a trigger has in common is in all classes, or on pictures that keep their label too, "
        "so that no pattern of one class stands out, and next to the many hard clean pictures the rule cannot tell where they end. Another rule may (`untaint score RUN --reject gap`, or `fraction`); that was not measured."
        if told
        else "",
    ]
    return "\n\n".join(filter(None, parts))


def group(none: Result, scan: Result | None) -> str:
    """Several at once: a line for each."""
    title = none["title"].partition(", ")[2]
    clean = f"{title[0].upper()}{title[1:]}, at once: clean accuracy {percent(clean_accuracy(none))}"
    if scan:
        removed = scan["removal"]
        clean += (
            f"; after the scan, which sets {removed['clean']:,} clean pictures aside, {percent(clean_accuracy(scan))}"
        )
    return f"{clean}.\n\n" + part_of(list(lines(none, scan)), TOGETHER)


def part_of(rows: list[list[str]], columns: list[int]) -> str:
    """A table of some columns of the lines."""
    return table([HEAD[place] for place in columns], [[row[place] for place in columns] for row in rows])


def lines(none: Result, scan: Result | None) -> Iterator[list[str]]:
    """One for each attack."""
    untouched = without_poison()
    for name, text in zip(none["poisoned"], attackers_of(none), strict=True):
        plain, after = none["model"]["attacks"][name], scan["model"]["attacks"][name] if scan else {}
        seen: dict[str, Any] = scan["detection"].get(name, {}) if scan else {}
        removed = scan["removal"] if scan else {}
        count = none["poisoned"][name]
        yield [
            f"`{text}`",
            f"{count:,}",
            percent(clean_accuracy(none)),
            percent(plain.get("asr")),
            percent(untouched.get(none["title"], {}).get(name)),
            percent(plain.get("untriggered")),
            f"{seen['auroc']:.3f}" if seen else "",
            percent(seen["tpr_at_fpr"]["0.01"]) if seen else "",
            percent(removed["per attack"][name] / count) if removed else "",
            f"{removed['clean']:,}" if removed else "",
            percent(after.get("asr")),
            percent(clean_accuracy(scan)) if scan else "",
        ]


def control(none: Result, scan: Result | None) -> list[str]:
    """The line of a control."""
    (text,) = attackers_of(none)
    attack = ATTACKS.build(text)
    share = attack.rate or 0.0
    removed = scan["removal"] if scan else None
    own = sum(removed["per attack"].values()) if removed else 0
    return [
        f"`{text}`",
        f"{round(share * none['rows']):,}",
        percent(clean_accuracy(none)),
        f"{own:,}" if removed else "",
        f"{removed['rejected'] - own:,}" if removed else "",
        percent(clean_accuracy(scan)) if scan else "",
    ]


def without_poison() -> dict[str, dict[str, float]]:
    """What benchmarks/triggers_on_clean.py measured: setting, attack -> success."""
    path = ROOT / "results" / "triggers-on-clean.json"
    found: dict[str, dict[str, float]] = json.loads(path.read_text())["settings"] if path.exists() else {}
    return found


def asr(result: Result, name: str) -> float | None:
    """The success of an attack; None of a control."""
    found: float | None = result["model"]["attacks"][name].get("asr")
    return found


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
