"""docs/defences.md: which defence when, from what defences say of themselves and from what was measured."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from _front import found_in
from _grids import PLOTS
from _markdown import machines, percent, table
from _takes import TAKES, without_poison

from untaint.bench.groups import Group, Result, attack_success, clean_accuracy, core_minutes, grouped, mean_asr
from untaint.defenses import DEFENSES, Detector, Mender
from untaint.drawing import figure, save
from untaint.listing import listing
from untaint.scores import MOST

SEED = 0  # at which all are compared
SEVEN, ALONE = "cifar10 20,000, seven", "cifar10 10,000, "
OWN = ("cross-examination", "pattern", "repair", "vote")
USUAL = {
    "patch:rate=0.02": "patch:rate=0.1",
    "blend:pattern=noise,rate=0.02": "blend:pattern=noise,rate=0.1",
}  # at the rate that most papers have
PAPER = "badloss @ fraction:share=0.4"
PEERS = (  # that its comparison has, as far as is known; CBD is not sure
    "neural-cleanse",
    "spectral",
    "clustering",
    "frequency-analysis",
    "isolation",
    "cognitive-distillation",
)
KNOWS = {"none": "", "share": "a share goes, whatever there is", "threshold": "a constant"}
ORDER = {"finds": 0, "trains": 1, "mends": 2}
CONTROLS = ("none", "oracle", "random")
SECOND_LOOK = {  # what was tried and measured, once each, under the patch on 2 % of 10,000 pictures unless another is named
    "anp": "a network of 304 channels does not bear that all are disturbed by four tenths: after 300 steps half of the masks are below .2, and those channels are most of the model. Cut off one by one, they take the patch from 86 to 48 %, at 3 points of accuracy (after 300 steps in place of 2,000 the first channel alone took it to 14 %, which is luck: of equal masks the first layer's come first); by twentieths, as until this cell was seen, it cut off none. With `epsilon` .2, .1 and .05, 300 steps each, the backdoor outlived 5 points.",
    "badloss": "see [results](results.md): what its score sees, and when.",
    "cognitive-distillation": "the patch's own nine pixels, on any colour, make the model say its class for 93 % of the poison, but its ten logits then move by 3.2 on average, as much as they are large; other `gamma`, `beta` and features in place of logits gave .55 to .70 on 300 pictures. Keeping probabilities (`keep=probabilities,gamma=0.003`) gave .95 under the patch (2 % success left), and under seven attackers .60 in place of .74, so that the paper's logits stay the default.",
    "d-br": "after two epochs, as its paper has them for 50,000 pictures, the trigger on 2 % of 10,000 is not learned, and who moves furthest says nothing (AUROC .49). After as many steps as the paper's it does (.86, with 29 % of the poison among the 5 % furthest), but unlearning them leaves 82 %.",
    "eigenguard": "see [a page of its own](eigenguard.md).",
    "fine-pruning": "as fine-tuning.",
    "fine-tuning": "250 pictures, 2.5 %, cost this small network 7 points before the patch is forgotten; what papers report is with 5 % and networks many times as wide.",
    "nad": "as fine-tuning, which makes its teacher.",
    "ngf": "as fine-tuning; the last layer has 64 features, which the trigger and its class may have to share.",
    "scale-up": "its assumption does not hold here: five times as bright, the patch still works on 19 % of pictures, and three quarters of clean ones are taken for two classes, whose pictures seem consistent.",
}
READ = {  # what the cells themselves suggest; nothing was tried. After "It seems that"
    "agpd": "poison on 2 % does not disperse its class enough for the limit, though it is ranked well under the patch.",
    "beatrix": "the faint noise on 2 %, and what looks like its class, moves correlations of features no more than pictures do by themselves.",
    "cbd": "what is learned slowly, as the sinusoid is here, is not among what its first model learns.",
    "cross-examination": "its watchers, which train for 160 steps, hardly learn the warp: a third of it is set aside, and what is left suffices.",
    "clustering": "it needs poison to be the smaller part of its class: 2 % of all are 18 % of it, but 10 % are 54 %, and half of the class has the sinusoid.",
    "confusion-training": "a trigger that the model has not learned well does not outlive the confusion.",
    "contamination": "no class's index reaches its limit, so that nothing is set aside.",
    "feature-consistency": "after two epochs on 10,000 pictures a trigger is hardly learned; where it is, the share of 5 % that goes is too small.",
    "flare": "no small cluster comes off the rest, so that nothing is set aside.",
    "frequency-analysis": "a few waves along one axis, and a smooth warp, are spectra that its copies with triggers do not have.",
    "ibd-psc": "of the faint noise on 2 % the model is less sure than of clean pictures, not more.",
    "isolation": "the faint noise on 2 % is learned after most clean pictures, not before; of that on 10 % three quarters go, and what is left suffices.",
    "label-errors": "a label that the poison of other folds teaches is no error to models that saw it, for which alone it looks.",
    "linear-reset": "nothing stands out in any class, so that nothing is set aside.",
    "map-d": "86 % of the poison with the sinusoid go, and what is left suffices.",
    "near-duplicates": "poison here is no copy of anything, for which alone it looks.",
    "neural-cleanse": "no class stands out, so that nothing is unlearned: a trigger that is all over the picture is no small one.",
    "pattern": "a warp has no fixed pixels, so that there is no pattern to find.",
    "psbd": "of the faint noise on 2 % the model is less sure than of clean pictures, not more.",
    "repair": "what looks like its class, as its label says rightly, and what the model has half learned part a class by too little.",
    "spectral": "it needs poison to be what lies apart from its class: 2 % of all are 18 % of it, but 10 % are 54 %, and half of the class has the sinusoid.",
    "spectre": "it is as with spectral: most of its class is taken for the class.",
    "strip": "two thirds of the poison with the sinusoid go, and what is left suffices.",
    "vote": "of spectral, scale-up and isolation two have to agree, and no two see enough of this poison.",
}
HEADLINE = PLOTS / "defences" / "seven.svg"
HEAD = """# Defences

Made by `python scripts/render_results.py` from the defences' own files and from `results/`. Each is a file in `src/untaint/defenses/`, built from its paper; what is ours in it, its docstring below says.
How they are scored and decide: [methods](methods.md). All figures together: [results](results.md).

## Which when

- **You have pictures, and do not know whether they are poisoned.** `untaint scan`: the default needs no clean pictures (with some it can be checked), no rate, takes several attackers for the normal case, and
  leaves what is clean alone. Nothing else here does all four.
- **You want a second opinion.** `untaint scan DATA --detector NAME --reject false-discovery --out FOLDER`: any of those that find, with a rule that needs no rate in place of its paper's share; `--detector vote` asks several.
- **You may not filter**, or must train on everything: `untaint train DATA --defense NAME --out FOLDER`, one of those that train; the table says what each costs in accuracy.
- **You have a model, and its training is over**: `untaint repair MODEL DATA --out FOLDER`, with `--defense NAME --probes FILE` one of those that mend with clean pictures.
- **You have found poison, and cannot train anew**: `unlearning`, with `untaint train DATA --without rejected.txt --defense unlearning --out FOLDER`.
- **In experiments** any detector goes before any training: `badloss then eigenguard`, `spectral then d-st` ([the benchmark](benchmark.md)).
"""


def page() -> str:
    """The whole page."""
    kinds = {name: DEFENSES.kind(name) for name in DEFENSES.names()}
    seven = of_seven()
    ordered = sorted(kinds, key=lambda name: (ORDER[does(kinds[name])], name))
    options = {name: said for name, _, said in listing("defenses")}
    parts = [
        HEAD.strip(),
        "## What each needs and assumes\n\n" + declared({name: kinds[name] for name in ordered}),
        measured(seven),
        alone(kinds),
        "## Each by itself",
        *(section(name, kinds[name], options[name]) for name in ordered),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def of_seven() -> list[Group]:
    """The groups under seven attackers, each seed once: the cell of experiments/defences.toml where both grids have one."""
    groups = [group for group in grouped(found_in("cpu") + found_in("defences")) if group.title == SEVEN]
    return [
        replace(group, results=tuple({of["origin"]["setting"]["seed"]: of for of in group.results}.values()))
        for group in groups
    ]


def does(kind: Any) -> str:
    """Whether a defence finds pictures, mends a model, or trains."""
    return "finds" if issubclass(kind, Detector) else "mends" if issubclass(kind, Mender) else "trains"


def declared(kinds: dict[str, Any]) -> str:
    """What defences say of themselves."""
    head = ["", "it", "clean pictures needed", "knows of the rate", "several attackers", "assumes that"]
    rows = [
        [
            f"[{name}](#{name})",
            does(kind),
            str(kind.card.clean or ""),
            KNOWS[kind.card.rate],
            ": ".join(filter(None, [kind.card.several, kind.card.why])),
            kind.card.assumes,
        ]
        for name, kind in kinds.items()
    ]
    return table(head, rows)


def measured(groups: Sequence[Group]) -> str:
    """All under seven attackers at once, the least attack success first."""
    whole = {group.defence: group for group in groups if group.finished}
    finished = [group.at([SEED]) for group in whole.values() if SEED in group.seeds]
    if not finished:
        return ""
    ordered = sorted(finished, key=lambda group: fmean(group.values(mean_asr)))
    head = [
        "defence",
        "success, mean",
        "of the worst attack",
        "clean accuracy",
        "poison set aside",
        "clean ones set aside",
        "minutes",
        "success, mean, over three seeds",
    ]
    rows = [
        [
            f"**{group.called}**" if name_of(group) in OWN else group.called,
            percent(group.values(mean_asr)),
            percent(group.values(worst)),
            percent(group.values(clean_accuracy)),
            percent(group.values(recall)),
            percent(group.values(lost)) + (", no defence but a loss" if max(group.share, default=0) > MOST else ""),
            f"{fmean(group.values(minutes)):.1f}",
            percent(whole[group.defence].values(mean_asr)) if len(whole[group.defence].seeds) > 2 else "",
        ]
        for group in ordered
    ]
    failed = [f"`{group.called}`: {group.results[0]['error']}" for group in groups if not group.finished]
    first = finished[0].finished[0]
    said = (
        f"`experiments/cpu.toml` and `experiments/defences.toml`: {first['rows']:,} pictures of CIFAR-10, {len(first['attacks'])} attackers at once, 250 probes, the small network; one seed draws pictures, poison, "
        f"targets and weights. {machines(result['hardware'] for group in finished for result in group.finished)}. Each decides by the rule of its paper, or of its comparison by Alex et al. (2025); no rule was chosen here. Settings of agpd, anp, asset, beatrix, confusion-training, d-br, d-st, feature-re and flare were chosen while looking at draws of patch or blend, of which patch and blend are two of the seven: optimistic for these. All at the same draw, seed 0, where differences of some points mean nothing; where there are "
        "three seeds, mean ± standard deviation over them in the last column, by which the order is another one (with other seeds, some triggers fool even a model that saw no poison). Minutes: processor time of all models that it needs, shared ones too, and of what it computes besides. "
        "The default scan was developed while looking at these attacks (how it does where nobody looked: [results](results.md))."
    )
    parts = [
        "## Seven attackers at once",
        said,
        f"![Attack success and clean accuracy of each defence under seven attackers at once]({HEADLINE.relative_to(PLOTS.parent)})",
        headline(finished),
        table(head, rows),
        "Failed: " + "; ".join(failed) + "." if failed else "",
    ]
    return "\n\n".join(filter(None, parts))


def headline(groups: Sequence[Group]) -> str:
    """What the BaDLoss paper says, and what is seen here."""
    asr = {group.defence: fmean(group.values(mean_asr)) for group in groups}
    names = {group.defence: name_of(group) for group in groups if " then " not in group.defence}
    peers = {names[defence]: rate for defence, rate in asr.items() if names.get(defence) in PEERS}
    removing = [group for group in groups if any("removal" in result for result in group.finished)]
    others = [asr[group.defence] for group in removing if name_of(group) not in (*OWN, "badloss", "oracle", "random")]
    if PAPER not in asr or not peers or not others or "cross-examination" not in asr:
        return ""
    better = sum(rate < asr[PAPER] for rate in others)
    return (
        "**Is the paper's headline reproduced?** It says that with seven attackers on CIFAR-10 BaDLoss leaves 8 % mean attack success, where other defences leave 63 % on average (ResNet-50 and 50,000 pictures, on GPUs). "
        f"Here, with a small network and 20,000 pictures, its score and its 40 % leave {100 * asr[PAPER]:.0f} %; of the defences that it compared with, as far as is known, those that are here ({', '.join(peers)}) leave {100 * fmean(peers.values()):.0f} % on average. "
        f"Of all {len(others)} other detectors, {better} leave less than it, and {100 * fmean(others):.0f} % on average. {'Not reproduced' if asr[PAPER] > 0.2 else 'Reproduced'} at this size. The default scan leaves {100 * asr['cross-examination']:.0f} %."
    )


def alone(kinds: dict[str, Any]) -> str:
    """What papers say of single attackers, and what was measured."""
    groups = [
        group
        for group in grouped(found_in("defences") + found_in("cpu"))
        if group.title.startswith(ALONE)
        and group.title != SEVEN
        and group.finished
        and len(group.finished[0]["poisoned"]) == 1
    ]
    attacks = list(dict.fromkeys(group.title.removeprefix(ALONE) for group in groups if group.defence != "none"))
    attacks = [
        attack
        for attack in attacks
        if any(g.defence != "none" and g.title == ALONE + attack for g in from_grid(groups))
    ]
    by_name: dict[str, dict[str, Group]] = {}
    for group in from_grid(groups):
        by_name.setdefault(group.called, {})[group.title.removeprefix(ALONE)] = group
    few, many = [attack for attack in attacks if attack not in USUAL.values()], [*USUAL.values()]
    claims = {
        called: kinds[name].card.claim
        for called, own in by_name.items()
        if (name := name_of(next(iter(own.values())))) in kinds and " then " not in called
    }
    shown = {name_of(group) for own in by_name.values() for group in own.values()}
    claims |= {name: kind.card.claim for name, kind in kinds.items() if kind.card.claim and name not in shown}
    if not claims:
        return ""
    said = (
        "`experiments/defences.toml`: 10,000 pictures of CIFAR-10, one attacker at a time, the small network, one seed. In each cell: attack success / clean accuracy of the model in the end (first line: success of the triggers on a model that saw none of them), and for those that find, "
        "the share of poison set aside / of clean pictures. What papers claim is for their networks and rates (mostly ResNet-18, 50,000 pictures, 5 to 10 % of them poisoned), in words where no figure is known to us. Empty cells were not run yet."
    )
    more = {called: own for called, own in by_name.items() if set(own) & set(many)}
    at_more = "The same with five times as many poisoned pictures, 10 % of all, which is the rate that most papers have; of those whose papers claim something of triggers, and of our own. How repair looks for components was changed after its cell under this blend was seen (it left 99 %): optimistic for it."
    parts = [
        "## One attacker at a time: what papers say, and what is seen here",
        said,
        cells(by_name, few, claims),
        at_more if more else "",
        cells(more, many),
        second_look(by_name),
    ]
    return "\n\n".join(filter(None, parts))


def cells(by_name: dict[str, dict[str, Group]], attacks: Sequence[str], claims: dict[str, str] | None = None) -> str:
    """A table of defences and attacks, and of what papers claim where that is given."""
    if not by_name:
        return ""
    head = ["defence", *(["its paper's claim"] if claims else []), *(f"`{attack}`" for attack in attacks)]
    bare = ["*no poison at all*", *([""] if claims else [])]
    rows = [[*bare, *(percent([rate]) if (rate := without(attack)) is not None else "" for attack in attacks)]]
    for called in dict.fromkeys([*by_name, *(claims or {})]):
        own = by_name.get(called, {})
        rows.append(
            [called, *([claims.get(called, "")] if claims else []), *(one(own.get(attack)) for attack in attacks)]
        )
    return table(head, rows)


def second_look(by_name: dict[str, dict[str, Group]]) -> str:
    """Who leaves an attack more than half of its success, how it ranked the poison there, and what was seen when it was looked at again."""
    undefended = by_name.get("none", {})
    usual = {attack: without(attack) or 0.0 for attack in undefended}
    gained = {attack: mean(group, mean_asr) - usual[attack] for attack, group in undefended.items()}
    tried: dict[str, dict[str, Group]] = {}
    for own in by_name.values():
        for attack, group in own.items():
            if " then " not in group.defence and name_of(group) not in CONTROLS and gained.get(attack, 0) >= TAKES:
                tried.setdefault(name_of(group), {})[attack] = group
    failing = {
        name: {
            attack: group for attack, group in own.items() if mean(group, mean_asr) - usual[attack] > gained[attack] / 2
        }
        for name, own in tried.items()
    }
    failing = {name: own for name, own in failing.items() if own}
    if not failing:
        return ""
    counts = ", ".join(
        f"{sum(attack in own for own in failing.values())} of {sum(attack in own for own in tried.values())} under {short(attack)}"
        for attack in gained
        if gained[attack] >= TAKES
    )
    said = (
        f"Those that leave an attack more than half of what it gains over a model without poison ({counts}; attacks that gain less than {100 * TAKES:.0f} points are left out), with how well their "
        "scores tell poison from clean pictures there (AUROC; .5 is chance, below it poison seems the cleaner, and where it is high the rule is what misses). All of it is one draw: "
        "see above what leaving out 15 % by lot does."
    )
    two, ten = set(USUAL), set(USUAL.values())
    shares = [
        (
            "Under the patch or the blend on a tenth of all pictures, and elsewhere where that is named:",
            [name for name, own in failing.items() if ten & set(own)],
        ),
        (
            "Where 2 % are poisoned, but not where a tenth is, as in most papers (less than half of the gain is left there; how much, and what it costs, the table above has):",
            [name for name, own in failing.items() if two & set(own) and ten & set(tried[name]) and not ten & set(own)],
        ),
    ]
    rest = [name for name in failing if not any(name in names for _, names in shares)]
    shares.append(("Only where the sinusoid or the warp is, or not meant for triggers:", rest))
    blocks = []
    for head, names in shares:
        lines = [
            f"- **{name}**{ranked(failing[name])}{explained(name)}{at_ten(failing[name], tried[name])}"
            for name in names
        ]
        blocks += ["\n".join([head, "", *lines])] if lines else []
    return "\n\n".join(["### A second look", said, *blocks])


def explained(name: str) -> str:
    """What was tried to find out why a defence fails, or what its cells suggest."""
    tried, suggested = SECOND_LOOK.get(name, ""), READ.get(name, "")
    parts = [f"Tried: {tried}" if tried else "", f"It seems that {suggested}" if suggested else ""]
    return "".join(f" {part}" for part in parts if part)


def without(attack: str) -> float | None:
    """The success of a single attack's trigger on a model that saw no poison, if that was measured."""
    found = without_poison().get(ALONE + attack)
    return fmean(found.values()) if found else None


def ranked(own: dict[str, Group]) -> str:
    """Under which attacks a defence fails, and how well its scores tell the poison there."""
    told = [(short(attack), group.finished[0].get("detection")) for attack, group in own.items()]
    return (
        " ("
        + ", ".join(name + (f" {seen['all']['auroc']:.2f}".replace(" 0.", " .") if seen else "") for name, seen in told)
        + ")."
    )


def at_ten(failing: dict[str, Group], own: dict[str, Group]) -> str:
    """What is left of an attack that a defence fails under where 2 % are poisoned, where five times as many pictures are."""
    left = [
        f"{attack.partition(':')[0]} {100 * mean(own[more], mean_asr):.0f} %"
        for attack, more in USUAL.items()
        if attack in failing and more in own
    ]
    return f" Left at 10 %: {', '.join(left)}." if left else ""


def short(attack: str) -> str:
    """An attack's name, and its rate where that is the usual one."""
    return attack.partition(":")[0] + (" at 10 %" if attack in USUAL.values() else "")


def from_grid(groups: Sequence[Group]) -> list[Group]:
    """The groups of the settings that experiments/defences.toml has."""
    titles = {result["title"] for result in found_in("defences")}
    return [group for group in groups if group.title in titles]


def one(group: Group | None) -> str:
    """The cell of one defence under one attack."""
    if group is None:
        return ""
    result = group.finished[0]
    success, clean = mean_asr(result), clean_accuracy(result)
    parts = [f"{100 * success:.0f} / {100 * clean:.0f} %"] if success is not None and clean is not None else []
    if "removal" in result:
        parts.append(f"{100 * (recall(result) or 0):.0f} / {100 * (lost(result) or 0):.1f} %")
    return ", ".join(parts)


def section(name: str, kind: Any, options: str) -> str:
    """What one defence is, and what it is called with."""
    paragraphs = (inspect.getdoc(kind) or "").replace("``", "`").split("\n\n")
    said = "\n\n".join(re.sub(r"\s+", " ", paragraph) for paragraph in paragraphs)
    own = f"Options: `{options}`." if options else "No options."
    rule = getattr(kind, "usual_rule", None)
    decides = f" Decides by `{rule}` unless another rule is asked for." if rule else ""
    return "\n\n".join([f"### {name}", said, f"{own}{decides} {kind.card.paper}."])


def name_of(group: Group) -> str:
    """The name of the (first) defence of a group."""
    return re.split(r"[ :@]", group.defence)[0]


def worst(result: Result) -> float | None:
    """The success rate of the attack that succeeds most."""
    return max(
        (rate for name in result["poisoned"] if (rate := attack_success(result, name)) is not None), default=None
    )


def recall(result: Result) -> float | None:
    """The share of poison that is set aside."""
    return float(result["removal"]["recall"] or 0) if "removal" in result else None


def lost(result: Result) -> float | None:
    """The share of clean pictures that is set aside."""
    if "removal" not in result:
        return None
    return float(result["removal"]["clean"] / (result["rows"] - sum(result["poisoned"].values())))


def minutes(result: Result) -> float:
    """Processor minutes of a cell: of all its models, and of what was computed besides, where that was noted."""
    return core_minutes(result) + float(result.get("besides", 0.0)) / 60


def picture(path: Path = HEADLINE) -> None:
    """Draw attack success and clean accuracy of each defence under seven attackers, as bars."""
    groups = [group.at([SEED]) for group in of_seven() if SEED in group.seeds]
    ordered = sorted(groups, key=lambda group: -fmean(group.values(mean_asr)))
    if not ordered:
        return
    made, (left, right) = figure(
        "Seven attackers at once on CIFAR-10, 20,000 pictures, a small network, one draw", 2, across=2
    )
    made.set_size_inches(8.5, 0.22 * len(ordered) + 1.3)
    places = list(range(len(ordered)))
    left.barh(places, [100 * mean(group, mean_asr) for group in ordered], color=[colour(group) for group in ordered])
    left.plot([100 * mean(group, worst) for group in ordered], places, "|", color="black", markersize=7)
    right.plot([100 * mean(group, clean_accuracy) for group in ordered], places, "o", color="black", markersize=4)
    left.set_yticks(places, [group.called for group in ordered], fontsize=8)
    right.set_yticks(places, [""] * len(ordered))
    left.set_xlabel("attack success, %: mean (bar) and worst attack (|)")
    right.set_xlabel("clean accuracy, %")
    for axis in (left, right):
        axis.set_ylim(-0.7, len(ordered) - 0.3)
        axis.set_axisbelow(True)
        axis.xaxis.label.set_size(9)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(made, path)


def mean(group: Group, measure: Callable[[Result], float | None]) -> float:
    """The mean of a measure over a group's seeds."""
    return fmean(group.values(measure))


def colour(group: Group) -> str:
    """This project's own, BaDLoss, controls and others apart."""
    name = name_of(group)
    if name in OWN:
        return "#2a7f62"
    if name == "badloss":
        return "#c8641e"
    return "#b0b0b0" if name in ("none", "oracle", "random", "whitening", "remove-top") else "#5b7fa6"
