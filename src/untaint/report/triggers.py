"""The triggers of a run for the page: what each looks like, who has it, and how often it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untaint import run
from untaint.report.pictures import data_uris
from untaint.report.reading import Findings
from untaint.report.words import share, shown

__all__ = ["triggers"]

MOST = 24  # shown, the surest first
MEMBERS = 5  # pictures beside each
PICTURE_BYTES = 1_000_000
STRONGEST = 0.995  # of its values that a picture shows without clipping
LOUDEST = 32.0  # times that it is made stronger so as to be seen


def triggers(findings: Findings) -> list[dict[str, Any]]:
    """Describe each trigger: ``title``, ``text``, ``uri`` of its picture, ``gain`` by which that is brightened, ``members`` as URIs."""
    told = findings.summary["triggers"][:MOST]
    if not told:
        return []
    pictures = _pictures(findings.folder, len(findings.summary["triggers"]))
    described = []
    for number, (facts, shape) in enumerate(zip(told, pictures, strict=False), start=1):
        strength = max(float(np.quantile(np.abs(shape), STRONGEST)), 1 / 255)
        gain = float(np.clip(0.5 / strength, 1, LOUDEST))
        picture = np.clip(np.rint(127.5 + 255 * gain * shape), 0, 255).astype(np.uint8)
        members = _members(findings, number)
        uris, _ = data_uris([picture, *members], PICTURE_BYTES // MOST)
        described.append(
            {
                "title": shown(str(facts["label"])),
                "text": _text(facts),
                "uri": uris[0],
                "gain": f"{gain:.2g}",
                "members": uris[1:],
            }
        )
    return described


def _pictures(folder: Path, many: int) -> NDArray[np.float32]:
    path = folder / "triggers.npy"
    return np.asarray(run.load_array(path)) if path.exists() else np.zeros((many, 1, 1, 1), dtype=np.float32)


def _members(findings: Findings, number: int) -> list[NDArray[np.uint8]]:
    """Return pictures of some who have it, the most suspicious first."""
    table = findings.table
    having = np.flatnonzero(table.trigger[findings.pictured] == number)
    order = np.argsort(table.rank[findings.pictured[having]], kind="stable")
    return [findings.pictures[index] for index in having[order][:MEMBERS]]


def _text(facts: dict[str, Any]) -> str:
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
