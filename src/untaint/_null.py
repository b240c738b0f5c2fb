"""How many clean rows are to be expected beyond a score, learned from scores of which some may be poisoned.

Assumed: the density of clean scores falls ever faster to the right of their middle (its logarithm is concave there), once
scores are drawn in by the inverse hyperbolic sine, which makes a normal's, an exponential's or a Student's tail so.
Wherever one looks, at ``t``, the fall from one window of scores to the next then bounds all that is to come: beyond ``t`` clean
rows become fewer at least as fast. Rows that lie further right than any such bound allows are poison's. Nothing is assumed about the
left, nor how much poison there is, nor where it lies; where it mixes with clean rows it makes the fall look slower, and
the bound looser.

A fall is believed only as far as chance cannot have made it (so many standard errors are taken off); of the bounds at all places
to the left of a score the lowest counts. A row's p-value is that bound over the number of rows; with Benjamini and
Hochberg's procedure, rows are set aside as long as the bound is below q times as many. The bound is raised until no more of the
probes have p-values below 0.1, 0.05, 0.02 and 0.01 than chance (two standard deviations) lets expect, and none has one below a
tenth of the smallest that is to be expected among so many. It is never lowered: models that were taught with the help of
probes find them, and what is like them, more familiar than other clean rows.

What it costs: poison is found where clean rows have become rare beside it, not where it hides among them, and fewer than some ten
poisoned rows never. What breaks it: clean rows that come in clumps of their own far to the right.
Chosen over mirroring the left half, over a normal (Efron, 2004) and a Student null fitted to the centre: scores of real pictures
reach further right than left, and of 290 rows set aside beside 100 poisoned ones 190 were clean by the mirror image.
Draws: benchmarks/false_discovery.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Null", "benjamini_hochberg", "fit"]

ENOUGH = 20  # probes; fewer say nothing about tails
LEVELS = (0.1, 0.05, 0.02, 0.01)
CHANCE = 2.0  # standard deviations more of them than expected may lie beyond a level
RARE = 0.1  # of the smallest p-value to be expected among probes, below which one speaks against the bound
HIGHEST = 1e12  # that the bound is raised: beyond that only the number of rows bounds it
WINDOWS = (
    1,
    2,
    4,
    8,
)  # so many make up the distance from the lower quartile to the median: wide ones where rows are few
COARSE = 2.0  # gaps between scores left of the median (where they are rounded) that a window is wide at least
STEPS = 2  # windows begun within one
FURTHEST = 80.0  # such distances right of the median in which falls are looked for
FEWEST = 5  # rows in a window from which a fall is believed
CERTAIN = 2.2  # standard errors taken off a fall


@dataclass(frozen=True, eq=False)
class Null:
    """How many clean rows are to be expected at or beyond each score: all scores in order, and a bound at each.

    ``factor``: by how much the bounds were raised. ``note``: half a sentence for people.
    """

    ordered: NDArray[np.float64]
    bounds: NDArray[np.float64]
    factor: float
    note: str

    def p_values(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of clean rows expected at or above each value; nan stays nan."""
        total = len(self.ordered)
        place = np.searchsorted(self.ordered, values, side="left")
        beyond = total - place  # rows at or above
        bounds = np.minimum(beyond, self.factor * self.bounds[np.minimum(place, total - 1)]) if total else beyond
        return np.where(np.isnan(values), np.nan, (1 + bounds) / (1 + total))


def fit(values: NDArray[np.float64], probes: NDArray[np.float64]) -> Null:
    """Learn what is to be expected from the scores of everyone who is no probe, and check it by the probes'."""
    ordered = np.sort(values)
    null = Null(ordered, _bounds(_drawn_in(ordered)), 1.0, "")
    if not len(values):
        return replace(null, note="there were no scores to judge by")
    assumed = "clean scores are taken to become rarer ever faster to the right"
    if len(probes) < ENOUGH:
        few = f"{len(probes)} probes are too few" if len(probes) else "there are no scored probes"
        return replace(null, note=f"{assumed}, which could not be checked ({few})")
    if _fits(null, probes):
        return replace(null, note=f"{assumed}, and the {len(probes)} probes agree")
    low, high = 1.0, HIGHEST
    for _ in range(40):  # the answer is known to one part in 1e10
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if _fits(replace(null, factor=middle), probes) else (middle, high)
    more = (
        f"{float(f'{high:.2g}'):,.9g} times as many are expected"
        if high < HIGHEST / 2
        else "nothing there can be told from what is clean"
    )
    note = f"{assumed}, but of {len(probes)} probes more lie there than that allows, so that {more}"
    return replace(null, factor=high, note=note)


def _drawn_in(ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores less their median, in median absolute deviations, drawn in by the inverse hyperbolic sine."""
    if not len(ordered):
        return ordered
    centred = ordered - np.median(ordered)
    scale = float(np.median(np.abs(centred)))
    return np.asarray(np.arcsinh(centred / scale)) if scale > 0 else np.zeros_like(ordered)


def _bounds(ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many clean rows there can be at or beyond each of some scores in order."""
    total = len(ordered)
    bounds = np.arange(total, 0, -1, dtype=np.float64)  # all that there are
    lower, middle = np.quantile(ordered, (0.25, 0.5)) if total else (0.0, 0.0)
    coarse = COARSE * float(np.diff(ordered[total // 10 : total // 2]).max(initial=0))
    if middle > lower:
        begin = 2 * middle - lower  # about the upper quartile, of clean scores: no dip in the midst of them counts
        end = min(ordered[-1], middle + FURTHEST * (middle - lower))
        for width in {max((middle - lower) / parts, coarse) for parts in WINDOWS}:
            _lower(bounds, ordered, np.arange(begin + 2 * width, end + 2 * width, width / STEPS), width)
    return np.minimum.accumulate(bounds)


def _lower(bounds: NDArray[np.float64], ordered: NDArray[np.float64], ends: NDArray[np.float64], width: float) -> None:
    """Lower the bounds to what the falls from one window to the next allow, for windows that end at some places."""
    first, second, last = (np.searchsorted(ordered, ends - back * width, side="left") for back in (2, 1, 0))
    before, after = (second - first).astype(np.float64), (last - second).astype(np.float64)
    error = np.sqrt(1 / (before + 0.5) + 1 / (after + 0.5))
    ratio = (after + 0.5) / (before + 0.5) * np.exp(CERTAIN * error)  # of one window to the one before, at most
    for index in np.flatnonzero((before >= FEWEST) & (ratio < 1)):
        beyond = (after[index] + 1) * ratio[index] / (1 - ratio[index])  # in all windows to come
        start = last[index]
        windows = (ordered[start:] - ends[index]) / width
        np.minimum(bounds[start:], beyond * ratio[index] ** windows, out=bounds[start:])


def _fits(null: Null, probes: NDArray[np.float64]) -> bool:
    """Whether no more probes look suspicious than clean rows should."""
    p_values = null.p_values(probes)
    if np.any(p_values <= RARE / len(probes)):
        return False
    expected = np.array(LEVELS) * len(probes)
    allowed = np.maximum(1.0, expected + CHANCE * np.sqrt(expected))
    return all(np.count_nonzero(p_values <= level) <= most for level, most in zip(LEVELS, allowed, strict=True))


def benjamini_hochberg(p_values: NDArray[np.float64], q: float) -> NDArray[np.bool_]:
    """Return which hypotheses are rejected (Benjamini and Hochberg, 1995): bool, one per p-value."""
    if not len(p_values):
        return np.zeros(0, dtype=bool)
    ordered = np.sort(p_values)
    passing = np.flatnonzero(ordered <= q * np.arange(1, len(ordered) + 1) / len(ordered))
    return p_values <= ordered[passing[-1]] if len(passing) else np.zeros(len(p_values), dtype=bool)
