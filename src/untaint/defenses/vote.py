"""Vote: who is set aside by most of several detectors, each at its own rule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from untaint.defenses.base import UNDEFENDED, Card, Detector, Task
from untaint.errors import SpecError
from untaint.recipe import Preset
from untaint.scores import Scores, parse_rule

__all__ = ["Vote"]


@dataclass(frozen=True, kw_only=True)
class Vote(Detector):
    """How many detectors set a row aside, and behind the point how suspicious it is to all, over how many it takes: above 1 where enough agree.

    ``of``: the detectors' names, with ``+`` between them, each with its usual options and deciding by the rule of its paper (or else the preset's). ``needed``: how many have to
    agree; 0: more than half. Behind the point is the mean over detectors of the row's rank, so that rows with as many votes are in order. The three that are asked where nobody
    says otherwise look at three things: features, what pictures keep when they are made brighter, and what is learned first.
    """

    of: str = "spectral+scale-up+isolation"
    needed: int = 0

    card: ClassVar[Card | None] = Card(
        paper="this project's own",
        assumes="detectors that look at different things err on different pictures",
        rate="share",
    )
    stages: ClassVar[tuple[str, ...]] = (UNDEFENDED, "isolating")
    fixed: ClassVar[tuple[str, ...]] = ("of",)
    usual_rule: ClassVar[str | None] = "above:score=1"

    def __post_init__(self) -> None:
        """Check the settings."""
        names = self._names()
        if len(names) < 2 or len(set(names)) < len(names) or "vote" in names:
            raise SpecError(f"of is '{self.of}'; give at least two different detectors, such as spectral+strip.")
        if not 0 <= self.needed <= len(names):
            raise SpecError(
                f"needed is {self.needed}; give how many of the {len(names)} detectors have to agree, or 0 for more than half."
            )

    def require(self, preset: Preset) -> None:
        """Refuse to begin where one of them would."""
        for judge in self.judges():
            judge.require(preset)

    def score(self, task: Task) -> Scores:
        """Return the votes and the mean rank; the parts are each detector's scores."""
        votes = np.zeros(task.examples.total)
        ranks = np.zeros(task.examples.total)
        parts: dict[str, NDArray[np.float32]] = {}
        judges = self.judges()
        for name, judge in zip(self._names(), judges, strict=True):
            scores = judge.score(task)
            rule = task.rule if judge.usual_rule is None else parse_rule(judge.usual_rule)
            verdict = judge.decide(scores, dataclasses.replace(task, rule=rule))
            votes[verdict.rows] += 1
            ranks += _ranks(scores.values, task.examples.rows)
            parts[name] = scores.values
        needed = self.needed or len(judges) // 2 + 1
        values = np.full(task.examples.total, np.nan, dtype=np.float32)
        members = task.examples.rows
        values[members] = (votes[members] + ranks[members] / len(judges)) / needed
        return Scores(values=values, name="vote", parts={**parts, "votes": votes.astype(np.float32)})

    def work(self, task: Task) -> list[tuple[str, int, int]]:
        """Return the models of all of them, each once."""
        found: dict[str, tuple[str, int, int]] = {}
        for judge in self.judges():
            for stage, trained, recorded in judge.work(task):
                before = found.get(stage, (stage, 0, 0))
                found[stage] = (stage, max(before[1], trained), before[2] + recorded)
        return list(found.values())

    def explain(self, scores: Scores, rows: NDArray[np.int64]) -> list[str]:
        """Return for each row how many agree."""
        votes, count = scores.parts["votes"], len(self._names())
        return [f"set aside by {int(votes[row])} of {count} detectors" for row in rows]

    def limits(self) -> list[str]:
        """Return what a vote cannot tell, and what its detectors cannot."""
        own = "Poison that only one of them can see is outvoted."
        return [own, *(sentence for judge in self.judges() for sentence in judge.limits())]

    def judges(self) -> list[Detector]:
        """Return the detectors that are asked; raises SpecError for a name that is none."""
        from untaint.defenses import DEFENSES

        judges = [DEFENSES.build(name) for name in self._names()]
        for name, judge in zip(self._names(), judges, strict=True):
            if not isinstance(judge, Detector):
                raise SpecError(
                    f"of is '{self.of}', and '{name}' does not score pictures. Give detectors, such as spectral."
                )
        return [judge for judge in judges if isinstance(judge, Detector)]

    def _names(self) -> list[str]:
        return [name.strip() for name in self.of.split("+")]


def _ranks(values: NDArray[np.float32], members: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the rank of each member's score above 0 and below 1, equal ones the same; 0.5 for what is not scored."""
    ranks = np.full(len(values), 0.5)
    scored = members[np.isfinite(values[members])]
    _, place, counts = np.unique(values[scored], return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks[scored] = ((ends - counts / 2) / max(1, len(scored)))[place]
    return ranks
