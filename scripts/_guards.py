"""The table of docs/eigenguard.md, from results/."""

from __future__ import annotations

from _front import found_in
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
    parts = [by_attack([result for result in found if result["title"] == several]), others(found, several)]
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
