"""Groups of what was set aside: who belongs together, and whether a trigger binds them.

Rows of one label belong together where each is among the other's nearest neighbours in the features of the watchers of a view; or where they have a
recovered trigger in common. Whether what they share is a trigger is asked of models: with one half of a group in training, does the label of the
*other* half come out? The watchers know, each of which trained on a random half of all rows. Clean pictures as much alike as these teach their label too
(frames of one track do), and so does all else that the witness has seen: what counts is by how much more often than from the
witness the label comes out, and whether that is more than in clusters of clean pictures of the class, which are as large and which the witness has not seen
either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from untaint import rng
from untaint.defenses._company import neighbours, side_by_side
from untaint.scores import Group, Trigger

__all__ = ["Answers", "grouped"]

FEWEST = 8  # rows that make a group
MOST = 20_000  # rows of a class, of which fewer are kept ones where there are more
CLUSTERS = 25  # of clean pictures, in each view, with which a group is compared
KINDS = ("trigger", "alike", "mislabelled", "odd")
CAUSED = 0.3  # by so much more often at least must the label of a group come out


@dataclass(frozen=True)
class Answers:
    """What models say that did not train on a row, int32 (all rows,) each: the ``watchers``, one for each view, and the ``witness``.

    ``trusted``: bool (all rows,), on which the witness did train.
    """

    watchers: Sequence[NDArray[np.int32]]
    witness: NDArray[np.int32]
    trusted: NDArray[np.bool_]

    def of(self, rows: NDArray[np.int64], label: int) -> tuple[float, float]:
        """Return for which share of the rows that the witness did not see the label comes out: of the view that says so more often, and of the witness."""
        unseen = rows[~self.trusted[rows]]
        if not len(unseen):
            return np.nan, np.nan
        seen = max(float((said[unseen] == label).mean()) for said in self.watchers)
        return seen, float((self.witness[unseen] == label).mean())

    def agreed(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the class of which all models say that the row is, -1 where they differ: int32 (rows,)."""
        said = np.stack([*(answers[rows] for answers in self.watchers), self.witness[rows]])
        return np.where((said == said[0]).all(0), said[0], -1).astype(np.int32)


def grouped(
    rejected: NDArray[np.int64],
    kept: NDArray[np.int64],
    labels: NDArray[np.int64],
    triggers: Sequence[Trigger],
    views: Sequence[Sequence[Path]],
    told: Answers,
    count: int,
    learned: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> tuple[Group, ...]:
    """Return groups that hold every row set aside once: triggers first, then what is merely alike, mislabelled or odd; large ones first.

    ``views``: files of features, for each view. ``count``: how many nearest neighbours are looked at. ``learned``: bool (all rows,), who is
    known to have a trigger that models learned; a group is one trigger if half and more of it is.
    """
    found, alone = [], [np.empty(0, np.int64)]
    for label in np.unique(labels[rejected]).tolist():
        own, others = (rows[labels[rows] == label] for rows in (rejected, kept))
        beside = rng.choose(seed, "defenses/groups/beside", others, max(0, MOST - len(own)))
        members = np.union1d(own, beside)
        tables = [(members, side_by_side(files, members)) for files in views if len(files)]
        clean = beside[~told.trusted[beside]]
        parts, left = _parts(own, label, triggers, _components(own, tables, count))
        alone.append(left)
        for rows, trigger in parts:
            seen, unseen = told.of(rows, label)
            usual = _usual(len(rows), clean, label, tables, told, seed)
            caused = seen - unseen >= CAUSED and not seen - unseen <= usual  # nan: nothing to compare with
            caused |= learned is not None and 2 * int(learned[rows].sum()) >= len(rows)
            group = Group(
                kind="alike" if trigger is None and not caused else "trigger",
                rows=rows,
                label=label,
                trigger=trigger,
                seen=seen,
                unseen=unseen,
                usual=usual,
                taken_for=_counts(told.witness[rows]),
            )
            found.append(group)
    left = np.concatenate(alone)
    agreed = told.agreed(left)
    wrong = (agreed >= 0) & (agreed != labels[left])
    found.append(Group(kind="mislabelled", rows=left[wrong], taken_for=_counts(told.witness[left[wrong]])))
    found.append(Group(kind="odd", rows=left[~wrong], taken_for=_counts(told.witness[left[~wrong]])))
    found.sort(key=lambda group: (KINDS.index(group.kind), -len(group.rows)))
    return tuple(group for group in found if len(group.rows))


def _components(
    own: NDArray[np.int64], tables: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]], count: int
) -> NDArray[np.int32]:
    """Return a number for each row of a class set aside, the same for those that are linked: int32 (own,).

    Two are linked that are each among the other's nearest neighbours of the class, in some view.
    """
    links = coo_array((len(own), len(own)), dtype=np.int8).tocsr()
    for members, features in tables:
        if len(members) < 2:
            continue
        near = neighbours(features, members, count)[np.searchsorted(members, own)]
        ends = np.searchsorted(own, near).clip(max=len(own) - 1)
        start, place = np.nonzero(own[ends] == near)
        one_way = coo_array((np.ones(len(start), np.int8), (start, ends[start, place])), shape=links.shape).tocsr()
        links = links + one_way.multiply(one_way.T)
    numbers: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return numbers


def _parts(
    own: NDArray[np.int64], label: int, triggers: Sequence[Trigger], component: NDArray[np.int32]
) -> tuple[list[tuple[NDArray[np.int64], int | None]], NDArray[np.int64]]:
    """Return groups of a class's rows, each with the number of its trigger, if it has one; and the rows that are in none.

    A component of which half and more has a trigger has it as a whole.
    """
    having = np.full(len(own), -1)
    for index in reversed(range(len(triggers))):  # the surest comes last, and counts
        if triggers[index].label == label:
            having[np.isin(own, triggers[index].rows)] = index
    grouped: list[tuple[NDArray[np.int64], int | None]] = []
    left = []
    for number in np.unique(component):
        mine = component == number
        free = mine & (having < 0)
        counts = np.bincount(having[mine & ~free], minlength=1)
        if 2 * counts.max() >= np.count_nonzero(mine):
            having[free] = counts.argmax()
        elif np.count_nonzero(free) >= FEWEST:
            grouped.append((own[free], None))
        else:
            left.append(own[free])
    grouped += [(own[having == index], index) for index in np.unique(having[having >= 0]).tolist()]
    return grouped, np.concatenate([*left, own[:0]])


def _usual(
    size: int,
    clean: NDArray[np.int64],
    label: int,
    tables: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]],
    told: Answers,
    seed: int,
) -> float:
    """Return by how much more often the label of clean clusters of the class comes out, of that in which it is most; nan: there are too few.

    A cluster is a kept picture that the witness did not see, and the nearest others of this kind: as many as the group has, or half of all.
    """
    if len(clean) < 2 * FEWEST:
        return np.nan
    most = -1.0
    for members, features in tables:
        own = features[np.searchsorted(members, clean)]
        middles = np.searchsorted(clean, rng.choose(seed, "defenses/groups", clean, CLUSTERS))
        for middle in middles.tolist():
            distance = np.square(own - own[middle]).sum(1)
            nearest = np.argpartition(distance, min(size, len(clean) // 2) - 1)[: min(size, len(clean) // 2)]
            seen, unseen = told.of(clean[nearest], label)
            most = max(most, seen - unseen)
    return most


def _counts(answers: NDArray[np.int32]) -> tuple[tuple[int, int], ...]:
    """Return how often each class was answered, most often first."""
    counts = np.bincount(answers[answers >= 0], minlength=1)
    order = np.argsort(-counts, kind="stable")
    return tuple((int(label), int(counts[label])) for label in order if counts[label])
