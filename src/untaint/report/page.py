"""The report: one file, no network, that a person opens to see what was set aside and why."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from untaint import run
from untaint.errors import InputError
from untaint.report import charts, lines, words
from untaint.report.belonging import belonging
from untaint.report.marks import key_line
from untaint.report.pictures import data_uris
from untaint.report.reading import Findings, Table
from untaint.report.rendering import render
from untaint.report.selection import Selection, select

__all__ = ["write_report"]

PICTURE_BYTES = 6_000_000
LIST_BYTES = 1_500_000  # beyond this the list names the file that has the rest
BARS = 12  # classes drawn at once, the others in a fold-out


def write_report(run_folder: Path | str, out: Path | str | None = None, max_pictures: int = 300) -> Path:
    """Write the report of a finished run and return its path, by default ``report.html`` in the run directory.

    At most ``max_pictures`` suspicious pictures are shown, the rest listed; the file stays under
    10 MB. Raises RunError when the folder is no finished run.
    """
    if max_pictures < 0:
        raise InputError(f"max_pictures is {max_pictures}; give 0 or more.")
    folder = Path(run_folder)
    target = Path(out) if out is not None else folder / "report.html"
    findings = Findings.read(folder)
    page = render("report", **_content(findings, select(findings, max_pictures)))
    with run.written(target) as file:
        file.write(page)
    return target


def _content(findings: Findings, chosen: Selection) -> dict[str, Any]:
    table, summary = findings.table, findings.summary
    rejected = int(table.rejected.sum())
    beside = [position for group in chosen.compared.values() for position in group]
    positions = np.array([*chosen.suspects.tolist(), *beside, *chosen.doubted.tolist()], dtype=np.int64)
    pictures = _pictures(table, positions)
    uris, side = _uris(findings, chosen, positions)
    rest = _rest(table, chosen.listed)
    size = [int(length) for length in summary["pixel_size"]]
    return {
        "summary": summary,
        "rule": findings.rule,
        "settings": _folded(findings.settings),
        "headline": words.headline(findings.total, rejected, findings.per_class),
        "certainty": words.certainty(findings.rule["text"], rejected),
        "check": _probes_check(table, findings.threshold),
        "doubted": range(len(positions) - len(chosen.doubted), len(positions)),
        "rejected": rejected,
        "kept": int(summary["counts"].get("kept", len(table) - rejected)),
        "total": findings.total,
        "probes": int(table.probe.sum()),
        "bars": findings.per_class[:BARS],
        "more_bars": findings.per_class[BARS:],
        "histogram": charts.histogram(table.score, table.rejected, table.probe, findings.threshold),
        "belonging": belonging(findings),
        "groups": _groups(findings, chosen, pictures),
        "pictures": pictures,
        "uris": uris,
        "small": side <= 64 or max(size[1:]) <= 64,
        "shrunk": side if uris and max(findings.pictures.shape[2:]) > side else 0,
        "size": size,
        "listed": len(chosen.listed),
        "listed_of": Counter(rest["names"][label] for label in rest["labels"]),
        "left_out": len(chosen.listed) - len(rest["keys"]),
        "unreadable": findings.unreadable,
        "unreadable_count": max(int(summary["unreadable"]), len(findings.unreadable)),
        "data": {
            "store": _store(summary),
            "pictures": pictures,
            "parts": list(table.parts),
            "watchers": _watchers(findings, positions),
            "rest": rest,
        },
    }


def _pictures(table: Table, positions: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Describe each picture shown, ready for the template and for JSON."""
    parts = [_standing(values, positions) for values in table.parts.values()]
    texts = zip(*(table.texts(name, positions) for name in ("key", "label", "reason")), strict=True)
    described = []
    for index, (position, (key, label, reason)) in enumerate(zip(positions.tolist(), texts, strict=True)):
        described.append(
            {
                "key": words.shown(key),
                "line": key_line(key),
                "label": words.shown(label),
                "score": words.number(float(table.score[position])),
                "p": words.p_text(float(table.p_value[position])),
                "rank": int(table.rank[position]),
                "verdict": "set aside" if table.rejected[position] else "probe" if table.probe[position] else "kept",
                "reason": reason,
                "parts": [part[index] for part in parts],
            }
        )
    return described


def _standing(values: NDArray[np.float32], positions: NDArray[np.int64]) -> list[list[str]]:
    """Return for each position its value and the share of all values that it exceeds, as texts."""
    finite = np.sort(values[np.isfinite(values)])
    below = np.searchsorted(finite, values[positions])
    return [
        [words.number(value), words.share(int(rank), len(finite)) if np.isfinite(value) else ""]
        for value, rank in zip(values[positions].tolist(), below.tolist(), strict=True)
    ]


def _uris(findings: Findings, chosen: Selection, positions: NDArray[np.int64]) -> tuple[dict[int, str], int]:
    """Return index of a shown picture -> data URI, and the longest side that fitted."""
    having = [index for index, position in enumerate(positions.tolist()) if position in chosen.picture_of]
    stored = [findings.pictures[chosen.picture_of[int(positions[index])]] for index in having]
    uris, side = data_uris(stored, PICTURE_BYTES)
    return dict(zip(having, uris, strict=True)), side


def _groups(findings: Findings, chosen: Selection, pictures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the shown pictures under the class they are labelled as: most rejected first; members are indices."""
    of_class = {words.shown(part["name"]): part for part in findings.per_class}
    compared = {words.shown(name): len(members) for name, members in chosen.compared.items()}
    groups: dict[str, dict[str, Any]] = {
        name: {
            "name": name,
            "members": [],
            "compared": [],
            "rows": 0,
            "rejected": 0,
            **of_class.get(name, {}),
            "title": name,
        }
        for name in compared
    }
    for index in range(len(chosen.suspects)):
        groups[pictures[index]["label"]]["members"].append(index)
    start = len(chosen.suspects)
    for name, many in compared.items():
        groups[name]["compared"].extend(range(start, start + many))
        start += many
    for group in groups.values():
        group["framed"] = any(pictures[index]["verdict"] == "probe" for index in group["compared"])
        group["aside"] = sum(pictures[index]["verdict"] == "set aside" for index in group["members"])
    return sorted(groups.values(), key=lambda group: (-group["aside"], -group["rejected"], group["members"][0]))


def _rest(table: Table, listed: NDArray[np.int64]) -> dict[str, Any]:
    """Return the columns of the list of pictures without thumbnails, as far as they fit.

    ``lines``: position -> the key as it is written in a file of marks, where that is not what is shown.
    """
    rest: dict[str, list[Any]] = {
        "keys": [],
        "labels": [],
        "scores": [],
        "ps": [],
        "reasons": [],
        "names": [],
        "texts": [],
    }
    written: dict[str, str] = {}
    names: dict[str, int] = {}
    texts: dict[str, int] = {}
    used = 0
    for start in range(0, len(listed), 1000):
        some = listed[start : start + 1000]
        for position, key, label, reason in zip(
            some.tolist(), *(table.texts(name, some) for name in ("key", "label", "reason")), strict=True
        ):
            used += 40 + 2 * len(json.dumps(key)) + (0 if reason in texts else len(json.dumps(reason)))
            if used > LIST_BYTES:
                start = len(listed)
                break
            if key_line(key) != words.shown(key):
                written[str(len(rest["keys"]))] = key_line(key)
            rest["keys"].append(words.shown(key))
            rest["labels"].append(names.setdefault(words.shown(label), len(names)))
            rest["reasons"].append(texts.setdefault(reason, len(texts)))
            rest["scores"].append(words.number(float(table.score[position])))
            rest["ps"].append(words.p_text(float(table.p_value[position])).removeprefix("p = "))
        if used > LIST_BYTES:
            break
    rest["names"], rest["texts"] = list(names), list(texts)
    return {**rest, "lines": written}


def _watchers(findings: Findings, positions: NDArray[np.int64]) -> list[dict[str, Any]]:
    table = findings.table
    names = [words.shown(str(name)) for name in findings.summary["class_names"]]
    return lines.watchers(findings.folder, table.rows[positions], table.rows[table.probe], names)


def _store(summary: Mapping[str, Any]) -> str:
    """Return the name under which a browser keeps the marks: the same for every report on the same data."""
    told = json.dumps([summary["name"], summary["rows"], summary["class_names"]])
    return "untaint-marks-" + hashlib.sha256(told.encode()).hexdigest()[:16]


def _folded(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in settings.items()
    ]


def _probes_check(table: Table, threshold: float) -> dict[str, Any]:
    """Compare how often probes and other pictures reach the threshold.

    ``text``: some sentences; ``weak``: whether the probes, known to be clean, reach it nearly as
    often as the rest. The bound is that of Clopper and Pearson (1934), one-sided, 95 %.
    """
    probes = table.score[table.probe & np.isfinite(table.score)]
    others = ~table.probe & np.isfinite(table.score)
    if not len(probes):
        return {
            "text": "No probes were scored, so nothing known to be clean speaks for or against this result.",
            "weak": bool(table.rejected.any()),
        }
    if not np.isfinite(threshold):
        return {
            "text": "The rule has no single threshold, so the probes cannot be held against it here.",
            "weak": False,
        }
    above, many = int((probes >= threshold).sum()), len(probes)
    bound = float(special.betaincinv(above + 1, many - above, 0.95)) if above < many else 1.0
    rate = float(table.rejected[others].mean()) if others.any() else 0.0
    text = (
        f"Of {words.count(many, 'probe')}, known to be clean, {words.count(above) if above else 'none'} "
        f"{'reach' if above > 1 else 'reaches'} the threshold. "
        f"Of all other pictures {words.share(rate)} were set aside. If clean pictures in general are like the probes, "
        f"then fewer than {words.share(bound)} of them reach it (95\N{NO-BREAK SPACE}% confidence)."
    )
    return {"text": text, "weak": bool(table.rejected.any() and above >= 2 and above / many > 0.5 * rate)}
