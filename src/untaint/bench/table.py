"""Tables of results: for the terminal, Markdown, LaTeX and CSV, all from the same lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from untaint.bench.checks import flags, tuned
from untaint.bench.groups import (
    Group,
    Result,
    attack_success,
    attackers,
    clean_accuracy,
    core_minutes,
    grouped,
    labels,
    mean_asr,
    own,
    spread,
)

__all__ = ["FORMATS", "Format", "render"]

Format = Literal["terminal", "markdown", "latex", "csv"]
PLUS_MINUS = {"latex": r"$\pm$"}
FORMATS: tuple[Format, ...] = ("terminal", "markdown", "latex", "csv")


@dataclass(frozen=True)
class Column:
    """A measure: its head, how it is got, whether more is better (None: neither), and how it is written."""

    head: str
    measure: Callable[[Result], float | None]
    better: Literal["more", "less"] | None
    form: str


def _detected(name: str) -> Callable[[Result], float | None]:
    def measure(result: Result) -> float | None:
        found = result.get("detection", {}).get("all", {})
        value: float | None = found.get("tpr_at_fpr", {}).get("0.01") if name == "tpr" else found.get(name)
        return value

    return measure


def _removed(name: str) -> Callable[[Result], float | None]:
    return lambda result: result.get("removal", {}).get(name)


COLUMNS = (
    Column("clean accuracy", clean_accuracy, "more", "percent"),
    Column("mean ASR", mean_asr, "less", "percent"),
    Column("AUROC", _detected("auroc"), "more", "score"),
    Column("TPR at 1 % FPR", _detected("tpr"), "more", "percent"),
    Column("rejected", _removed("share"), None, "percent"),
    Column("precision", _removed("precision"), "more", "percent"),
    Column("recall", _removed("recall"), "more", "percent"),
    Column("core minutes", core_minutes, None, "plain"),
)


def _attack_columns(groups: Sequence[Group]) -> tuple[list[Column], list[Column]]:
    """Return columns of attack success and of AUROC, one for each attack."""
    texts = attackers(groups)
    asr, auroc = [], []
    for text, label in zip(texts, labels(texts), strict=True):

        def rate(result: Result, text: str = text) -> float | None:
            name = own(result, text)
            return None if name is None else attack_success(result, name)

        def area(result: Result, text: str = text) -> float | None:
            value: float | None = result.get("detection", {}).get(own(result, text), {}).get("auroc")
            return value

        asr.append(Column(f"ASR {label}", rate, "less", "percent"))
        auroc.append(Column(f"AUROC {label}", area, "more", "score"))
    return asr, auroc


def render(results: Sequence[Result], form: Format = "terminal", *, per_attack: bool = False) -> str:
    """Return the table of some results, setting by setting, with what is to be said against each line below it.

    Mean and standard deviation over seeds; the best of each column in bold, among those of most seeds, the oracle apart; processor minutes are
    those of all models that a defence needs, shared ones too. ``per_attack``:
    attack success and AUROC of each attack instead; settings with one attack each share a table.
    """
    groups = grouped(results)
    if form == "csv":
        return _csv(groups, per_attack)
    parts = []
    for title, lines in _tables(groups, per_attack).items():
        drawn = [group for group, _ in lines]
        asked = [one for one in _attack_columns(drawn) if _known(one, drawn)] if per_attack else []
        columns: list[Sequence[Column]] = [*asked] or [COLUMNS]
        texts = dict.fromkeys(text for _, said in lines for text in said)
        common = [text for text in texts if len(lines) > 1 and all(text in said for _, said in lines)]
        notes = {text: number for number, text in enumerate((one for one in texts if one not in common), 1)}
        below = [f"Of every line: {'; '.join(common)}."] if common else []
        below += [""] if common and notes else []
        below += [f"{number}. {text}" for text, number in notes.items()]  # the same in all tables of a title
        for one in columns:
            some = [line for line in lines if _known(one, [line[0]]) or not line[0].finished]
            parts.append(_drawn_table(title, some, one, form, notes, below if one is columns[-1] else []))
    if odd := tuned(groups):
        parts.append("\n".join(f"Beware: {note}." for note in odd))
    return "\n\n".join(parts) + "\n" if parts else "No results yet.\n"


def _known(columns: Sequence[Column], groups: Sequence[Group]) -> bool:
    return any(group.values(column.measure) for group in groups for column in columns)


def _tables(groups: Sequence[Group], per_attack: bool) -> dict[str, list[tuple[Group, list[str]]]]:
    """Return the lines of each table by its title: a group, and what is to be said against it."""
    tables: dict[str, list[Group]] = {}
    for group in groups:
        texts = attackers([group])
        alone = per_attack and len(texts) == 1
        title = group.title.replace(f", {texts[0]}", ", one attack at a time") if alone else group.title
        tables.setdefault(title, []).append(group)
    return {title: _lines(title, some) for title, some in tables.items()}


def _lines(title: str, groups: Sequence[Group]) -> list[tuple[Group, list[str]]]:
    texts = attackers(groups)
    called = dict(zip(texts, labels(texts), strict=True))
    lines: dict[str, tuple[list[Result], dict[str, None]]] = {}
    for group in groups:
        results, said = lines.setdefault(group.defence, ([], {}))
        results += group.results
        said |= dict.fromkeys(flags(group, [other for other in groups if other.title == group.title], called))
    return [
        (Group(title=title, defence=name, results=tuple(results)), list(said))
        for name, (results, said) in lines.items()
    ]


def _drawn_table(
    title: str,
    lines: Sequence[tuple[Group, list[str]]],
    columns: Sequence[Column],
    form: Format,
    notes: Mapping[str, int],
    below: Sequence[str],
) -> str:
    groups = [group for group, _ in lines]
    seeds = max(len({result["origin"]["setting"]["seed"] for result in group.results}) for group in groups)
    head = ["defence", *(column.head for column in columns)]
    fair = [group for group in groups if group.defence != "oracle" and len(group.seeds) == seeds]
    best = {column.head: _best(fair, column) for column in columns}
    body = []
    for group, said in lines:
        marks = [notes[text] for text in said if text in notes]
        cells = [_cell(group, column, best[column.head] if group in fair else None, form) for column in columns]
        body.append([_name(group.called, marks, form), *cells])
    caption = f"{title} ({seeds} seed{'s' if seeds > 1 else ''})"
    return _drawn(caption, head, body, below, form)


def _best(groups: Sequence[Group], column: Column) -> float | None:
    means = [fmean(values) for group in groups if (values := group.values(column.measure))]
    if column.better is None or len(means) < 2:
        return None
    return max(means) if column.better == "more" else min(means)


def _cell(group: Group, column: Column, best: float | None, form: Format) -> str:
    found = spread(group.values(column.measure))
    if found is None:
        return "failed" if not group.finished else "–"
    mean, deviation = found
    text = _number(mean, column.form)
    if deviation is not None:
        text += f" {PLUS_MINUS.get(form, '±')} {_number(deviation, column.form)}"
    if best is None or mean != best:
        return text
    return {"terminal": f"*{text}", "markdown": f"**{text}**", "latex": f"\\textbf{{{text}}}"}.get(form, text)


def _number(value: float, form: str) -> str:
    return {"percent": f"{100 * value:.1f}", "score": f"{value:.3f}", "plain": f"{value:.1f}"}[form]


def _name(defence: str, marks: Sequence[int], form: Format) -> str:
    told = ",".join(map(str, sorted(marks)))
    if form == "latex":
        return _escaped(defence) + (f"$^{{{told}}}$" if told else "")
    if form == "markdown":
        return f"`{defence}`" + (f" <sup>{told}</sup>" if told else "")
    return defence + (f" [{told}]" if told else "")


def _escaped(text: str) -> str:
    return "".join("\\" + one if one in "&%$#_{}" else one for one in text)


def _drawn(caption: str, head: list[str], lines: list[list[str]], below: Sequence[str], form: Format) -> str:
    if form == "markdown":
        body = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)]
        return "\n".join([f"**{caption}**", "", *body, *(["", *below] if below else [])])
    if form == "latex":
        rows = [" & ".join(line) + r" \\" for line in lines]
        columns = "l" + "r" * (len(head) - 1)
        notes = [f"% {note}".rstrip() for note in below]
        top = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", " & ".join(map(_escaped, head)) + r" \\", r"\hline"]
        return "\n".join([f"% {caption}", *top, *rows, r"\hline", r"\end{tabular}", *notes])
    widths = [max(len(line[place]) for line in (head, *lines)) for place in range(len(head))]
    body = []
    for line in (head, *lines):
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        body.append("  ".join(cells).rstrip())
    return "\n".join([caption, "", body[0], "-" * len(body[0]), *body[1:], *(["", *below] if below else [])])


def _csv(groups: list[Group], per_attack: bool) -> str:
    columns = [*COLUMNS, *(one for some in _attack_columns(groups) for one in some if per_attack)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads: list[Any] = [one for column in columns for one in (column.head, f"{column.head} std")]
    writer.writerow(["setting", "called", "defence", "seeds", *heads, "flags"])
    for group in groups:
        same = [other for other in groups if other.title == group.title]
        cells: list[Any] = []
        for column in columns:
            mean, deviation = spread(group.values(column.measure)) or (None, None)
            cells += ["" if value is None else round(value, 5) for value in (mean, deviation)]
        writer.writerow(
            [group.title, group.called, group.defence, len(group.finished), *cells, "; ".join(flags(group, same))]
        )
    return text.getvalue()
