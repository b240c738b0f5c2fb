"""What belongs together, for the page: recovered triggers, what each looks like and how often it works, and groups of those set aside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from untaint import run
from untaint.report.pictures import data_uris
from untaint.report.reading import Findings
from untaint.report.words import count, share, shown

__all__ = ["belonging"]

MOST = 30  # shown, the surest first
MEMBERS = 5  # pictures beside a recovered trigger
MORE_MEMBERS = 7  # pictures of a group without one
PICTURE_BYTES = 1_500_000
STRONGEST = 0.995  # of its values that a picture shows without clipping
LOUDEST = 32.0  # times that it is made stronger so as to be seen
MOSTLY = 0.5  # of a group that models take for one other class, from which on it may be mislabelled
TITLES = {"mislabelled": "Probably mislabelled", "odd": "By themselves"}


def belonging(findings: Findings) -> list[dict[str, Any]]:
    """Describe each trigger and each group: ``title``, ``text``, ``members`` as URIs, of a recovered trigger also ``uri`` of its
    picture and ``gain`` by which that is brightened.
    """
    groups = list(enumerate(findings.summary["groups"], start=1))
    of_trigger = {facts["trigger"]: facts for _, facts in groups if facts["trigger"] is not None}
    described = []
    shapes = _pictures(findings.folder, len(findings.summary["triggers"]))
    for number, (facts, shape) in enumerate(zip(findings.summary["triggers"], shapes, strict=False), start=1):
        text = _on_trigger(facts)
        if number in of_trigger:
            text += f" {_on_test(of_trigger[number])}"
        described.append((str(facts["label"]), text, shape, _members(findings, "trigger", number)[:MEMBERS]))
    for number, facts in groups:
        if facts["trigger"] is None:
            title = TITLES.get(facts["kind"]) or str(facts["label"])
            described.append((title, _on_group(facts), None, _members(findings, "group", number)))
    return [_drawn(*one) for one in described[:MOST]]


def _drawn(
    title: str, text: str, shape: NDArray[np.float32] | None, members: list[NDArray[np.uint8]]
) -> dict[str, Any]:
    """Return what the page shows of one."""
    pictures, gain = [*members], ""
    if shape is not None:
        strength = max(float(np.quantile(np.abs(shape), STRONGEST)), 1 / 255)
        times = float(np.clip(0.5 / strength, 1, LOUDEST))
        gain = f"{times:.2g}"
        pictures.insert(0, np.clip(np.rint(127.5 + 255 * times * shape), 0, 255).astype(np.uint8))
    uris = data_uris(pictures, PICTURE_BYTES // MOST)[0] if pictures else []
    first = len(pictures) - len(members)
    return {"title": shown(title), "text": text, "uri": (*uris[:first], "")[0], "gain": gain, "members": uris[first:]}


def _pictures(folder: Path, many: int) -> NDArray[np.float32]:
    path = folder / "triggers.npy"
    return np.asarray(run.load_array(path)) if path.exists() else np.zeros((many, 1, 1, 1), dtype=np.float32)


def _members(findings: Findings, of: Literal["trigger", "group"], number: int) -> list[NDArray[np.uint8]]:
    """Return pictures of some who belong to it, the most suspicious first."""
    table = findings.table
    having = np.flatnonzero(table.member(of)[findings.pictured] == number)
    order = np.argsort(table.rank[findings.pictured[having]], kind="stable")
    return [findings.pictures[index] for index in having[order][:MORE_MEMBERS]]


def _on_trigger(facts: Mapping[str, Any]) -> str:
    label, seen, unseen = shown(str(facts["label"])), float(facts["seen"]), float(facts["unseen"])
    has = f"{facts['rows']:,} pictures labelled {label} have it, {facts['rejected']:,} of them set aside."
    if facts["works"]:
        return (
            f"{has} Laid over clean pictures of other classes{', twice as strongly' if facts.get('strength', 1) > 1 else ''}, it makes the models that saw it take {share(max(seen, 0))} of them for {label}; "
            f"a model that did not see it: {share(max(unseen, 0))}."
        )
    return (
        f"{has} These models have not learned it (laid over clean pictures of other classes, it makes them take {share(max(seen, 0))} "
        f"more of them for {label}), but no other pattern in this data stands out as much; a larger model may learn it."
    )


def _on_test(facts: Mapping[str, Any]) -> str:
    """Say how often the label comes out of models that saw others of a group, and of one that saw none."""
    if facts["seen"] is None:
        return "The witness was trained on all of them, so that nothing more can be said of them."
    said = (
        f"Shown one of them that they did not train on, models that saw others say {shown(str(facts['label']))} of {share(facts['seen'])}; the model that "
        f"saw none, of {share(facts['unseen'])}"
    )
    if facts["classes"] > 2:
        said += f" (it takes them for {facts['classes']} classes)"
    if facts["usual"] is None:
        return f"{said}. No clean pictures of the class are left to compare with."
    return f"{said}. Clean pictures as much alike differ by no more than {max(0, round(100 * facts['usual']))} points."


def _on_group(facts: Mapping[str, Any]) -> str:
    """Say what a group without a recovered trigger is."""
    many, kind = count(int(facts["rows"]), "picture"), facts["kind"]
    often = ", ".join(f"{shown(str(name))} ({times:,})" for name, times in facts["taken_for"])
    if kind == "mislabelled":
        return f"{many} in no group: models that did not train on them agree on another class, most often {often}."
    if kind == "odd":
        return f"{many} in no group: strays of the groups, hard pictures, and odd ones. Look at them."
    if kind == "trigger":
        return (
            f"{many} are alike to the models, by something that makes them say {shown(str(facts['label']))}: take it for a trigger, though no "
            f"pattern of pixels was found (it may move about, or warp them). {_on_test(facts)}"
        )
    name, times = facts["taken_for"][0] if facts["taken_for"] else ("", 0)
    wrong = ""
    if name != facts["label"] and times >= MOSTLY * facts["rows"]:
        wrong = f" The model that saw none takes {times:,} of them for {shown(str(name))}: they may be mislabelled."
    return f"{many} are alike to the models, but nothing says that a trigger binds them. {_on_test(facts)}{wrong}"
