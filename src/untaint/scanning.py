"""The whole method: watch, score, cross-examine, set aside, retrain, report.

``scan`` hands a Task to a Detector, asks the rule, writes what was found,
trains on what was kept. ``score`` does the last part again, with another rule or other options,
without training anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint import rng, run, spec
from untaint.defenses import DEFENSES, Detector, Task
from untaint.defenses.badloss import BaDLoss
from untaint.errors import InputError, ProbeError, RunError, SourceError, SpecError
from untaint.examples import Examples
from untaint.findings import marked, obey, write_findings
from untaint.models.build import build, require
from untaint.progress import Progress, Silent
from untaint.recipe import Preset, preset, preset_of
from untaint.report import write_report
from untaint.scores import KeepPerClass, Rule, Scores, Verdict, parse_rule, rule_text
from untaint.sources import load
from untaint.sources.words import words
from untaint.training.checkpoint import load_model
from untaint.training.device import Trial, device, hardware, keyed, trial
from untaint.training.loop import fit, seconds_of
from untaint.trajectories import Trajectories

__all__ = ["Result", "scan", "score", "suggest_probes", "train", "with_probes"]

FEWEST_PROBES = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a scan found: ``rejected`` rows, ``kept`` examples, scores, verdict, and the run's folder."""

    run: Path
    examples: Examples
    scores: Scores
    verdict: Verdict
    summary: dict[str, Any]
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


def scan(
    data: Any,
    *,
    probes: Any,
    out: str | Path,
    preset: str | Preset = "fast",
    detector: str | Detector | None = None,
    reject: str | Rule | None = None,
    keep_per_class: float | None = None,
    retrain: bool = True,
    marks: str | Path | None = None,
    model: Callable[[], nn.Module] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    where: torch.device | None = None,
    **reading: Any,
) -> Result:
    """Find the poisoned pictures in a training set and train a model without them; resumes if interrupted.

    Args:
        data: anything ``untaint.load`` takes, or Examples.
        probes: pictures somebody has looked at: a text file of keys, keys, rows, a mask; or a folder of
            (or Examples with) trusted pictures from elsewhere.
        out: the run's folder.
        preset: ``fast`` (cross-examination with the small proxy) or ``paper`` (BaDLoss as published).
        detector: another detector, ``name:key=value,...``.
        reject: the rule that decides, ``false-discovery:q=0.1``, ``fraction:share=0.4``, ``gap``, ``above:score=3``.
        keep_per_class: a share of each class that is kept whatever the rule says.
        retrain: False leaves out the clean model.
        marks: a file of pictures that somebody marked fine or poison in the report.
        model: makes an untrained network of your own, instead of the preset's.
        seed: everything random depends on it and on the row alone.
        progress: is told how far things are.
        where: the device; found out if not given.
        reading: ``split``, ``size``, ``image_column``, ``label_column`` as ``untaint.load`` takes them.

    Raises:
        InputError: data, probes or settings cannot be used, or ``out`` was begun with others.
        TrainingError: the loss is not finite.
    """
    told = progress or Silent()
    chosen = _preset(preset)
    judge = _detector(detector or chosen.detector)
    judge.require(chosen)
    rule = _rule(reject or chosen.reject, keep_per_class)
    if model is None:
        require(chosen.watch.model)
    examples = load(data, progress=told, **reading)
    examples, rows, outside = with_probes(examples, probes, told)
    if marks:  # now, not after an hour of training
        marked(examples, rows, Path(marks))
    place = where or device()
    settings = {
        "kind": "scan",
        "data": examples.fingerprint,
        "probes": hashlib.sha256(rows.tobytes() + outside.tobytes()).hexdigest(),
        "preset": dataclasses.asdict(chosen),
        "detector": spec.text(DEFENSES.name_of(judge), judge),
        "reject": rule_text(rule),
        "model": "custom" if model else chosen.watch.model,
        "seed": seed,
    }
    with run.RunDirectory(out, settings) as folder:
        _remember(folder.path, examples, outside, data, reading)
        found = _machine(folder.path, chosen, examples, place, model)
        exact = chosen.changed(precision=found.precision)
        task = Task(
            examples=examples,
            probes=rows,
            outside=outside,
            preset=exact,
            rule=rule,
            scratch=folder.path,
            seed=seed,
            progress=told,
            model=model,
            where=place,
        )
        _announce(task, judge, found, retrain)
        return _conclude(task, judge, judge.score(task), marks, retrain)


def _conclude(task: Task, judge: Detector, scores: Scores, marks: str | Path | None, retrain: bool) -> Result:
    """Decide, write what was found, and train on what is kept."""
    verdict = obey(judge.decide(scores, task), Path(marks) if marks else None, task)
    facts: dict[str, Any] = {
        "preset": task.preset.name,
        "clean_model": None,
        "hardware": hardware(task.where or device()),
        "versions": versions(),
        "next": f"untaint train {_data_words(task.scratch)} --without {shlex.quote(str(task.scratch / 'rejected.txt'))} --out runs/clean --model resnet18",
    }
    result = Result(
        run=task.scratch,
        examples=task.examples,
        scores=scores,
        verdict=verdict,
        summary=write_findings(task, judge, scores, verdict, {**facts, "stages": _timings(task.scratch, judge.stages)}),
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
        summary = write_findings(
            task, judge, scores, verdict, {**facts, "stages": _timings(task.scratch, [*judge.stages, "model"])}
        )
        result = replace(result, summary=summary)
    result.report()
    return result


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
    before = run.read_json(path / "settings.json")
    if before.get("kind") != "scan":
        raise RunError(
            f"{path} is a folder of untaint, but of no scan. Give one that untaint scan, or a Recorder, wrote."
        )
    if not (path / "probes.npy").exists():
        raise RunError(f"{path} is not finished: nothing was found yet. Give its untaint scan command again first.")
    judge = _detector(detector or before["detector"])
    _refuse_retraining(path, _detector(before["detector"]), judge)
    chosen = preset_of(before["preset"])
    rule = _rule(reject or before["reject"], keep_per_class)
    known = examples or _recall(path, told)
    facts = run.read_json(path / "data.json")
    outside = np.asarray(facts["outside"], dtype=np.int64)
    rows = np.asarray(run.load_array(path / "probes.npy")) if probes is None else known.find(probes)
    if probes is not None and judge.fixed:
        raise RunError(
            f"whom the witness of {path} trusts depends on its probes. Give other probes to a new run: untaint scan --probes FILE --out NEW."
        )
    task = Task(
        examples=known,
        probes=rows,
        outside=outside,
        preset=chosen,
        rule=rule,
        scratch=path,
        seed=before["seed"],
        progress=told,
        train=False,
    )
    with run.RunDirectory(path, before):  # nobody else may be writing there
        return _conclude(task, judge, judge.score(task), marks, retrain=False)


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
    judge = _detector(detector or BaDLoss(observable="margin", centre="class"))
    if not isinstance(judge, BaDLoss):
        raise SpecError(
            f"'{DEFENSES.name_of(judge)}' needs models of its own; a recording can be scored by badloss. Leave the detector out."
        )
    rule = _rule(reject or preset("fast").reject, keep_per_class)
    task = Task(
        examples=known, probes=rows, preset=preset("fast"), rule=rule, scratch=path, seed=0, progress=told, train=False
    )
    scores = judge.compare(Trajectories(path / "trajectories"), labels, rows)
    return _conclude(task, judge, scores, marks, retrain=False)


def train(
    examples: Examples,
    *,
    out: str | Path | None = None,
    preset: str | Preset = "fast",
    model: Callable[[], nn.Module] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    where: torch.device | None = None,
) -> nn.Module:
    """Return a model trained from scratch, with augmentation, on the members of ``examples``.

    A plain ``nn.Module`` in eval mode for float pictures in [0, 1]. ``out``: a folder to keep it
    in (``untaint.load_model`` gives it back), resumable.
    """
    chosen = _preset(preset)
    told = progress or Silent()
    if model is None:
        require(chosen.retrain.model)
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return fit(examples, chosen.retrain, Path(folder), seed=seed, model=model, where=where, progress=told)
    recipe = dataclasses.asdict(replace(chosen.retrain, model="custom") if model else chosen.retrain)
    settings = {"kind": "model", "data": examples.fingerprint, "recipe": recipe, "seed": seed}
    with run.RunDirectory(out, settings) as folder:
        return fit(examples, chosen.retrain, folder.path, seed=seed, model=model, where=where, progress=told)


def with_probes(
    examples: Examples, probes: Any, told: Progress
) -> tuple[Examples, NDArray[np.int64], NDArray[np.int64]]:
    """Return the examples, the probes' rows, and which of these were appended from a separate folder."""
    nothing = np.empty(0, dtype=np.int64)
    folder = isinstance(probes, (str, Path)) and Path(probes).is_dir()
    if folder or isinstance(probes, Examples):
        trusted = load(probes, size=examples.images.shape[2], progress=told) if folder else probes
        examples, rows = append(examples, trusted)
        outside = rows
    else:
        rows, outside = np.intersect1d(examples.find(probes), examples.rows), nothing
    if len(rows) < FEWEST_PROBES:
        raise ProbeError(
            f"there are {len(rows)} probes; give at least {FEWEST_PROBES}, better 250. `untaint probes DATA --suggest 250` draws candidates."
        )
    classes = np.unique(examples.labels[rows])
    if len(classes) == 1:
        only = examples.class_names[int(classes[0])]
        raise ProbeError(
            f"all {len(rows)} probes are of the class '{only}', but the data has {len(examples.class_names)}. Give probes drawn from all of it."
        )
    if len(rows) < 100:
        told.say(f"{len(rows)} probes are few: 250 make the comparison steadier.")
    return examples, rows, outside


def suggest_probes(examples: Examples, count: int, *, balanced: bool = False, seed: int = 0) -> NDArray[np.int64]:
    """Return candidates for probes: drawn uniformly, or the same number of each class; ascending."""
    if not 1 <= count <= len(examples):
        raise ProbeError(
            f"{count} probes were asked for, of {len(examples)} pictures. Give a number between 1 and {len(examples)}."
        )
    if not balanced:
        return rng.choose(seed, "probes", examples.rows, count)
    labels = examples.labels[examples.rows]
    shuffled = rng.order(seed, "probes", 0, examples.rows)
    turn = np.zeros(examples.total, dtype=np.int64)  # the how manieth of its class each row is
    for label in np.unique(labels):
        members = shuffled[examples.labels[shuffled] == label]
        turn[members] = np.arange(len(members))
    return np.sort(shuffled[np.argsort(turn[shuffled], kind="stable")][:count])


def append(examples: Examples, trusted: Examples) -> tuple[Examples, NDArray[np.int64]]:
    """Return the examples with trusted pictures as further rows, and these rows."""
    number = {name: label for label, name in enumerate(examples.class_names)}
    unknown = [name for name in trusted.class_names if name not in number]
    if unknown:
        raise ProbeError(
            f"the trusted pictures have a class '{unknown[0]}', which the data has not ({', '.join(examples.class_names[:5])}, ...). Name the folders as the data's classes."
        )
    if trusted.images.shape[1:] != examples.images.shape[1:]:
        raise ProbeError(
            f"the trusted pictures are {trusted.images.shape[1:]}, the data's {examples.images.shape[1:]}. Load both at one size."
        )
    labels = np.array([number[trusted.class_names[label]] for label in trusted.labels[trusted.rows]], dtype=np.int64)
    rows = np.arange(examples.total, examples.total + len(trusted))
    return replace(
        examples,
        images=np.concatenate([examples.images, trusted.images[trusted.rows]]),
        labels=np.concatenate([examples.labels, labels]),
        keys=[*examples.keys, *(f"probes/{trusted.keys[row]}" for row in trusted.rows)],
        rows=np.concatenate([examples.rows, rows]),
    ), rows


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
    seconds = {stage: seconds_of(folder / stage) for stage in stages}
    return [{"name": stage, "seconds": round(taken, 1)} for stage, taken in seconds.items() if taken]


def _preset(given: str | Preset) -> Preset:
    return preset(given) if isinstance(given, str) else given


def _detector(given: str | Detector) -> Detector:
    made = DEFENSES.build(given) if isinstance(given, str) else given
    if not isinstance(made, Detector):
        raise SpecError(f"'{given}' does not score examples. Give a detector: badloss or cross-examination.")
    return made


def _rule(given: str | Rule, keep_per_class: float | None) -> Rule:
    made = parse_rule(given) if isinstance(given, str) else given
    return made if keep_per_class is None else KeepPerClass(rule=made, at_least=keep_per_class)


def _machine(
    path: Path, chosen: Preset, examples: Examples, place: torch.device, model: Callable[[], nn.Module] | None
) -> Trial:
    """Return the trial of this run: made once and written down, so that a resumed run computes alike."""
    known = path / "machine.json"
    if known.exists():
        return Trial(**run.read_json(known))
    size: tuple[int, int, int] = tuple(examples.images.shape[1:])
    with keyed(place, 0, "trial"):
        network = model() if model else build(chosen.watch.model, len(examples.class_names), size)
    found = trial(network, chosen.watch, size, place)
    run.write_json(known, dataclasses.asdict(found))
    return found


def _announce(task: Task, judge: Detector, found: Trial, retrain: bool) -> None:
    """Say how long what is still to be done will take."""
    stages = judge.work(task)
    if retrain:
        stages.append(("model", len(task.examples) * task.preset.retrain.epochs, 0))
    left = [work for stage, *work in stages if run.finished(task.scratch / stage) is None]
    seconds = sum(training * found.train + recording * found.evaluate for training, recording in left)
    if len(left) < len(stages):
        task.progress.say(f"{len(stages) - len(left)} of {len(stages)} stages are done already.")
    if seconds > 2:
        task.progress.say(
            f"{len(left)} models to train, about {_minutes(seconds)} ({found.precision}). Ctrl-C is safe: the same command goes on."
        )


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} seconds"
        if seconds < 90
        else f"{seconds / 60:.0f} minutes"
        if seconds < 5400
        else f"{seconds / 3600:.1f} hours"
    )


def _remember(path: Path, examples: Examples, outside: NDArray[np.int64], data: Any, reading: dict[str, Any]) -> None:
    """Write down what the data was, so that the run can be scored again without its pictures."""
    source = str(data) if isinstance(data, (str, Path)) else None
    facts = {
        "source": source,
        "reading": reading,
        "name": examples.source,
        "class_names": list(examples.class_names),
        "size": list(examples.images.shape[1:]),
        "outside": outside.tolist(),
        "keys": list(examples.keys),
    }
    run.write_json(path / "data.json", facts)
    run.save_array(path / "labels.npy", examples.labels)
    run.save_array(path / "rows.npy", examples.rows)


def _data_words(path: Path) -> str:
    """Return the words that name a run's data in a shell; DATA if it was handed over in Python."""
    facts = run.read_json(path / "data.json") if (path / "data.json").exists() else {}
    return words(facts["source"], **facts["reading"]) if facts.get("source") else "DATA"


def _recall(path: Path, told: Progress) -> Examples:
    """Return a run's examples: read again where the source is still there and the same, else without pictures."""
    facts = run.read_json(path / "data.json")
    labels, rows = np.asarray(run.load_array(path / "labels.npy")), np.asarray(run.load_array(path / "rows.npy"))
    blank = np.broadcast_to(np.uint8(127), (len(labels), *facts["size"]))
    known = replace(
        Examples.of(blank, labels, class_names=facts["class_names"], keys=facts["keys"], source=facts["name"]),
        rows=rows,
    )
    if facts["source"] is None:
        return known
    try:
        found = load(facts["source"], progress=told, **facts["reading"])
    except (SourceError, InputError) as error:
        told.say(f"the pictures are not there any more ({error}); the report goes without new ones.")
        return known
    if list(found.keys) == facts["keys"]:
        return replace(known, images=found.images, unreadable=found.unreadable)
    return known


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
