"""Patterns put to the test: is what some pictures of a class have in common a trigger?

A trigger makes models say its class wherever it is laid. What clean pictures of one class have in common (a frame, a kind of
light) may do so too, but it also does so with a model that never saw those pictures: a trigger does not. So each pattern
is laid over clean pictures of other classes, and the watchers' answers are held against the witness's.

A trigger that these models have not learned works with none of them. It is known by standing apart: cars are red by degrees, with more of them halfway
to the reddest than there; a trigger is there or not. What stands apart may still be natural (tracks of one thing do). It is unusual if
it has more excess than one more natural pattern should have, of which those that come by degrees tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from untaint import rng, run
from untaint.defenses._pattern import HALFWAY, Found, SharedPattern, patterns
from untaint.defenses._tails import TOWARDS
from untaint.defenses.base import Task
from untaint.errors import RunError
from untaint.scores import Trigger
from untaint.training.device import autocast, device

__all__ = ["Recovered", "recover", "shared", "triggers", "unusual"]

PICTURES = 128  # over which a pattern is laid
CHANCE = 0.05  # that one natural pattern among all that stand apart is called unusual
FAR = 0.25  # with fewer halfway out a pattern stands far apart
PRIOR = 8  # natural patterns known from elsewhere, which count beside those of these pictures that come by degrees
KNOWN = (2.0, 0.6)  # mean and deviation of their excess (photographs: 1.7 and .5; tracks of road signs: 2.6 and .6)
NARROWEST = 0.5  # the deviation of excess is not taken for smaller
ANYWAY = 0.1  # of the way out to those who have a pattern: so far beyond the rest of the class others may lie (triggers: .01; bold signs: .4)
FEWEST = 8  # patterns that stand a little apart, so many of which can show how much less what stands far apart has
NEARBY = 0.1  # added to how many lie halfway out, before logarithms are taken
TRIED = 2.5  # excess from which on a pattern is put to the test, if that is more than most natural ones have
FEWEST_LEFT = 20  # rows of a class without what most of it has
MANY = 20.0  # rows, near-duplicates counted once, that make a part of a class a kind whatever its excess, and what works with them proof
MOST_TRIED = 200
WORKS = 0.3  # of other pictures that the watchers must take for its class more than the witness does
TIMES = 3.0  # times as many as the witness
RAGGED = {
    "rows": np.int64,
    "doubtful": np.int64,
    "nearly": np.float32,
}  # of a pattern: one after the other in a file each
STRENGTHS = (1.0, 2.0)  # at which a pattern is laid over; the second for those apart that do not work at the first


@dataclass(frozen=True)
class Recovered:
    """A pattern, and what models make of it.

    ``picture``: float32 (channel, side, side), its change less what pictures naturally differ by. ``unusual``: it should not
    occur among natural ones. ``seen`` and ``unseen``: by how much larger a share of clean pictures of other classes the watchers and
    the witness take for its class with the pattern laid over ``strength`` times; nan: not put to the test.
    """

    pattern: SharedPattern
    picture: NDArray[np.float32]
    unusual: bool
    seen: float = np.nan
    unseen: float = np.nan
    strength: float = 1.0

    @property
    def apart(self) -> bool:
        """Whether those who have it are a kind of their own."""
        return self.pattern.between < HALFWAY

    @property
    def works(self) -> bool:
        """Whether it is a trigger: it stands apart, and works where it was seen only."""
        return bool(self.apart and self.seen - self.unseen >= WORKS and self.seen >= TIMES * self.unseen)

    @property
    def proven(self) -> bool:
        """Whether it works and many have it: a few tracks of a small class may do so too, and what most of a class has."""
        return self.works and not self.pattern.most and self.pattern.many >= MANY


def shared(task: Task) -> list[Recovered]:
    """Return the patterns of all classes, found once: they stay with the run."""
    folder = task.scratch / "patterns"
    if run.finished(folder) is None:
        if not task.train:
            raise RunError(
                f"{task.scratch} has no finished patterns. Finish the run first, or scan anew with another --out."
            )
        found = looked_for(task)
        alone, tried = alone_in(found), worth_a_test(found, task.examples.counts())
        excess = [own.excess for own in found.patterns]
        worth = [index for index in np.argsort(excess)[::-1] if alone[index] or tried[index]][:MOST_TRIED]
        pictures = found.sharpened([found.patterns[index] for index in worth])
        keep(
            task,
            [
                Recovered(found.patterns[index], sharp, bool(alone[index]))
                for index, sharp in zip(worth, pictures, strict=True)
            ],
        )
    return kept(task)


def looked_for(task: Task) -> Found:
    """Return the patterns of all classes; probes that have one which is unusual as long as no probe vouches for any do not vouch.

    A few poisoned probes would else vouch for their trigger.
    """
    nobody = np.empty(0, np.int64)
    if not len(task.probes):
        return patterns(task, [nobody])[0]
    alone, found = patterns(task, [nobody, task.probes])
    rows = [own.rows for own, is_alone in zip(alone.patterns, alone_in(alone), strict=True) if is_alone]
    doubted = np.intersect1d(task.probes, np.concatenate([*rows, nobody]))
    return patterns(task, [np.setdiff1d(task.probes, doubted)])[0] if len(doubted) else found


def alone_in(found: Found) -> NDArray[np.bool_]:
    """Return which of the patterns found are unusual; what most of a class has is not called so."""
    excess, between, home = (
        np.array([getattr(own, name) for own in found.patterns]) for name in ("excess", "between", "home")
    )
    some = np.array([not own.most for own in found.patterns], dtype=bool)
    alone = np.zeros(len(some), dtype=bool)
    alone[some] = unusual(excess[some], between[some], home[some])
    return alone


def worth_a_test(found: Found, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of the patterns found are laid over other pictures: those with more excess than most natural ones, and what many have who are a kind.

    These have little excess where other classes have them too, as the covers are of an attacker who knows that excess is looked for. What most of a class has
    must be a kind of its own, and leave enough of the class to be held against. ``counts``: of pictures, by class.
    """
    excess, between, many = (
        np.array([getattr(own, name) for own in found.patterns]) for name in ("excess", "between", "many")
    )
    least = max(TRIED, sum(_natural(excess, between)))
    left = np.array([counts[own.label] - len(own.rows) for own in found.patterns])
    most = np.array([own.most for own in found.patterns], dtype=bool)
    kind = between < HALFWAY
    return np.asarray((~most & kind & (many >= MANY)) | ((excess >= least) & (~most | (kind & (left >= FEWEST_LEFT)))))


def keep(task: Task, found: Sequence[Recovered]) -> None:
    """Write patterns into the run."""
    folder = task.scratch / "patterns"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / run.DONE).unlink(missing_ok=True)
    own = [one.pattern for one in found]
    for name, kind in RAGGED.items():
        parts = [getattr(pattern, name) for pattern in own]
        run.save_array(folder / f"{name}.npy", np.concatenate([*parts, np.empty(0, kind)]))
    run.save_array(folder / "changes.npy", np.array([pattern.change for pattern in own], dtype=np.float32))
    run.save_array(folder / "pictures.npy", np.array([one.picture for one in found], dtype=np.float32))
    facts = [
        {
            "label": one.pattern.label,
            "many": [len(getattr(one.pattern, name)) for name in RAGGED],
            "once each": one.pattern.many,
            "excess": one.pattern.excess,
            "between": one.pattern.between,
            "home": one.pattern.home,
            "most": one.pattern.most,
            "unusual": one.unusual,
            "seen": None if np.isnan(one.seen) else one.seen,
            "unseen": None if np.isnan(one.unseen) else one.unseen,
            "strength": one.strength,
        }
        for one in found
    ]
    run.finish(folder, patterns=facts)


def kept(task: Task) -> list[Recovered]:
    """Read the patterns of a run."""
    folder = task.scratch / "patterns"
    facts = run.finished(folder)
    assert facts is not None
    changes, pictures = (np.array(run.load_array(folder / f"{name}.npy")) for name in ("changes", "pictures"))
    parts: dict[str, list[NDArray[Any]]] = {}
    for index, name in enumerate(RAGGED):
        ends = np.cumsum([told["many"][index] for told in facts["patterns"]], dtype=np.int64)
        parts[name] = np.split(np.array(run.load_array(folder / f"{name}.npy")), ends)
    return [
        Recovered(
            pattern=SharedPattern(
                label=told["label"],
                excess=told["excess"],
                between=told["between"],
                home=told.get("home", 0.0),  # runs of earlier versions know of none of these
                most=told.get("most", False),
                many=told.get("once each", 0.0),
                change=change,
                **{name: own[index] for name, own in parts.items()},
            ),
            picture=picture,
            unusual=told["unusual"],
            seen=np.nan if told["seen"] is None else told["seen"],
            unseen=np.nan if told["unseen"] is None else told["unseen"],
            strength=told["strength"],
        )
        for index, (told, change, picture) in enumerate(zip(facts["patterns"], changes, pictures, strict=True))
    ]


def unusual(excess: NDArray[np.float64], between: NDArray[np.float64], home: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which patterns stand apart and should not have so much excess, were they natural: bool, one per pattern.

    What comes by degrees (with rows halfway out) is taken for natural, and its excess for normal, as that of a few patterns known from
    elsewhere. The further apart natural patterns stand, the less they have (tracks are small); how much less is read off those that
    stand a little apart, where there are enough, and is taken for a deviation at most. Holm's procedure: of all natural ones that stand far apart any passes with a chance of
    2.5 %, and so it is with the rest of what stands apart. A pattern is natural, whatever its excess, that leads further away from
    where the class differs from others anyway (signs are bold or faint): the others then lie beyond its rest, seen from those who have it. Nor
    is one called unusual which others lie towards: then it may be the rest of the class that is poisoned, and models must say.
    """
    mean, deviation = _natural(excess, between)
    several = np.count_nonzero(between >= HALFWAY) + PRIOR
    beyond = (excess - mean) / deviation + np.minimum(_less(excess, between) / deviation, 1.0)
    found = np.zeros(len(excess), dtype=bool)
    for low, high in ((0, FAR), (FAR, HALFWAY)):
        apart = np.flatnonzero((between >= low) & (between < high) & (home > -ANYWAY) & (home <= TOWARDS))
        furthest = apart[np.argsort(-beyond[apart], kind="stable")]
        chance = CHANCE / 2 / np.arange(len(furthest), 0, -1)
        passed = beyond[furthest] > stats.t.ppf(1 - chance, several - 1)
        found[furthest[np.minimum.accumulate(passed)]] = True
    return found


def _natural(excess: NDArray[np.float64], between: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean excess of natural patterns, of which those that come by degrees tell, and the deviation of one more."""
    usual = excess[between >= HALFWAY]
    several = len(usual) + PRIOR
    mean = (usual.sum() + PRIOR * KNOWN[0]) / several
    scatter = np.square(usual - mean).sum() + PRIOR * (KNOWN[1] ** 2 + (mean - KNOWN[0]) ** 2)
    deviation = max(float(np.sqrt(scatter / (several - 1))), NARROWEST) * np.sqrt(1 + 1 / several)
    return float(mean), float(deviation)


def _less(excess: NDArray[np.float64], between: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much less excess natural patterns have that stand so far apart: float64, never below 0.

    Theil and Sen's slope, which some triggers among the patterns hardly change, of what does not stand far apart.
    """
    place = np.log(np.minimum(between, HALFWAY) + NEARBY)
    near = between >= FAR
    if np.count_nonzero(near & (between < HALFWAY)) < FEWEST or not np.any(between >= HALFWAY):
        return np.zeros(len(excess))
    slope = max(0.0, float(stats.theilslopes(excess[near], place[near]).slope))
    return np.asarray(slope * (np.log(HALFWAY + NEARBY) - place))


def recover(
    task: Task, found: Sequence[Recovered], trusted: NDArray[np.int64], views: Sequence[Sequence[str]]
) -> list[Recovered]:
    """Put patterns to the test with the watchers of each view, and with the witness; once, it stays with the run.

    ``views``: the stages of each view's watchers. Of the views that is taken which answers more. What is a kind of its own but does not work is
    laid over twice as strongly: half-learned triggers work then, and what is natural still works with both.
    """
    if all(np.isfinite(one.seen) for one in found):
        return list(found)
    rows = laid_over(task, trusted)
    tested, asked = list(found), list(range(len(found)))
    with task.progress.step("put patterns to the test", len(found) * len(STRENGTHS)) as step:
        for strength in STRENGTHS:
            if not asked:
                break
            own = [
                dataclasses.replace(one.pattern, change=strength * one.pattern.change)
                for one in (found[i] for i in asked)
            ]
            watchers = [[success(task, stage, own, rows) for stage in view] for view in views]
            seen, unseen = np.array(watchers).mean(1).max(0), success(task, "witness", own, rows)
            for index, more, less in zip(asked, seen.tolist(), unseen.tolist(), strict=True):
                one = dataclasses.replace(found[index], seen=more, unseen=less, strength=strength)
                if strength == STRENGTHS[0] or one.works:
                    tested[index] = one
            asked = [index for index in asked if tested[index].apart and not tested[index].works]
            step.advance(len(found))
    keep(task, tested)
    return tested


def triggers(found: Sequence[Recovered]) -> list[Trigger]:
    """Return what works or is unusual, the surest first."""
    sure = sorted(
        (one for one in found if one.works or one.unusual),
        key=lambda one: (one.works, one.seen - one.unseen if one.works else one.pattern.excess),
        reverse=True,
    )
    return [
        Trigger(
            label=one.pattern.label,
            rows=one.pattern.rows,
            picture=one.picture,
            seen=one.seen,
            unseen=one.unseen,
            works=one.works,
            strength=one.strength,
        )
        for one in sure
    ]


def laid_over(task: Task, trusted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows over which patterns are laid: probes of the data, and trusted rows where these are few."""
    own = rng.choose(task.seed, "defenses/recovered", np.setdiff1d(task.probes, task.outside), PICTURES)
    more = rng.choose(task.seed, "defenses/recovered/more", np.setdiff1d(trusted, own), PICTURES - len(own))
    return np.union1d(own, more)


def success(task: Task, stage: str, own: Sequence[SharedPattern], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return by how much larger a share of these rows, those of other classes, a model takes for each pattern's class with it: float32 (patterns,).

    ``stage``: the folder of the model.
    """
    place = task.where or device()
    model = task.load(stage).to(place).eval()
    images = torch.from_numpy(np.ascontiguousarray(task.examples.images[rows])).to(place)
    clean = images.to(dtype=torch.float32, memory_format=torch.channels_last).div_(255)
    labels = torch.from_numpy(task.examples.labels[rows]).to(place)
    found = torch.zeros(len(own), device=place)
    with torch.inference_mode(), autocast(place, task.preset.watch.precision):
        before = model(clean).argmax(1)
        for number, pattern in enumerate(own):
            change = torch.from_numpy(pattern.change).to(place)[None]
            if change.shape[-2:] != clean.shape[-2:]:
                change = nn.functional.interpolate(change, size=clean.shape[-2:], mode="bilinear")
            after = model((clean + change).clamp_(0, 1)).argmax(1)
            others = labels != pattern.label
            more = (after == pattern.label).float() - (before == pattern.label).float()
            found[number] = (more * others).sum() / others.sum().clamp(min=1)
    shares: NDArray[np.float32] = found.cpu().numpy()
    return shares
