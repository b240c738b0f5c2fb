"""The end of a scan and of every scoring: decide, write what was found, train on what is kept."""

from __future__ import annotations

import hashlib
import platform
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from untaint import run
from untaint.defenses import Detector, Task
from untaint.errors import InputError, RunError
from untaint.examples import Examples
from untaint.findings import obey, write_findings
from untaint.remembering import data_words
from untaint.report import write_report
from untaint.scores import Group, Scores, Verdict
from untaint.training.checkpoint import load_model
from untaint.training.cost import cost_of
from untaint.training.device import device, hardware

__all__ = ["Result", "conclude", "versions"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a scan found: ``rejected`` rows and their ``groups``, ``kept`` examples, scores, verdict, and the run's folder."""

    run: Path
    examples: Examples
    scores: Scores
    verdict: Verdict
    summary: dict[str, Any]
    groups: tuple[Group, ...] = ()
    outside: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def rejected(self) -> NDArray[np.int64]:
        """The rows that were set aside, ascending: int64."""
        return np.setdiff1d(np.flatnonzero(self.verdict.rejected), self.outside)

    @property
    def kept(self) -> Examples:
        """The examples to train on: a map-style data set of (picture, label)."""
        return self.examples.without(np.concatenate([self.rejected, self.outside]))

    def report(self, out: Path | str | None = None) -> Path:
        """Write the page that shows what was found, and return its path."""
        return write_report(self.run, out)

    def model(self) -> nn.Module:
        """Return the clean model that the scan trained, in eval mode; it must be of this verdict."""
        if _belongs(self.run) != _hash(self.rejected):
            raise RunError(
                f"{self.run / 'model'} is not there or was trained without other pictures than are rejected now. "
                "Train one of this verdict: untaint.train(result.kept)."
            )
        return load_model(self.run / "model")

    def __repr__(self) -> str:
        """Say how many were set aside."""
        return f"<{len(self.rejected):,} of {self.summary['rows']:,} pictures set aside, in {self.run}>"


def conclude(task: Task, judge: Detector, scores: Scores, marks: str | Path | None, retrain: bool) -> Result:
    """Decide, write what was found, and train on what is kept."""
    verdict = obey(judge.decide(scores, task), Path(marks) if marks else None, task)
    aside = np.flatnonzero(verdict.rejected)
    scores = replace(scores, triggers=tuple(one for one in scores.triggers if np.isin(one.rows, aside).any()))
    facts, groups = _facts(task), judge.groups(scores, verdict, task)
    trained = [name for name, *_ in judge.work(task)]

    def written(stages: Sequence[str]) -> dict[str, Any]:
        told = {**facts, "stages": _timings(task.scratch, stages)}
        return write_findings(task, judge, scores, verdict, groups, told)

    result = Result(
        run=task.scratch,
        examples=task.examples,
        scores=scores,
        verdict=verdict,
        summary=written(trained),
        groups=groups,
        outside=task.outside,
    )
    if retrain and len(result.kept) < 2:
        raise InputError(
            f"the rule {verdict.rule} sets {len(result.rejected):,} of {result.summary['rows']:,} pictures aside, so that "
            f"none is left to train on. Give a stricter rule: untaint score {task.scratch} --reject false-discovery:q=0.05."
        )
    if retrain:
        _refuse_stale_model(task, result.rejected)
        judge.retrain(task, result.rejected)
        facts["clean_model"] = {"kept_rows": len(result.kept), "folder": str(task.scratch / "model")}
        result = replace(result, summary=written([*trained, "model"]))
    result.report()
    return result


def _facts(task: Task) -> dict[str, Any]:
    """Return what a summary says beside what was found."""
    without = shlex.quote(str(task.scratch / "rejected.txt"))
    return {
        "preset": task.preset.name,
        "clean_model": None,
        "hardware": hardware(task.where or device()),
        "versions": versions(),
        "next": f"untaint train {data_words(task.scratch)} --without {without} --out runs/clean --model resnet18",
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("untaint", "torch", "torchvision", "numpy", "scikit-learn", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _timings(folder: Path, stages: Sequence[str]) -> list[dict[str, Any]]:
    """Return seconds per model that was trained, over all the calls that it took."""
    seconds = {stage: cost_of(folder / stage).seconds for stage in stages}
    return [{"name": stage, "seconds": round(taken, 1)} for stage, taken in seconds.items() if taken]


def _refuse_stale_model(task: Task, rejected: NDArray[np.int64]) -> None:
    """A clean model, finished or not, belongs to one verdict: one of another verdict is trained anew."""
    if _belongs(task.scratch) not in (None, _hash(rejected)):
        shutil.rmtree(task.scratch / "model", ignore_errors=True)
    run.write_json(task.scratch / "model-rows.json", _hash(rejected))


def _belongs(folder: Path) -> str | None:
    """Return which rejected rows the clean model of a run was trained without, as a hash."""
    path = folder / "model-rows.json"
    return str(run.read_json(path)) if path.exists() else None


def _hash(rows: NDArray[np.int64]) -> str:
    return hashlib.sha256(rows.tobytes()).hexdigest()
