"""What the tables of the grids say, in words with their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from _markdown import table
from scipy import stats

from untaint.bench.groups import Group, Result, attack_success, attackers, clean_accuracy, grouped, labels, mean_asr

BY_ITSELF = 0.2  # success of a trigger without poison that is said
DEFAULT = 4  # epochs for which the watchers of the default scan train where pictures are few
LEFT = 0.2  # success of a trigger after a defence, above that without poison, that is said
PAPER = "badloss @ fraction:share=0.4"
MARGINS = "badloss:observable=margin,centre=class @ fraction:share=0.4"
LOT = "random @ fraction:share=0.4"
CROSS = "cross-examination"
OTHERS = {
    "spectral": "Spectral Signatures",
    "clustering": "Activation Clustering",
    "label-errors": "Confident learning (cleanlab)",
    "pattern": "Pattern, which trains nothing before the clean model,",
}

REMARKS = {
    "spectral": " It is told nothing of the poison, and sets 15 % of each class aside. Under several attacks on CIFAR-10 the defences that the paper compares leave "
    "63 % on average; this one does far better here, where each attack has a target of its own.",
    "pattern": " All seven triggers lie at a fixed place, which is what it looks for, and it was made while looking at them; of a warp, or a "
    "sticker that is moved about, it finds nothing. Cross-examination looks for the same patterns, and puts them to the test.",
}


@dataclass(frozen=True)
class Figures:
    """The groups of one setting by defence, and what is said of each, in per cent over its seeds."""

    own: dict[str, Group]
    called: dict[str, str]  # the short name of each attack's text

    @classmethod
    def of(cls, groups: Sequence[Group], title: str) -> Figures:
        texts = attackers(groups)
        own = {group.defence: group for group in groups if group.title == title}
        return cls(own, dict(zip(texts, labels(texts), strict=True)))

    def asr(self, defence: str) -> float:
        return 100 * fmean(self.own[defence].values(mean_asr))

    def points(self, defence: str) -> str:
        """The difference of clean accuracy from that of undefended training, seed by seed; of several, with the 95 % interval of its mean (Student's t)."""
        group = self.own[defence]
        same = self.own["none"].at(group.seeds)
        more = [
            100 * (own - plain)
            for own, plain in zip(*(one.values(clean_accuracy) for one in (group, same)), strict=True)
        ]
        said = f"{fmean(more):+.1f} points of clean accuracy"
        if len(more) < 2:
            return said
        reach = stats.t.ppf(0.975, len(more) - 1) * stdev(more) / len(more) ** 0.5
        return f"{said} [paired over {len(more)} seeds, 95 %: {fmean(more) - reach:+.1f} to {fmean(more) + reach:+.1f}]"

    def removed(self, defence: str, what: str) -> float:
        return 100 * fmean(self.own[defence].values(lambda result: result["removal"][what]))

    def left(self, defence: str) -> list[str]:
        """The attacks that still succeed, with their rates."""
        group, clean = self.own[defence], self.own["oracle"].at(self.own[defence].seeds)
        said = []
        for name, text in zip(group.finished[0]["poisoned"], attackers([group]), strict=True):
            own, usual = (fmean(rate(one, name)) for one in (group, clean))
            if own - usual > LEFT:
                said.append(f"{self.called[text]} {100 * own:.0f} %")
        return said

    def line(self, defence: str, name: str) -> str:
        """What a defence finds, sets aside and leaves."""
        own = self.own[defence]
        same = ""
        if CROSS in self.own and own.seeds != self.own[CROSS].seeds:
            seeds = "seed" if len(own.seeds) == 1 else "seeds"
            same = f" (cross-examination with the same {seeds}: {100 * fmean(self.own[CROSS].at(own.seeds).values(mean_asr)):.1f} %)"
        return (
            f"- **{name}** finds {self.removed(defence, 'recall'):.0f} % and sets {self.removed(defence, 'share'):.1f} % aside: mean ASR "
            f"{self.asr(defence):.1f} %{same}, {self.points(defence)}."
        )


def rate(group: Group, attack: str) -> list[float]:
    return group.values(lambda result: attack_success(result, attack))


def what_it_says(found: Sequence[Result]) -> str:
    """The words on every setting of which enough is finished."""
    groups = grouped(found)
    several = [group.title for group in groups if len(attackers([group])) > 1]
    first, *others = (Figures.of(groups, title) for title in dict.fromkeys(several))
    parts = [
        on_the_first(first),
        *(on_another(one, title) for one, title in zip(others, list(dict.fromkeys(several))[1:], strict=True)),
    ]
    return "\n\n".join([*parts, *one_at_a_time(groups)])


def on_the_first(own: Figures) -> str:
    """Several attackers on 20,000 pictures of CIFAR-10; nothing as long as what is compared has not been run."""
    if not {PAPER, MARGINS, LOT, CROSS, "none", "oracle"} <= set(own.own):
        return ""
    return "\n".join(
        [
            "What the first setting says:",
            "",
            f"- **The paper's score does poorly here.** That is the score on our watcher, 8 epochs of Muon on a small network, where the paper has 30 of AdamW on a "
            f"ResNet-50; what that changes is asked further down (*What the paper's score needs*). It rejects 40 %, finds {own.removed(PAPER, 'recall'):.0f} % of the poison "
            f"(40 % by lot: {own.removed(LOT, 'recall'):.0f} %), and leaves a mean ASR of {own.asr(PAPER):.0f} % ({own.points(PAPER)}; by lot {own.points(LOT)}). "
            "The plot of losses shows why: what the small model learns of a trigger it learns within few epochs, and such poison has losses of a hundredth and less. "
            "Between curves of cross-entropy that is a distance of about the median probe's own loss, while clean pictures that are hard to learn are several times as "
            "far away. Only poison whose trigger is not learned stands out, by its wrong label.",
            f"- **Its recording is good, and its idea.** Compared by margins beside the class's median, the same curves find {own.removed(MARGINS, 'recall'):.0f} % at the same "
            f"40 %: mean ASR {own.asr(MARGINS):.1f} %, {own.points(MARGINS)}. These options were chosen on such attacks.",
            own.line(CROSS, "Cross-examination")
            + f" The oracle, which knows who is poisoned, leaves {own.asr('oracle'):.1f} %."
            + f" Of what it set aside {100 - own.removed(CROSS, 'precision'):.1f} % is clean, where up to a tenth is stated.",
            *(
                own.line(defence, name) + REMARKS.get(defence, "")
                for defence, name in OTHERS.items()
                if defence in own.own
            ),
            *by_themselves(own.own["oracle"]),
        ]
    )


def on_another(own: Figures, title: str) -> str:
    """The same attackers on other pictures."""
    said = []
    if CROSS in own.own and "oracle" in own.own:
        clean = 100 - own.removed(CROSS, "precision")
        left = own.left(CROSS)
        said.append(
            own.line(CROSS, "Cross-examination")
            + f" Undefended it is {own.asr('none'):.1f} %, without poison {own.asr('oracle'):.1f} %. "
            + f"Of what it set aside {clean:.1f} % is clean, where up to a tenth is stated."
            + (f" It leaves: {', '.join(left)}." if left else "")
        )
    said += [
        own.line(defence, name)
        for defence, name in ((PAPER, "The paper's score"), (MARGINS, "The same on margins"))
        if defence in own.own
    ]
    said += [own.line(defence, name) for defence, name in OTHERS.items() if defence in own.own]
    return "\n".join([f"What the setting *{title}* says:", "", *said])


def one_at_a_time(groups: Sequence[Group]) -> list[str]:
    """Settings with one attacker each, by data set: the mean over them, and what is left by name."""
    titles = dict.fromkeys(group.title for group in groups if len(attackers([group])) == 1)
    whole = [
        one
        for one in (Figures.of(groups, title) for title in titles)
        if {"none", "oracle", PAPER, CROSS} <= set(one.own)
    ]

    def said(data: str, settings: Sequence[Figures]) -> str:
        def mean(defence: str) -> str:
            accuracy = fmean(value for one in settings for value in one.own[defence].values(clean_accuracy))
            return f"{fmean(one.asr(defence) for one in settings):.1f} % (clean accuracy {100 * accuracy:.1f} %)"

        learned, left = ([text for one in settings for text in one.left(defence)] for defence in ("none", CROSS))
        return (
            f"One attacker at a time, {data} ({len(settings)} settings, one seed each): mean ASR undefended {mean('none')}, without poison {mean('oracle')}, after the paper's score "
            f"{mean(PAPER)}, after cross-examination {mean(CROSS)}."
            + (f" Learned by the undefended models: {', '.join(learned)}." if learned else "")
            + (f" Cross-examination leaves: {', '.join(left)}." if left else "")
        )

    by_data: dict[str, list[Figures]] = {}
    for one in whole:
        by_data.setdefault(one.own["none"].finished[0]["origin"]["setting"]["data"], []).append(one)
    return [said(data, settings) for data, settings in by_data.items()]


def on_probes(found: Sequence[Result]) -> str:
    """What the scan is worth without probes, and with poisoned ones."""
    settings = {(one["origin"]["setting"]["probes"], one["origin"]["setting"]["bad_probes"]): one for one in found}
    if not {(0, 0.0), (250, 0.0), (250, 0.5)} <= set(settings):
        return ""

    def told(*key: float) -> str:
        one = settings[key]  # type: ignore[index]
        removal, every = one["removal"], one["detection"]["all"]
        return (
            f"AUROC {every['auroc']:.4f}, {removal['poisoned']:,} of {sum(by_attack(one).values()):,} poisoned pictures set aside and "
            f"{removal['rejected'] - removal['poisoned']:,} others"
        )

    bad = settings[250, 0.5]["probes"]
    return (
        f"With 250 probes: {told(250, 0.0)}. With none at all, where 250 rows drawn by lot stand in, poison among them: {told(0, 0.0)}. With 250 of which half are "
        f"poisoned: {told(250, 0.5)}. Poisoned probes, like all that somebody vouches for, are kept and not counted here; {bad['poisoned named']:,} of the {bad['poisoned']:,} and "
        f"{bad['clean named']:,} of the {bad['clean']:,} clean ones are named as doubtful."
    )


def minutes_of(one: Result) -> float:
    """How many processor minutes the models of a detector took."""
    return float(sum(cost["core_seconds"] for cost in one["stages"].values())) / 60


def on_costs(found: Sequence[Result]) -> str:
    """What the default scan would gain by watching longer, or by one view."""
    whole = "cross-examination:steps=1000000"
    told = {(one["defence"], one["origin"]["watch"]["epochs"]): one for one in found}
    if not {(whole, epochs) for epochs in (2, DEFAULT, 12)} <= set(told):
        return ""

    def said(epochs: int) -> str:
        one = told[whole, epochs]
        removal = one["removal"]
        return (
            f"{epochs} epochs: {minutes_of(one):.1f} processor minutes, AUROC {one['detection']['all']['auroc']:.4f}, {removal['poisoned']:,} poisoned pictures and "
            f"{removal['rejected'] - removal['poisoned']:,} others set aside"
        )

    return (
        f"The default watches both views, here for {DEFAULT} epochs. {'; '.join(said(epochs) for epochs in (2, DEFAULT, 12))}. One view costs about half, and does as well here where patterns are looked for, "
        "which find most of these triggers; without them, as with triggers that pixels do not show, the whitened view is worth more than the plain one, and more than 4 epochs little."
    )


def on_choices(found: Sequence[Result]) -> str:
    """What the table of choices says, in words: what is worth less, and what costs less."""
    told = {one["called"]: one for one in found}
    usual, bare = told.get("as it is"), told.get("without patterns")
    if usual is None or bare is None:
        return ""

    def said(name: str) -> str:
        one, beside = told[name], bare if name.endswith("without patterns") else usual
        every, before = (x["detection"]["all"] for x in (one, beside))
        aside = f"{one['removal']['poisoned']:,} and {one['removal']['clean']:,} instead of {beside['removal']['poisoned']:,} and {beside['removal']['clean']:,}"
        return (
            f"AUROC {every['auroc']:.4f} instead of {before['auroc']:.4f}, poisoned and other pictures set aside {aside}, "
            f"{minutes_of(one):.1f} instead of {minutes_of(beside):.1f} processor minutes"
        )

    parts = [
        "One draw, and nothing was chosen by it: differences of some thousandths mean nothing here. Most choices are worth little where patterns are looked for; without them more is to be seen. Watchers that train on fewer pictures take the same steps in more epochs, after each of which all pictures are looked at: that costs more, not less."
    ]
    for name, word in (
        ("recorded after every second epoch", "Looking at all pictures after every second epoch alone"),
        ("watchers of half the width", "Watchers of half the width"),
        (
            "watchers and witness of half the width, without patterns",
            "Watchers and witness of half the width, without patterns",
        ),
        (
            "watchers that see half the resolution, without patterns",
            "Watchers that see half the resolution, without patterns",
        ),
        ("one watcher", "One watcher of each view"),
        ("another round of trust", "Another round of trust"),
        ("three witnesses", "Three witnesses"),
    ):
        if name in told:
            parts.append(f"*{word}*: {said(name)}.")
    return " ".join(parts)


def by_attack(result: Result) -> dict[str, int]:
    """How many pictures are poisoned and no probes, by attack: probes are kept whatever they score."""
    vouched = result.get("probes", {}).get("per attack", {})
    return {name: count - vouched.get(name, 0) for name, count in result["poisoned"].items()}


def on_models(found: Sequence[Result], defence: str = CROSS) -> str:
    """What models do that were trained on everything, those that a defence leaves, and those trained on what is clean where that was measured."""
    groups = grouped([result for result in found if "model" in result])
    said = []
    for title in dict.fromkeys(group.title for group in groups):
        own = Figures.of(groups, title)
        if {"none", defence} <= set(own.own) and own.own["none"].finished[0]["poisoned"]:
            before, after = own.own["none"], own.own[defence]
            models = [own.own[name] for name in ("none", defence, "oracle") if name in own.own]
            called = labels(attackers([before]))
            each = [
                f"{name_of} {' to '.join(f'{100 * fmean(rate(model, name)):.0f}' for model in (before, after))} %"
                + "".join(f" ({100 * fmean(rate(model, name)):.0f} %)" for model in models[2:])
                for name, name_of in zip(before.finished[0]["poisoned"], called, strict=True)
            ]
            clean = f", without the poison {own.asr('oracle'):.1f} %" if len(models) > 2 else ""
            said.append(
                f"*{title}*: mean ASR undefended {own.asr('none'):.1f} %, after {own.own[defence].called} {own.asr(defence):.1f} %{clean}, {own.points(defence)}. "
                f"By attack{' (without the poison)' if clean else ''}: {', '.join(each)}."
            )
    return "\n\n".join(said)


def on_repairs(found: Sequence[Result]) -> str:
    """What repaired models do, and what repairing costs where nothing is poisoned."""
    groups = grouped([result for result in found if not result["poisoned"]])
    clean = []
    for title in dict.fromkeys(group.title for group in groups):
        own = Figures.of(groups, title)
        if {"none", "repair"} <= set(own.own):
            clean.append(f"*{title}*: after repair, {own.points('repair')}.")
    tuned = "How repair chooses was chosen while looking at these attacks: in other draws, and for traffic signs in these, where a first version had failed with two seeds of three."
    groups, drawn, by_lot = grouped([result for result in found if result["poisoned"]]), [], "repair:by-lot=yes"
    for title in dict.fromkeys(group.title for group in groups):
        own = Figures.of(groups, title)
        if {"none", by_lot} <= set(own.own):
            drawn.append(
                f"*{title}*: with components drawn by lot, each taken out of as many pictures of its class, mean ASR {own.asr(by_lot):.1f} %, {own.points(by_lot)}."
            )
    return "\n\n".join(filter(None, [on_models(found, "repair"), " ".join(drawn), " ".join(clean), tuned]))


def on_guards(found: Sequence[Result]) -> str:
    """What models with EigenGuard in them do, and where noise comes from a model that has it."""
    return on_models(found, "eigenguard:k=50")


def on_studies(found: Sequence[Result]) -> str:
    """What models do, and of long tails who is set aside by class."""
    return "\n\n".join(filter(None, [on_models(found), on_tails(found)]))


def on_tails(found: Sequence[Result]) -> str:
    """One table for each long tail: by class, the largest first, who is poisoned and who is set aside."""
    parts = []
    for group in grouped(found):
        for result in group.finished:
            classes = result.get("removal", {}).get(
                "classes", {}
            )  # results of before say no more than how many are set aside
            if result["origin"]["setting"]["long_tail"] > 1 and classes:
                order = sorted(classes, key=lambda name: -classes[name]["rows"])
                head = ["", *order, "all"]
                lines = [
                    [said, *(f"{value:,}" for value in values), f"{sum(values):,}"]
                    for said, what in (
                        ("pictures", "rows"),
                        ("poisoned", "poisoned"),
                        ("set aside", "set aside"),
                        ("clean and set aside", "clean set aside"),
                    )
                    for values in [[classes[name][what] for name in order]]
                ]
                parts.append(f"*{group.title}, {group.called}*, by class:\n\n{table(head, lines)}")
    return "\n\n".join(parts)


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


def on_resnet18(found: Sequence[Result]) -> str:
    """Which attacks a network as the field uses it learns."""
    groups = grouped(found)
    own = Figures.of(groups, groups[0].title)
    if not {"none", "oracle"} <= set(own.own):
        return ""
    return (
        f"ResNet-18, trained on {own.own['none'].finished[0]['rows']:,} pictures, learns these by more than {100 * LEFT:.0f} points above a model without poison: "
        f"{', '.join(own.left('none')) or 'none'}. Mean ASR {own.asr('none'):.0f} %, without poison {own.asr('oracle'):.0f} %; one seed, few pictures, far more poison among "
        "them than elsewhere here."
    )
