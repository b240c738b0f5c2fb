"""What a scan leaves for people: tables, lists of keys, pictures for the report, a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from untaint import rng, run
from untaint.defenses.base import Detector, Task
from untaint.errors import InputError
from untaint.examples import Examples
from untaint.report.marks import read_marks
from untaint.scores import MOST, Group, Scores, Verdict, in_turns

__all__ = ["left_out", "marked", "obey", "write_findings"]

PICTURED = 300  # of the rows set aside, and of the most suspicious
COMPARED = 8  # kept pictures per class beside them
MOST_COMPARED = 400
SHARING = 7  # who have a trigger, or belong to a group
OFTEN = 3  # classes that a group is taken for most often
DOUBTED = 60  # probes that score like what was set aside


def obey(verdict: Verdict, marks: Path | None, task: Task) -> Verdict:
    """Return the verdict after a person's word: ``fine`` pictures are kept, ``poison`` ones set aside."""
    if marks is None:
        return verdict
    rows = marked(task.examples, task.probes, marks)
    rejected = verdict.rejected.copy()
    rejected[rows["fine"]], rejected[rows["poison"]] = False, True
    note = f"{verdict.note} A person marked {len(rows['fine'])} pictures fine and {len(rows['poison'])} poison, which was obeyed."
    return replace(verdict, rejected=rejected, note=note)


def marked(examples: Examples, probes: NDArray[np.int64], marks: Path) -> dict[str, NDArray[np.int64]]:
    """Return the rows marked ``fine`` and those marked ``poison``; raises InputError if a probe is marked poison."""
    words = read_marks(marks)
    rows = {word: examples.find([key for key, said in words.items() if said == word]) for word in ("fine", "poison")}
    contradiction = np.intersect1d(rows["poison"], probes)
    if len(contradiction):
        key = examples.keys[contradiction[0]]
        raise InputError(
            f"{marks} marks '{key}' as poison, but it is a probe. Take it out of the probes and scan again."
        )
    return rows


def left_out(examples: Examples, without: Path | None, marks: Path | None) -> NDArray[np.int64]:
    """Return the rows that a file of keys and a person's marks leave out of training."""
    rows = np.empty(0, dtype=np.int64) if without is None else examples.find(without)
    words = {} if marks is None else read_marks(marks)
    poison = examples.find([key for key, said in words.items() if said == "poison"])
    fine = examples.find([key for key, said in words.items() if said == "fine"])
    return np.setdiff1d(np.union1d(rows, poison), fine)


def write_findings(
    task: Task,
    detector: Detector,
    scores: Scores,
    verdict: Verdict,
    groups: Sequence[Group],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the table of scores, lists of keys, thumbnails and summary.json; returns the summary. ``groups``: of those set aside."""
    out, examples = task.scratch, task.examples
    own = np.setdiff1d(examples.rows, task.outside)
    rejected = np.intersect1d(np.flatnonzero(verdict.rejected), own)
    rank = np.full(examples.total, examples.total, dtype=np.int64)
    order = own[np.lexsort((own, -np.nan_to_num(scores.values[own], nan=-np.inf)))]
    rank[order] = np.arange(1, len(order) + 1)
    _write_table(task, detector, scores, verdict, groups, own, rank)
    run.write_keys(out / "rejected.txt", (examples.keys[row] for row in rejected))
    run.write_keys(out / "kept.txt", (examples.keys[row] for row in np.setdiff1d(own, rejected)))
    run.write_keys(out / "unreadable.txt", examples.unreadable, examples.unreadable)
    doubtful = doubtful_probes(scores, verdict, np.intersect1d(task.probes, own))
    run.write_keys(out / "doubtful_probes.txt", (examples.keys[row] for row in doubtful))
    together = [*(trigger.rows for trigger in scores.triggers), *(group.rows for group in groups)]
    having = [order[np.isin(order, rows)][:SHARING] for rows in together]
    _write_pictures(task, own, rejected, order, np.concatenate([doubtful[:DOUBTED], *having]))
    per_class = np.bincount(examples.labels[rejected], minlength=len(examples.class_names))
    totals = np.bincount(examples.labels[own], minlength=len(examples.class_names))
    whole = {
        "name": examples.source,
        "rows": len(own),
        "class_names": list(examples.class_names),
        "pixel_size": list(examples.images.shape[1:]),
        "unreadable": len(examples.unreadable),
        "detector": scores.name,
        "rule": {
            "text": verdict.rule,
            "threshold": verdict.threshold,
            "note": verdict.note + _if_nearly_all(rejected, own),
        },
        "counts": {
            "scored": int(np.isfinite(scores.values[own]).sum()),
            "rejected": len(rejected),
            "kept": len(own) - len(rejected),
            "probes": len(task.probes),
            "doubtful_probes": len(doubtful),
        },
        "per_class": [
            {"name": name, "rows": int(totals[label]), "rejected": int(per_class[label])}
            for label, name in enumerate(examples.class_names)
        ],
        "triggers": _write_triggers(task, scores, rejected),
        "groups": [_told(group, examples.class_names) for group in groups],
        "limits": [*detector.limits(), *_size_limit(examples.images.shape[2:])],
        **summary,
    }
    run.write_json(out / "summary.json", whole)
    return whole


def _if_nearly_all(rejected: NDArray[np.int64], rows: NDArray[np.int64]) -> str:
    """Return a warning where nearly all is set aside, and nothing else."""
    if len(rejected) <= MOST * len(rows):
        return ""
    return (
        f" These are {len(rejected) / len(rows):.0%} of all: that finds nothing, and a model without them is no better for it. "
        "Take another rule or detector."
    )


def _write_triggers(task: Task, scores: Scores, rejected: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Write pictures of the recovered triggers; returns what the summary says of them."""
    path = task.scratch / "triggers.npy"
    path.unlink(missing_ok=True)
    if scores.triggers:
        run.save_array(path, np.stack([trigger.picture for trigger in scores.triggers]))
    return [
        {
            "label": task.examples.class_names[trigger.label],
            "rows": len(trigger.rows),
            "rejected": len(np.intersect1d(trigger.rows, rejected)),
            "seen": round(trigger.seen, 4),
            "unseen": round(trigger.unseen, 4),
            "works": trigger.works,
            "strength": trigger.strength,
        }
        for trigger in scores.triggers
    ]


def _told(group: Group, names: Sequence[str]) -> dict[str, Any]:
    """Return what the summary says of a group; ``trigger``: its number in the list of triggers, from 1."""
    shares = {name: getattr(group, name) for name in ("seen", "unseen", "usual")}
    return {
        "kind": group.kind,
        "label": None if group.label is None else names[group.label],
        "rows": len(group.rows),
        "trigger": None if group.trigger is None else group.trigger + 1,
        **{name: round(share, 4) if np.isfinite(share) else None for name, share in shares.items()},
        "classes": len(group.taken_for),
        "taken_for": [[names[label], many] for label, many in group.taken_for[:OFTEN]],
    }


def doubtful_probes(scores: Scores, verdict: Verdict, probes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the probes that would have been set aside, had they not been vouched for; the most suspicious first."""
    if verdict.threshold is None or not verdict.rejected.any():
        return probes[:0]
    values = scores.values[probes]
    return probes[np.argsort(-values, kind="stable")][: int((values >= verdict.threshold).sum())]


def _size_limit(size: tuple[int, ...]) -> list[str]:
    return [
        f"Pictures were looked at in {size[1]}x{size[0]} pixels. A trigger that vanishes at that size cannot be seen; "
        "if the model you train sees larger pictures, scan again with a larger --size."
    ]


def _write_table(
    task: Task,
    detector: Detector,
    scores: Scores,
    verdict: Verdict,
    groups: Sequence[Group],
    own: NDArray[np.int64],
    rank: NDArray[np.int64],
) -> None:
    examples = task.examples
    rejected = verdict.rejected[own]
    reasons = np.full(len(own), "", dtype=object)
    reasons[rejected] = detector.explain(scores, own[rejected])
    names = np.asarray(examples.class_names, dtype=object)
    columns: dict[str, Any] = {
        "row": own,
        "key": run.key_column(examples.keys[row] for row in own),
        "label": pa.array(names[examples.labels[own]], pa.string()),
        "score": scores.values[own],
        "p_value": verdict.p_values[own],
        "rank": rank[own],
        "verdict": pa.array(np.where(rejected, "rejected", "kept").astype(object), pa.string()),
        "probe": np.isin(own, task.probes),
        "reason": pa.array(reasons, pa.string()),
    }
    for name, some in (("in_trigger", scores.triggers), ("in_group", groups)):
        number = np.zeros(examples.total, dtype=np.int32)
        for index in reversed(range(len(some))):  # the surest comes last, and counts
            number[some[index].rows] = index + 1
        if some:
            columns[name] = number[own]
    columns.update({name: part[own] for name, part in scores.parts.items()})
    with run.written(task.scratch / "scores.parquet") as file:
        pq.write_table(pa.table(columns), file, compression="zstd")


def _write_pictures(
    task: Task,
    own: NDArray[np.int64],
    rejected: NDArray[np.int64],
    order: NDArray[np.int64],
    wanted: NDArray[np.int64],
) -> None:
    """Keep the pictures that the report shows: the worst of each class and of all, kept ones, probes, and those wanted."""
    examples = task.examples
    if 0 in examples.images.strides and (task.scratch / "thumbnails.npy").exists():
        return  # scored again without the pictures: those kept before are better than grey
    aside = order[np.isin(order, rejected)]
    shown = [aside[in_turns(examples.labels[aside], PICTURED)], order[:PICTURED]]
    kept = np.setdiff1d(own, rejected)
    each = max(1, min(COMPARED, MOST_COMPARED // max(1, len(examples.class_names))))
    for label in range(len(examples.class_names)):
        shown.append(rng.choose(0, "beside", kept[examples.labels[kept] == label], each))
    shown += [task.probes[:: max(1, len(task.probes) // 50)], wanted]
    rows = np.unique(np.concatenate(shown))
    run.save_array(task.scratch / "thumbnails_rows.npy", rows)
    run.save_array(task.scratch / "thumbnails.npy", np.asarray(examples.images[rows]))
