"""``Scores``: how suspicious each row is; rules that decide from them; ``Verdict``: who is set aside.

Scoring never decides. A rule is a small frozen dataclass, written ``name:key=value,...``:

    fraction:share=0.4       the most suspicious 40 % (the BaDLoss paper); with per=class of each class
    above:score=3.5          everything above a score
    gap                      everything right of the emptiest place between two modes
    false-discovery:q=0.1    as many as can go while at most 10 % are expected to be clean

Each takes one further option, ``keep=0.2``: a class keeps at least this share of its rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from untaint import _null, spec
from untaint._modes import two_modes
from untaint.errors import InputError, SpecError, did_you_mean

__all__ = [
    "MOST",
    "Above",
    "FalseDiscovery",
    "Fraction",
    "Gap",
    "Group",
    "KeepPerClass",
    "Rule",
    "Scores",
    "Trigger",
    "Verdict",
    "in_turns",
    "parse_rule",
    "rule_text",
]

MOST = 0.9  # of all rows; who sets more aside has found nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Trigger:
    """What some rows of one label have in common, as a picture.

    ``label``; ``rows``: who has it, int64; ``picture``: float32 (channel, height, width), by how much their pictures differ from others
    of the label, in parts of full brightness. ``seen`` and ``unseen``: by how much larger a share of clean pictures of other labels is taken
    for this label with it laid over them, ``strength`` times, by models that saw such rows and by one that did not. ``works``: whether the first is much larger;
    if not, what speaks for it is that nothing else in the data is like it.
    """

    label: int
    rows: NDArray[np.int64]
    picture: NDArray[np.float32]
    seen: float
    unseen: float
    works: bool
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Rows set aside that belong together.

    ``kind``: ``trigger`` (one label, and one trigger binds them), ``alike`` (one label, and alike, but nothing says that a trigger binds them),
    ``mislabelled`` (in no such group: all models take them for another class) or ``odd`` (the others). ``rows``: int64. ``label``: of all of them.
    ``trigger``: which of the recovered ones they have, if any. ``seen`` and ``unseen``: in which share of them
    the label comes out of models that saw others of them, and of one that saw none. ``usual``: the largest difference of the two in
    clusters of clean pictures; nan: there was nothing to compare with. ``taken_for``: classes and how often they are
    what the model says that saw none, most often first.
    """

    kind: Literal["trigger", "alike", "mislabelled", "odd"]
    rows: NDArray[np.int64]
    taken_for: tuple[tuple[int, int], ...]
    label: int | None = None
    trigger: int | None = None
    seen: float = np.nan
    unseen: float = np.nan
    usual: float = np.nan


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """How suspicious each row is.

    ``values``: float32 (all rows,), higher = more suspicious, nan = not scored. ``name``: of the
    detector. ``parts``: named float32 columns that the score was made from. ``triggers``: what the detector
    found that rows have in common, if it looks for that.
    """

    values: NDArray[np.float32]
    name: str
    parts: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    triggers: tuple[Trigger, ...] = ()

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.values.dtype != np.float32:
            raise InputError(f"scores are {self.values.dtype} {self.values.shape}; give float32 of (rows,).")
        if np.isinf(self.values).any():
            raise InputError(
                f"the score of row {np.flatnonzero(np.isinf(self.values))[0]} is infinite; give finite ones, or nan for rows not scored."
            )
        for name, column in self.parts.items():
            if column.shape != self.values.shape:
                raise InputError(
                    f"part '{name}' has the shape {column.shape} for {len(self.values)} scores. Give one value per row."
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """Who is set aside, perhaps nobody, and on what ground.

    ``rejected``: bool (all rows,). ``p_values``: float64 (all rows,), how large a share of clean
    rows is expected to look at least as suspicious; nan where there is none. ``threshold``: the
    lowest score that is set aside, if the rule has one. ``rule``: the rule's text. ``note``: one
    sentence for people on what the decision rests on.
    """

    rejected: NDArray[np.bool_]
    p_values: NDArray[np.float64]
    threshold: float | None
    rule: str
    note: str

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows set aside: int64, ascending."""
        return np.flatnonzero(self.rejected).astype(np.int64)


class Rule(Protocol):
    """Decides from scores who is set aside; probes never are."""

    def decide(self, scores: Scores, *, labels: NDArray[np.int64], probes: NDArray[np.int64]) -> Verdict:
        """Return the verdict. ``labels``: int64 (all rows,); ``probes``: rows that are vouched for."""
        ...


@dataclass(frozen=True)
class Fraction:
    """Sets the most suspicious ``share`` of all scored rows aside, whatever their scores; or of each class (``per=class``).

    The share counts the probes, which stay; of equal scores the lower row goes first (Alex et al., 2025).
    """

    share: float = 0.4
    per: Literal["all", "class"] = "all"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SpecError(f"share is {self.share}; give a number from 0 to 1.")
        if self.per not in ("all", "class"):
            raise SpecError(f"per is '{self.per}'; give all or class.")

    def decide(self, scores: Scores, *, labels: NDArray[np.int64], probes: NDArray[np.int64]) -> Verdict:
        """Return the verdict; labels play a part with ``per=class`` only."""
        is_scored = ~np.isnan(scores.values)
        part = labels if self.per == "class" else np.zeros_like(labels)
        open_rows = _open_rows(scores, probes)
        most = np.floor(self.share * np.bincount(part[is_scored]) + 1e-9).astype(np.int64)  # 0.4 x 5 rows are 2 rows
        order = open_rows[np.argsort(-scores.values[open_rows], kind="stable")]
        worst = order[place_within(part[order]) < most[part[order]]] if len(order) else order
        of = " of each class" if self.per == "class" else ""
        note = f"The {len(worst):,} most suspicious rows were set aside because a share of {self.share:g}{of} was asked for, not because of their scores."
        verdict = _verdict(self, scores, worst, note)
        return verdict if self.per == "all" else dataclasses.replace(verdict, threshold=None)


@dataclass(frozen=True)
class Above:
    """Sets everything above a score aside."""

    score: float

    def decide(self, scores: Scores, *, labels: NDArray[np.int64], probes: NDArray[np.int64]) -> Verdict:
        """Return the verdict; labels play no part."""
        open_rows = _open_rows(scores, probes)
        worst = open_rows[scores.values[open_rows] > self.score]
        return _verdict(self, scores, worst, f"{len(worst):,} rows score above {self.score:g}, the limit of this rule.")


@dataclass(frozen=True)
class Gap:
    """Sets everything right of the emptiest place between two modes aside; nothing if there is one mode.

    One mode: the dip test of Hartigan and Hartigan (1985) finds no second at the level ``level``.
    """

    level: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise SpecError(f"level is {self.level}; give a number between 0 and 1, such as 0.05.")

    def decide(self, scores: Scores, *, labels: NDArray[np.int64], probes: NDArray[np.int64]) -> Verdict:
        """Return the verdict; labels play no part."""
        open_rows = _open_rows(scores, probes)
        found = two_modes(scores.values[open_rows].astype(np.float64))
        nothing = np.empty(0, dtype=np.int64)
        if found.p_value > self.level:
            note = f"Nothing was set aside: the scores have one mode (dip test, p = {found.p_value:.2g})."
            return _verdict(self, scores, nothing, note)
        if found.gap is None:
            note = f"Nothing was set aside: the dip test finds a second mode (p = {found.p_value:.2g}), but none lies right of the largest."
            return _verdict(self, scores, nothing, note)
        worst = open_rows[scores.values[open_rows] > found.gap]
        note = f"The scores have two modes (dip test, p = {found.p_value:.2g}); the {len(worst):,} rows right of the gap at {found.gap:.4g} were set aside."
        return _verdict(self, scores, worst, note)


@dataclass(frozen=True)
class FalseDiscovery:
    """Sets aside as many as can go while at most about a share ``q`` of them is expected to be clean.

    The method and what it assumes are described in ``untaint._null``.
    """

    q: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise SpecError(f"q is {self.q}; give a share between 0 and 1, such as 0.1.")

    def decide(self, scores: Scores, *, labels: NDArray[np.int64], probes: NDArray[np.int64]) -> Verdict:
        """Return the verdict; labels play no part."""
        open_rows = _open_rows(scores, probes)
        values = scores.values.astype(np.float64)
        trusted = values[np.intersect1d(probes, np.flatnonzero(~np.isnan(values)))]
        null = _null.fit(values[open_rows], trusted)
        p_values = null.p_values(values)
        worst = open_rows[_null.benjamini_hochberg(p_values[open_rows], self.q)]
        found = f"{len(worst):,} of {len(open_rows):,} rows were set aside" if len(worst) else "Nothing was set aside"
        note = f"{found}: at most about {self.q:.0%} of what is set aside is expected to be clean; {null.note}."
        return _verdict(self, scores, worst, note, p_values)


@dataclass(frozen=True)
class KeepPerClass:
    """A rule, after which every class keeps at least a share ``at_least`` of its scored rows.

    Where the rule leaves fewer, the least suspicious of the class are reinstated.
    """

    rule: Rule
    at_least: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.at_least <= 1:
            raise SpecError(f"at_least is {self.at_least}; give a share from 0 to 1.")

    def decide(self, scores: Scores, *, labels: NDArray[np.int64], probes: NDArray[np.int64]) -> Verdict:
        """Return the inner rule's verdict, with some rows reinstated."""
        verdict = self.rule.decide(scores, labels=labels, probes=probes)
        rejected = verdict.rejected.copy()
        scored = ~np.isnan(scores.values)
        rows = verdict.rows[np.argsort(scores.values[verdict.rejected], kind="stable")]  # least suspicious first
        for label in np.unique(labels[rows]):
            of_class = rows[labels[rows] == label]
            size = np.count_nonzero(scored & (labels == label))
            wanted = int(np.ceil(self.at_least * size - 1e-9)) - (size - len(of_class))
            rejected[of_class[: max(wanted, 0)]] = False
        reinstated = len(rows) - np.count_nonzero(rejected)
        note = verdict.note
        if reinstated:
            note += f" {reinstated:,} of them were reinstated so that every class keeps at least {self.at_least:.0%} of its rows."
        return dataclasses.replace(verdict, rejected=rejected, rule=rule_text(self), note=note)


RULES: dict[str, type] = {"fraction": Fraction, "above": Above, "gap": Gap, "false-discovery": FalseDiscovery}


def parse_rule(text: str) -> Rule:
    """Make a rule from ``name:key=value,...``; an option ``keep=0.2`` wraps it in ``KeepPerClass``."""
    name, options = spec.parse(text)
    if name not in RULES:
        raise SpecError(f"no rule '{name}'.{did_you_mean(name, RULES)}")
    keep = options.pop("keep", None)
    rule: Rule = spec.build(RULES[name], name, options)
    if keep is None:
        return rule
    wrapper = spec.build(_Keep, name, {"keep": keep})
    return KeepPerClass(rule, wrapper.keep)


@dataclass(frozen=True)
class _Keep:
    keep: float


def rule_text(rule: Rule) -> str:
    """Write a rule as ``parse_rule`` reads it."""
    if isinstance(rule, KeepPerClass):
        inner = rule_text(rule.rule)
        return f"{inner}{',' if ':' in inner else ':'}keep={rule.at_least}"
    for name, kind in RULES.items():
        if type(rule) is kind:
            return spec.text(name, rule)
    return type(rule).__name__


def _open_rows(scores: Scores, probes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the scored rows that nobody vouches for, ascending."""
    is_open = ~np.isnan(scores.values)
    is_open[probes] = False
    return np.flatnonzero(is_open).astype(np.int64)


def _verdict(
    rule: Rule, scores: Scores, rows: NDArray[np.int64], note: str, p_values: NDArray[np.float64] | None = None
) -> Verdict:
    rejected = np.zeros(len(scores.values), dtype=bool)
    rejected[rows] = True
    return Verdict(
        rejected=rejected,
        p_values=np.full(len(rejected), np.nan) if p_values is None else p_values,
        threshold=float(scores.values[rows].min()) if len(rows) else None,
        rule=rule_text(rule),
        note=note,
    )


def in_turns(labels: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """Return which ``count`` entries to look at when every class is given its turn: positions, ascending.

    ``labels``: classes of the entries, most suspicious first. The first of each class is taken, then the second of
    each, and so on, so that no class hides the others behind it.
    """
    return np.sort(np.argsort(place_within(labels), kind="stable")[:count])


def place_within(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return for each entry how many of the same label come before it: int64 (entries,)."""
    by_class = np.argsort(labels, kind="stable")
    ordered = np.asarray(labels)[by_class]
    place = np.empty(len(ordered), dtype=np.int64)
    place[by_class] = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    return place
