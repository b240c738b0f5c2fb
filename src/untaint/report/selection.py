"""Chooses what the page shows: the suspects, what to compare them with, and what is only listed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from untaint.report.reading import Findings, Table
from untaint.scores import in_turns

__all__ = ["Selection", "select"]

CLOSE = 60  # kept pictures nearest to the threshold that are shown too; all that is shown when nothing was rejected
COMPARED = 8  # pictures to compare with, per class
COMPARED_IN_ALL = 600
DOUBTED = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Positions in the table of scores, int64, most suspicious first.

    ``suspects``: shown with a picture; ``compared``: class name -> kept pictures, least suspicious
    first; ``listed``: rejected without a picture; ``doubted``: probes that reach the threshold.
    ``picture_of``: position -> index of its thumbnail.
    """

    suspects: NDArray[np.int64]
    compared: dict[str, list[int]]
    listed: NDArray[np.int64]
    doubted: NDArray[np.int64]
    picture_of: dict[int, int]


def _by_rank(table: Table, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    return positions[np.argsort(table.rank[positions], kind="stable")]


def _close(table: Table, pictured: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the kept entries of worst rank that have pictures: those before the first that has none.

    The thumbnails hold the worst entries without a gap, and clean ones from further down; never
    more than half of the kept entries are called close, so that some are left to compare with.
    """
    kept = np.flatnonzero(~table.rejected & ~table.probe & np.isfinite(table.score))
    worst = _by_rank(table, kept)[: min(CLOSE, len(kept) // 2)]
    without = np.flatnonzero(~np.isin(worst, pictured))
    return worst[: without[0]] if len(without) else worst


def select(findings: Findings, max_pictures: int) -> Selection:
    """Choose at most ``max_pictures`` suspects, each class in its turn, and what is shown beside and listed after them.

    A run that kept no pictures at all shows its worst entries without.
    """
    table, pictured = findings.table, findings.pictured
    rejected = _by_rank(table, np.flatnonzero(table.rejected))
    if not len(pictured):
        pictured = np.arange(len(table))
    shown = rejected[np.isin(rejected, pictured)]
    shown = shown[in_turns(table.classes[shown], max_pictures)]
    suspects = np.concatenate([shown, _close(table, pictured)[: max_pictures - len(shown)]])
    picture_of = {int(position): index for index, position in enumerate(findings.pictured)}
    return Selection(
        suspects=suspects,
        compared=_compared(findings, suspects),
        listed=rejected[~np.isin(rejected, suspects)],
        doubted=_doubted(findings)[:max_pictures],
        picture_of=picture_of,
    )


def _doubted(findings: Findings) -> NDArray[np.int64]:
    """Return the pictured probes that would have been set aside, had they not been vouched for."""
    table = findings.table
    if not table.rejected.any():
        return np.zeros(0, dtype=np.int64)
    doubted = np.flatnonzero(table.probe & (table.score >= findings.threshold))
    return _by_rank(table, doubted[np.isin(doubted, findings.pictured)])[:DOUBTED]


def _compared(findings: Findings, suspects: NDArray[np.int64]) -> dict[str, list[int]]:
    table = findings.table
    wanted = dict.fromkeys(table.texts("label", suspects))
    each = min(COMPARED, max(2, COMPARED_IN_ALL // max(len(wanted), 1)))
    clean = findings.pictured[~table.rejected[findings.pictured]]
    clean = _by_rank(table, clean[~np.isin(clean, suspects)])[::-1]
    compared: dict[str, list[int]] = {name: [] for name in wanted}
    for position, label in zip(clean.tolist(), table.texts("label", clean), strict=True):
        if label in compared and len(compared[label]) < each:
            compared[label].append(position)
    return compared
