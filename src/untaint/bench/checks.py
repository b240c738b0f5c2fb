"""Whether a number means anything: what is wrong with a cell, in a few words each (after the example of auto-attack)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from untaint import spec
from untaint.bench.groups import Group, attack_success, attackers, clean_accuracy, labels, mean_asr
from untaint.scores import MOST

__all__ = ["flags"]

LEARNED = 0.20  # by so much must the undefended model fall for a trigger more often than the clean one
FEW = 50  # poisoned rows
SEEDS = 3
APART = 0.10  # a seed so far from the median of all is odd


def flags(group: Group, others: Sequence[Group], called: Mapping[str, str] | None = None) -> list[str]:
    """Return what is to be said against the figures of a group.

    ``others``: the groups of the same setting. ``called``: a short name for each attack's text, where the
    table has more attacks than this setting.
    """
    said: list[str] = []
    texts = attackers([group])
    called = called or dict(zip(texts, labels(texts), strict=True))
    failed = [result for result in group.results if "error" in result]
    said += [f"seed {result['origin']['setting']['seed']} failed: {result['error']}" for result in failed]
    if not group.finished:
        return said
    names = dict(zip(group.finished[0]["poisoned"], (called[text] for text in texts), strict=True))
    said += _not_learned(_of("none", others), _of("oracle", others), names)
    said += [f"{names[name]}: {count} poisoned rows, fewer than {FEW}" for name, count in _few(group)]
    if any(result["origin"]["setting"]["bad_probes"] for result in group.finished):
        said.append(f"{group.finished[0]['origin']['setting']['bad_probes']:.0%} of the probes are poisoned")
    if any(result.get("removal", {}).get("share", 0) > MOST for result in group.finished):
        said.append(f"more than {MOST:.0%} rejected")
    said += _worse_than_random(group, others)
    if len(group.finished) < SEEDS:
        said.append(f"{len(group.finished)} seed{'s' if len(group.finished) > 1 else ''}, fewer than {SEEDS}")
    said += _odd_seeds(group)
    said += _elsewhere(group, _of("none", others))
    return said


def tuned(groups: Sequence[Group]) -> list[str]:
    """Return a word on each defence whose options differ from setting to setting."""
    options: dict[str, dict[str, set[str]]] = {}
    for group in groups:
        name = spec.parse(group.defence.partition("@")[0])[0]
        options.setdefault(name, {}).setdefault(group.title, set()).add(group.defence)
    said = []
    for name, by_title in options.items():
        if len({frozenset(texts) for texts in by_title.values()}) > 1 and not set.intersection(*by_title.values()):
            said.append(f"{name} has other options in one setting than in another")
    return said


def _of(defence: str, groups: Sequence[Group]) -> Group | None:
    return next((group for group in groups if group.defence == defence and group.finished), None)


def _success(group: Group, attack: str) -> float:
    return fmean(group.values(lambda result: attack_success(result, attack)))


def _not_learned(undefended: Group | None, clean: Group | None, names: Mapping[str, str]) -> list[str]:
    if undefended is None or clean is None:
        missing = " and ".join(name for name, group in (("none", undefended), ("oracle", clean)) if group is None)
        return [f"no row '{missing}': whether the attacks were learned is not known"]
    seeds = sorted(undefended.seeds & clean.seeds)
    if not seeds:
        return ["no seed has both 'none' and 'oracle': whether the attacks were learned is not known"]
    said = []
    for attack, label in names.items():
        fooled, usual = ([_success(one.at([seed]), attack) for seed in seeds] for one in (undefended, clean))
        learned = sum(more - less >= LEARNED for more, less in zip(fooled, usual, strict=True))
        if learned == 0:
            said.append(
                f"{label} was not learned: {fmean(fooled):.0%} undefended, {fmean(usual):.0%} by a model without poison"
            )
        elif learned < len(seeds):
            said.append(
                f"{label} was learned with {learned} of {len(seeds)} seeds only: {_listed(fooled)} undefended, "
                f"{_listed(usual)} by models without poison"
            )
    return said


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.0%}" for rate in rates)


def _few(group: Group) -> list[tuple[str, int]]:
    counts: Mapping[str, int] = group.finished[0]["poisoned"]
    return [(name, count) for name, count in counts.items() if count < FEW]


def _worse_than_random(group: Group, others: Sequence[Group]) -> list[str]:
    controls = [other for other in others if other.defence.startswith("random") and other.finished]
    if not controls or group.defence.startswith("random"):
        return []
    own = fmean(group.share)
    nearest = min(controls, key=lambda other: abs(fmean(other.share) - own))
    shared = group.seeds & nearest.seeds  # a seed has an accuracy of its own
    accuracies = [one.at(shared).values(clean_accuracy) for one in (group, nearest)]
    if all(accuracies) and fmean(accuracies[0]) < fmean(accuracies[1]) and own <= fmean(nearest.share):
        return [f"clean accuracy below that of '{nearest.called}', which removes as many by lot"]
    return []


def _odd_seeds(group: Group) -> list[str]:
    said = []
    for what, measure in (("mean ASR", mean_asr), ("clean accuracy", clean_accuracy)):
        values = {result["origin"]["setting"]["seed"]: measure(result) for result in group.finished}
        known = {seed: value for seed, value in values.items() if value is not None}
        if len(known) < SEEDS:
            continue
        middle = median(known.values())
        for seed, value in known.items():
            if abs(value - middle) > APART:
                said.append(f"seed {seed} is far from the others: {what} {value:.0%}, median {middle:.0%}")
    return said


def _elsewhere(group: Group, undefended: Group | None) -> list[str]:
    """Return a word on the seeds whose undefended model was measured on another machine."""
    usual = {} if undefended is None else _machines(undefended)
    own = {seed: machine for seed, machine in _machines(group).items() if usual.get(seed, machine) != machine}
    if not own:
        return []
    seeds = f"seed{'s' if len(own) > 1 else ''} {', '.join(map(str, sorted(own)))}"
    return [
        f"{seeds} ran on {' and '.join(sorted(set(own.values())))}, 'none' on {' and '.join(sorted({usual[seed] for seed in own}))}: "
        "their cost is not to be compared, and a trigger that is optimised comes out a little different"
    ]


def _machines(group: Group) -> dict[int, str]:
    return {result["origin"]["setting"]["seed"]: result["hardware"] for result in group.finished}
