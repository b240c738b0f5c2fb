"""Scoring again what a scan or a Recorder left: another rule or other options, and nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untaint import run, spec
from untaint.concluding import Result, conclude
from untaint.defenses import DEFENSES, Detector, Task
from untaint.defenses.badloss import BaDLoss
from untaint.errors import ProbeError, RunError, SpecError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.recipe import preset, preset_of
from untaint.remembering import recall, recalled_probes
from untaint.scanning import detector_of, rule_of
from untaint.scores import Rule
from untaint.trajectories import Trajectories

__all__ = ["score"]


def score(
    folder: str | Path,
    *,
    probes: Any = None,
    detector: str | Detector | None = None,
    reject: str | Rule | None = None,
    keep_per_class: float | None = None,
    marks: str | Path | None = None,
    examples: Examples | None = None,
    progress: Progress | None = None,
) -> Result:
    """Score a finished run again, with other options or another rule; nothing is trained.

    Also scores what a ``Recorder`` left in any training loop: then ``probes`` (rows, keys or a
    mask) must be given, and ``examples`` may be, so that people see keys and pictures.

    Raises RunError for options that what was trained depends on, naming the command that can.
    """
    path = Path(folder)
    told = progress or Silent()
    if not (path / "settings.json").exists():
        return _score_recording(path, probes, detector, reject, keep_per_class, marks, examples, told)
    before = _settings_of(path)
    judge = detector_of(detector or before["detector"])
    _refuse_retraining(path, detector_of(before["detector"]), judge)
    chosen = preset_of(before["preset"])
    rule = rule_of(reject or before["reject"], keep_per_class)
    known = examples or recall(path, told)
    own, outside = recalled_probes(path)
    task = Task(
        examples=known,
        probes=own if probes is None else _other_probes(path, known, probes, judge),
        outside=outside,
        preset=chosen,
        rule=rule,
        scratch=path,
        seed=before["seed"],
        progress=told,
        train=False,
    )
    with run.RunDirectory(path, before):  # nobody else may be writing there
        return conclude(task, judge, judge.score(task), marks, retrain=False)


def _settings_of(path: Path) -> dict[str, Any]:
    """Return what a scan was made from; it must have found something."""
    before = run.read_sealed(path / "settings.json")
    if before.get("kind") != "scan":
        raise RunError(
            f"{path} is a folder of untaint, but of no scan. Give one that untaint scan, or a Recorder, wrote."
        )
    if not (path / "scores.parquet").exists():
        raise RunError(f"{path} is not finished: nothing was found yet. Give its untaint scan command again first.")
    return before


def _refuse_retraining(path: Path, before: Detector, now: Detector) -> None:
    """Refuse options that would have trained other models."""
    if type(before) is not type(now):
        if isinstance(now, BaDLoss) and set(now.stages) <= set(before.stages):
            raise RunError(
                f"each watcher of {path} trained on half the pictures, badloss wants one that trained on all. "
                f"Run it anew: untaint scan --detector {spec.text(DEFENSES.name_of(now), now)} --out NEW."
            )
        raise RunError(
            f"{path} was made by {DEFENSES.name_of(before)}. Run another detector anew: untaint scan --detector {spec.text(DEFENSES.name_of(now), now)} --out NEW."
        )
    for name in now.fixed:
        if getattr(before, name) != getattr(now, name):
            raise RunError(
                f"{name} = {getattr(now, name)} would change whom the witness trusts (it was {getattr(before, name)}), and that needs training. "
                f"Give: untaint scan --detector {spec.text(DEFENSES.name_of(now), now)} --out NEW."
            )


def _other_probes(path: Path, known: Examples, probes: Any, judge: Detector) -> NDArray[np.int64]:
    """Return the rows of other probes than the run's own, if nothing that was trained depends on them."""
    rows = known.find(probes)
    if judge.fixed:
        raise RunError(
            f"whom the witness of {path} trusts depends on its probes. Give other probes to a new run: untaint scan --probes FILE --out NEW."
        )
    return rows


def _score_recording(
    path: Path,
    probes: Any,
    detector: str | Detector | None,
    reject: str | Rule | None,
    keep_per_class: float | None,
    marks: str | Path | None,
    examples: Examples | None,
    told: Progress,
) -> Result:
    """Score trajectories that a Recorder left: no witness, so a distance to the probes."""
    if not (path / "labels.npy").exists():
        raise RunError(
            f"{path} is no run: it holds neither settings.json nor labels.npy. Give a folder of untaint scan, or of a Recorder."
        )
    labels = np.asarray(run.load_array(path / "labels.npy"))
    known = examples or Examples.of(np.broadcast_to(np.uint8(127), (len(labels), 3, 1, 1)), labels, source=str(path))
    if probes is None:
        raise ProbeError(
            "no probes were given. Give the rows of pictures somebody has looked at: score(folder, probes=rows)."
        )
    rows = known.find(probes)
    judge = detector_of(detector or BaDLoss(observable="margin", centre="class"))
    if not isinstance(judge, BaDLoss):
        raise SpecError(
            f"'{DEFENSES.name_of(judge)}' needs models of its own; a recording can be scored by badloss. Leave the detector out."
        )
    rule = rule_of(reject or preset("fast").reject, keep_per_class)
    task = Task(
        examples=known, probes=rows, preset=preset("fast"), rule=rule, scratch=path, seed=0, progress=told, train=False
    )
    scores = judge.compare(Trajectories(path / "trajectories"), labels, rows)
    return conclude(task, judge, scores, marks, retrain=False)
