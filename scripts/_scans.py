"""The section of docs/results.md on one whole data set, as the command line scanned it."""

from __future__ import annotations

from typing import Any

from _markdown import machines, table

METHODS = ("badloss (paper's score)", "badloss (best of 12 options, chosen on these attacks)", "cross-examination")


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
        f"{len(facts['attacks'])} attackers at once, 250 probes, one seed. {machines([facts['hardware']])}.",
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
