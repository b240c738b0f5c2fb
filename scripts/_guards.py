"""The table of docs/eigenguard.md, from results/."""

from __future__ import annotations

import json
from statistics import fmean

from _front import found_in
from _grids import ROOT
from _markdown import table

from untaint.bench.groups import Result, attack_success, attackers, clean_accuracy, grouped, labels, mean_asr

BEGIN, END = "<!-- made by scripts/render_results.py -->", "<!-- until here -->"


def guards(text: str) -> str:
    """The page with its table made anew; as it is where nothing was run."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"docs/eigenguard.md has no {BEGIN}"
    assert end, f"docs/eigenguard.md has no {END}"
    found = [result for result in found_in("eigenguard") if "model" in result]
    titles = [group.title for group in grouped(found)]
    several = next(title for title in titles if title.endswith(", six"))
    parts = [
        by_attack([result for result in found if result["title"] == several]),
        variants(),
        others(found, several),
        without_labels(),
    ]
    return before + begin + "\n" + "\n\n".join(filter(None, parts)) + "\n" + end + after


def by_attack(found: list[Result]) -> str:
    """A line for each defence, a column for each attack."""
    head = ["", "clean accuracy", "mean attack success", *labels(attackers(grouped(found)))]
    rows = [
        [
            result["called"],
            percent(clean_accuracy(result)),
            percent(mean_asr(result)),
            *(percent(attack_success(result, name)) for name in result["poisoned"]),
        ]
        for result in found
    ]
    return table(head, rows)


def variants() -> str:
    """What benchmarks/eigenguard_variants.py tried, in the same setting: a line each; nothing where it was not run."""
    path = ROOT / "results" / "eigenguard-variants.json"
    if not path.exists():
        return ""
    lines = json.loads(path.read_text())["lines"]
    first = next(iter(next(iter(lines.values())).values()))
    rows = [
        [
            name,
            percent(fmean(found["clean accuracy"] for found in seeds.values())),
            percent(fmean(rate for found in seeds.values() for rate in found["attack success"].values())),
            *(
                percent(fmean(found["attack success"][one] for found in seeds.values()))
                for one in first["attack success"]
            ),
        ]
        for name, seeds in lines.items()
    ]
    head = ["k = 50, changed (`benchmarks/eigenguard_variants.py`)", "clean accuracy", "mean attack success"]
    return table([*head, *("blend lattice" if one == "blend-2" else one for one in first["attack success"])], rows)


def others(found: list[Result], several: str) -> str:
    """Another batch size, one attacker at a time, and an attacker who knows: clean accuracy and mean attack success."""
    rows = [
        [
            result["title"].partition(", ")[2],
            result["called"],
            percent(clean_accuracy(result)),
            percent(mean_asr(result)),
        ]
        for result in found
        if result["title"] != several
    ]
    return table(["setting", "", "clean accuracy", "mean attack success"], rows) if rows else ""


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def without_labels() -> str:
    """What benchmarks/self_supervised.py found: a line for each encoder; nothing where it was not run."""
    path = ROOT / "results" / "self-supervised.json"
    if not path.exists():
        return ""
    told = json.loads(path.read_text())
    rows = [
        [name, percent(line["clean accuracy"]), percent(line["attack success"])] for name, line in told["found"].items()
    ]
    head = f"SimCLR, {told['rows']:,} pictures, {told['epochs']} epochs, {told['poisoned']} with `{told['attack']}` (`benchmarks/self_supervised.py`)"
    return table([head, "clean accuracy of a linear probe", "attack success"], rows)
