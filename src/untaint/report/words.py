"""Words and numbers for people: counts, shares, keys made visible, and the headline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from untaint.errors import SpecError
from untaint.scores import FalseDiscovery, KeepPerClass, parse_rule

__all__ = ["certainty", "clock", "count", "headline", "number", "p_text", "share", "shown", "where"]

_SPACE = "\N{NO-BREAK SPACE}"


def shown(text: str) -> str:
    r"""Return a text in which whatever would not show, or would mislead, is spelt out: a newline as ``\n``.

    Control characters, bidirectional overrides and bytes that are no Unicode could make a key look
    like another one.
    """
    if text.isprintable():
        return text or "(empty)"
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def count(amount: int, noun: str = "") -> str:
    """Return ``1,204 pictures``, ``1 picture``, or the bare number without a noun."""
    if not noun:
        return f"{amount:,}"
    many = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("s") else "s")
    return f"{amount:,} {noun if amount == 1 else many}"


def share(part: float, whole: float = 1.0) -> str:
    """Return a share in per cent, with two digits that count: ``8.2 %``, ``0.031 %``, ``40 %``."""
    if not whole or not math.isfinite(part):
        return "0" + _SPACE + "%"
    percent = 100 * part / whole
    if percent == 0 or percent >= 99.95:
        digits = 0
    elif percent > 90:
        digits = 1
    else:
        digits = max(0, 1 - math.floor(math.log10(percent)))
    if percent < 100 and round(percent, digits) >= 100:
        return ">" + "99.9" + _SPACE + "%"
    if 0 < percent < 0.00005:
        return "<" + "0.0001" + _SPACE + "%"
    return f"{percent:.{min(digits, 4)}f}{_SPACE}%"


def number(value: float) -> str:
    """Return three digits that count, or a dash where there is no number."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "\N{EN DASH}"


def p_text(value: float) -> str:
    """Return ``p = 0.012``, ``p = 3e-07``, or nothing where there is no p-value."""
    return f"p = {value:.2g}" if math.isfinite(value) else ""


def clock(seconds: float) -> str:
    """Return a duration: ``0.4 s``, ``61 s``, ``12 min``, ``3.5 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _joined(names: Sequence[str]) -> str:
    quoted = [f"\N{LEFT DOUBLE QUOTATION MARK}{shown(name)}\N{RIGHT DOUBLE QUOTATION MARK}" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def where(per_class: Sequence[Mapping[str, Any]]) -> str:
    """Say in which classes the rejected pictures are: a clause, empty where there is one class or none rejected."""
    hit = sorted((c for c in per_class if c["rejected"]), key=lambda c: -int(c["rejected"]))
    total = sum(int(c["rejected"]) for c in hit)
    if not hit or len(per_class) < 2:
        return ""
    if len(hit) == 1:
        return f"{'' if total == 1 else 'all of them '}labelled {_joined([hit[0]['name']])}"
    inside = 0
    for used, part in enumerate(hit[:3], start=1):
        inside += int(part["rejected"])
        if inside == total:
            return f"all of them labelled {_joined([c['name'] for c in hit[:used]])}"
        if inside >= 0.8 * total:
            return f"{share(inside, total)} of them labelled {_joined([c['name'] for c in hit[:used]])}"
    most, many = _joined([hit[0]["name"]]), count(int(hit[0]["rejected"]))
    return f"spread over {len(hit):,} of {len(per_class):,} classes, most often labelled {most} ({many})"


def headline(rows: int, rejected: int, per_class: Sequence[Mapping[str, Any]]) -> str:
    """Say how many pictures of how many were set aside, and in which classes: one sentence."""
    if not rejected:
        return f"Nothing was set aside: none of {count(rows, 'picture')} stands out clearly enough."
    verb = "was" if rejected == 1 else "were"
    clause = where(per_class)
    ending = f", {clause}." if clause else "."
    return f"{count(rejected)} of {count(rows, 'picture')} ({share(rejected, rows)}) {verb} set aside{ending}"


def certainty(rule: str, rejected: int) -> str:
    """Say what the rule's number promises about the rejected pictures: one sentence, empty for an unknown rule."""
    try:
        known = parse_rule(rule)
    except SpecError:
        return ""
    own = known.rule if isinstance(known, KeepPerClass) else known
    name = rule.partition(":")[0]
    if isinstance(own, FalseDiscovery) and rejected:
        wrong = max(1, round(own.q * rejected))
        expected = (
            f"up to about {count(wrong)} of these {count(rejected)} are"
            if rejected > 1 / own.q
            else "perhaps one of these is"
        )
        return f"The rule lets up to {share(own.q)} of what it sets aside be mistakes: expect that {expected} clean."
    if name == "false-discovery" and not rejected:
        return "That is no proof that nothing is poisoned: only that nothing stood out beyond doubt."
    if name == "fraction" and rejected:
        return "The rule sets aside a fixed share whether or not anything is poisoned: most of these may be clean."
    if name == "gap" and rejected:
        return "The scores fall into two separate groups, and the worse one was set aside."
    if name == "above" and rejected:
        return "The threshold was chosen by hand: how many of these are clean shows only by looking."
    return ""
