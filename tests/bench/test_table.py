"""Tables and what is said against them, on made-up results."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict

import pytest

from untaint.bench.checks import flags, tuned
from untaint.bench.grid import Setting
from untaint.bench.groups import grouped, labels
from untaint.bench.table import FORMATS, render

ATTACKERS = ("patch:rate=0.1", "pixel:rate=0.1")


def result(defence, seed=0, accuracy=0.8, asr=(0.9, 0.9), share=0.0, auroc=None, rows=100, title=None, **changes):
    setting = Setting(data="photos", attacks="two", attackers=ATTACKERS, seed=seed, **changes)
    names = ("patch", "pixel")
    made = {
        "title": title or setting.title(),
        "origin": {"setting": asdict(setting)},
        "defence": defence,
        "hardware": "8 threads",
        "poisoned": dict.fromkeys(names, rows),
        "stages": {"model": {"core_seconds": 90.0}, "watcher-a": {"core_seconds": 60.0}},
        "model": {
            "clean accuracy": accuracy,
            "attacks": {name: {"asr": rate, "asr stronger": rate} for name, rate in zip(names, asr, strict=True)},
        },
    }
    if auroc is not None:
        one = {"auroc": auroc, "tpr_at_fpr": {"0.01": auroc - 0.1}}
        made["detection"] = dict.fromkeys((*names, "all"), one)
        made["removal"] = {"share": share, "precision": 0.5, "recall": 0.75}
    return made


def whole(seeds=(0, 1, 2)):
    return [
        made
        for seed in seeds
        for made in (
            result("none", seed, 0.80),
            result("oracle", seed, 0.81, (0.02, 0.03), 0.1, 1.0),
            result("random @ fraction:share=0.1", seed, 0.79, (0.88, 0.9), 0.1, 0.5),
            result("badloss", seed, 0.75 + 0.01 * seed, (0.1, 0.2), 0.4, 0.7),
            result("cross-examination", seed, 0.80, (0.04, 0.05), 0.1, 0.99),
        )
    ]


def said(results, defence):
    groups = grouped(results)
    return flags(next(group for group in groups if group.defence == defence), groups)


def test_a_sound_table_has_nothing_said_against_it():
    for group in grouped(whole()):
        assert flags(group, grouped(whole())) == []


def test_mean_and_deviation_over_seeds_and_the_best_in_bold():
    text = render(whole(), "markdown")
    lines = {
        line.split("`")[1]: [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "`" in line
    }
    assert list(lines) == ["none", "oracle", "random @ fraction:share=0.1", "badloss", "cross-examination"]
    assert lines["badloss"] == [
        "76.0 ± 1.0",
        "15.0 ± 0.0",
        "0.700 ± 0.000",
        "60.0 ± 0.0",
        "40.0 ± 0.0",
        "**50.0 ± 0.0**",
        "**75.0 ± 0.0**",
        "2.5 ± 0.0",
    ]
    assert lines["cross-examination"][:4] == ["**80.0 ± 0.0**", "**4.5 ± 0.0**", "**0.990 ± 0.000**", "**89.0 ± 0.0**"]
    assert lines["oracle"][2] == "1.000 ± 0.000", "the oracle is no competitor"
    assert lines["none"][2:] == ["–"] * 5 + ["2.5 ± 0.0"]
    assert "photos, two (3 seeds)" in text


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("per_attack", [False, True])
def test_every_form_has_every_line(form, per_attack):
    text = render(whole(), form, per_attack=per_attack)
    for defence in ("none", "oracle", "random", "badloss", "cross-examination"):
        assert defence in text
    assert ("ASR pixel" in text) is per_attack
    if form == "latex":
        assert text.count(r"\\") == (11 if per_attack else 6), "a table of rates and one, without none, of AUROC"
        assert r"\textbf{" in text
    if form == "csv":
        lines = list(csv.reader(io.StringIO(text)))
        assert len({len(line) for line in lines}) == 1
        assert len(lines) == 6
        assert lines[4][:4] == ["photos, two", "badloss", "badloss", "3"]


def test_each_thing_that_makes_a_number_meaningless_is_said():
    one = whole()
    assert said(whole((0,)), "badloss") == ["1 seed, fewer than 3"]
    low = [{**made, "poisoned": {"patch": 49, "pixel": 50}} for made in one]
    assert said(low, "badloss") == ["patch: 49 poisoned rows, fewer than 50"]
    weak = [
        result("none", seed, 0.8, (0.9, 0.2)) if made["defence"] == "none" else made
        for seed in range(3)
        for made in whole((seed,))
    ]
    assert said(weak, "badloss") == ["pixel was not learned: 20% undefended, 3% by a model without poison"]
    assert said([m for m in one if m["defence"] != "none"], "badloss") == [
        "no row 'none': whether the attacks were learned is not known"
    ]
    once = [
        result("none", 2, 0.8, (0.9, 0.2)) if m["defence"] == "none" and seed == 2 else m
        for seed in range(3)
        for m in whole((seed,))
    ]
    assert said(once, "badloss") == [
        "pixel was learned with 2 of 3 seeds only: 90%, 90%, 20% undefended, 3%, 3%, 3% by models without poison"
    ]
    apart = [m for m in one if (m["defence"] == "oracle") <= (m["origin"]["setting"]["seed"] == 2)]
    assert said(apart, "badloss") == []
    apart = [m for m in apart if (m["defence"] == "none") <= (m["origin"]["setting"]["seed"] < 2)]
    assert said(apart, "badloss") == [
        "no seed has both 'none' and 'oracle': whether the attacks were learned is not known"
    ]
    greedy = one + [result("gap", seed, 0.8, (0.0, 0.0), 0.95, 0.9) for seed in range(3)]
    assert said(greedy, "gap") == ["more than 90% rejected"]
    careless = one + [result("gap", seed, 0.70, (0.0, 0.0), 0.05, 0.9) for seed in range(3)]
    assert said(careless, "gap") == [
        "clean accuracy below that of 'random @ fraction:share=0.1', which removes as many by lot"
    ]
    shaky = one + [result("gap", seed, 0.8, (0.6 * (seed == 2),) * 2, 0.1, 0.9) for seed in range(3)]
    assert said(shaky, "gap") == ["seed 2 is far from the others: mean ASR 60%, median 0%"]
    moved = [
        {**m, "hardware": "a GPU"} if m["defence"] == "badloss" and m["origin"]["setting"]["seed"] else m for m in one
    ]
    assert said(moved, "badloss") == [
        "seeds 1, 2 ran on a GPU, 'none' on 8 threads: their cost is not to be compared, and a trigger that is optimised comes out a little different"
    ]
    assert said(moved, "cross-examination") == []
    failed = [*one[:-1], {**{k: one[-1][k] for k in ("title", "origin", "defence")}, "error": "the loss is nan"}]
    assert said(failed, "cross-examination") == ["seed 2 failed: the loss is nan", "2 seeds, fewer than 3"]
    bad = [
        result(
            m["defence"],
            m["origin"]["setting"]["seed"],
            0.8,
            (0.9, 0.9) if m["defence"] == "none" else (0.0, 0.0),
            bad_probes=0.1,
        )
        for m in one
    ]
    assert said(bad, "badloss") == ["10% of the probes are poisoned"]


def test_a_removal_by_lot_is_compared_at_the_same_seeds():
    others = [made for made in whole() if not made["defence"].startswith("random")]
    lot = [
        result("random @ fraction:share=0.1", seed, 0.70 + 0.05 * seed, (0.9, 0.9), 0.1, 0.5) for seed in range(3)
    ]  # .70, .75, .80
    for seed, low in ((0, False), (2, True)):
        found = said([*others, *lot, result("gap", seed, 0.74, (0.0, 0.0), 0.05, 0.9)], "gap")
        assert any("as many by lot" in text for text in found) is low


def test_a_cell_that_failed_everywhere_says_so_and_the_rest_is_shown():
    failed = {**{k: whole()[0][k] for k in ("title", "origin")}, "defence": "gap", "error": "a metric is nan"}
    text = render([*whole(), failed], "terminal")
    line = next(line for line in text.splitlines() if line.startswith("gap"))
    assert "failed" in line
    assert "a metric is nan" in text
    assert "badloss" in text


def test_options_tuned_to_a_setting_are_said():
    other = [
        result(m["defence"].replace("badloss", "badloss:k=5"), m["origin"]["setting"]["seed"], title="other")
        for m in whole()
    ]
    assert tuned(grouped(whole() + other)) == ["badloss has other options in one setting than in another"]
    assert tuned(grouped(whole() + [result("badloss:k=5", title=m["title"]) for m in whole()])) == []


def alone(defence, attacker, asr, auroc=None):
    made = result(defence, asr=(asr, asr), auroc=auroc)
    setting = Setting(data="photos", attacks=attacker, attackers=(attacker,))
    name = attacker.partition(":")[0]
    made["model"]["attacks"] = {name: made["model"]["attacks"]["patch"]}
    made["poisoned"] = {name: 100}
    if auroc is not None:
        made["detection"] = {name: made["detection"]["patch"], "all": made["detection"]["all"]}
    return {**made, "title": setting.title(), "origin": {"setting": asdict(setting)}}


def test_attacks_one_at_a_time_share_a_table_and_keep_what_is_said_of_each():
    noise, lattice = "blend:rate=0.1,pattern=noise", "blend:rate=0.1,pattern=lattice"
    found = [
        *(alone("none", *one) for one in ((noise, 0.9), (lattice, 0.05))),
        *(alone("oracle", *one, 1.0) for one in ((noise, 0.02), (lattice, 0.03))),
        *(alone("badloss", *one, 0.75) for one in ((noise, 0.11), (lattice, 0.04))),
    ]
    text = render(found, "markdown", per_attack=True)
    assert text.count("**photos, one attack at a time (1 seed)**") == 2
    assert "| defence | ASR blend noise | ASR blend lattice |" in text
    assert "| `badloss` | **11.0** | **4.0** |" in text
    assert (
        "Of every line: 1 seed, fewer than 3; blend lattice was not learned: 5% undefended, 3% by a model without poison."
        in text
    )
    assert "photos, blend:rate=0.1,pattern=noise" in render(found, "markdown"), "the means stay apart"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["patch:rate=0.1", "pixel"], ["patch", "pixel"]),
        (["blend:pattern=noise,rate=0.1", "blend:pattern=lattice,alpha=0.1"], ["blend noise", "blend lattice"]),
        (["blend", "blend:pattern=signs/kitty.png"], ["blend", "blend kitty.png"]),
        (["patch:target=1", "patch:target=2"], ["patch 1", "patch 2"]),
        (["patch", "patch"], ["patch", "patch 2"]),
        (["blend", "blend:alpha=0.3"], ["blend", "blend 0.3"]),
    ],
)
def test_attacks_are_called_by_what_tells_them_apart(texts, expected):
    assert labels(texts) == expected


def test_what_is_said_of_one_line_is_numbered_and_what_is_said_of_all_stands_once():
    text = render([*whole((0,)), result("gap", accuracy=0.7, share=0.1)], "markdown")
    numbered = "1. clean accuracy below that of 'random @ fraction:share=0.1', which removes as many by lot"
    assert f"\n\nOf every line: 1 seed, fewer than 3.\n\n{numbered}\n" in text
    assert "| `gap` <sup>1</sup> |" in text
    assert "| `none` |" in text


def test_tables_and_what_they_say_use_the_names_that_a_grid_gives():
    called = {"random @ fraction:share=0.1": "random 10 %", "gap": "by gap"}
    found = [*whole(), *(result("gap", seed, accuracy=0.7, share=0.1) for seed in range(3))]
    found = [{**made, "called": called.get(made["defence"], made["defence"])} for made in found]
    text = render(found, "markdown")
    assert "| `by gap` <sup>1</sup> |" in text
    assert "1. clean accuracy below that of 'random 10 %'" in text
    assert "fraction" not in text
    lines = list(csv.reader(io.StringIO(render(found, "csv"))))
    assert lines[3][1:3] == ["random 10 %", "random @ fraction:share=0.1"]


def test_a_line_of_fewer_seeds_is_never_the_best():
    text = render([*whole(), result("gap", 0, 0.99, (0.0, 0.0), 0.1, 0.999)], "markdown")
    line = next(line for line in text.splitlines() if line.startswith("| `gap`"))
    assert "**" not in line
    assert "**80.0 ± 0.0**" in text


def test_what_scores_nothing_has_no_line_among_scores():
    text = render(whole(), "markdown", per_attack=True)
    rates, areas = text.split("| defence | AUROC patch")
    assert "`none`" in rates
    assert "`none`" not in areas
    assert "`badloss`" in areas


def test_no_results_are_said_to_be_none():
    assert render([], "terminal") == "No results yet.\n"
