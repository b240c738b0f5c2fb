"""The whole method: watch, score, cross-examine, set aside, retrain, report.

``scan`` hands a Task to a Detector, and ``conclude`` asks the rule, writes what was found, trains
on what was kept. ``rescoring.score`` does the last part again, with another rule or other options,
without training anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from untaint import run, spec
from untaint.budgeting import LADDER, machine, minutes_text, seconds_of, within
from untaint.concluding import Result, conclude
from untaint.defenses import DEFENSES, Defense, Detector, Task
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.findings import marked
from untaint.models.build import require
from untaint.probing import with_probes
from untaint.progress import Progress, Silent
from untaint.recipe import Preset, preset
from untaint.remembering import remember
from untaint.resisting import resist, resisting
from untaint.scores import FalseDiscovery, KeepPerClass, Rule, parse_rule, rule_text
from untaint.sources import load
from untaint.training.device import Trial, device
from untaint.training.loop import fit

__all__ = ["detector_of", "rule_of", "scan", "train"]

KEPT = 0.05  # of each class, whatever false-discovery says, unless another share is asked for
FEWEST = 500  # pictures: of fewer, models of a few epochs learn next to nothing


def scan(
    data: Any,
    *,
    out: str | Path,
    probes: Any = None,
    preset: str | Preset = "fast",
    detector: str | Detector | None = None,
    reject: str | Rule | None = None,
    keep_per_class: float | None = None,
    retrain: bool = True,
    marks: str | Path | None = None,
    model: Callable[[], nn.Module] | None = None,
    budget: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    where: torch.device | None = None,
    **reading: Any,
) -> Result:
    """Find the poisoned pictures in a training set and train a model without them; resumes if interrupted.

    Args:
        data: anything ``untaint.load`` takes, or Examples.
        probes: pictures somebody has looked at: a text file of keys, keys, rows, a mask; or a folder of
            (or Examples with) trusted pictures from elsewhere. None: pictures drawn by lot stand in for them,
            which may be poisoned themselves, and nothing known to be clean checks the result.
        out: the run's folder.
        preset: ``fast`` (cross-examination with the small proxy) or ``paper`` (BaDLoss as published).
        detector: another detector, ``name:key=value,...``; one that has a usual rule decides by that unless ``reject`` is given.
        reject: the rule that decides, ``false-discovery:q=0.1``, ``fraction:share=0.4``, ``gap``, ``above:score=3``.
        keep_per_class: a share of each class that is kept whatever the rule says; with ``false-discovery``, 0.05 if nothing is given.
        retrain: False leaves out the clean model.
        marks: a file of pictures that somebody marked fine or poison in the report.
        model: makes an untrained network of your own, instead of the preset's.
        budget: minutes that the scan may take on this machine: the best detector that fits is taken.
        seed: everything random depends on it and on the row alone.
        progress: is told how far things are.
        where: the device; found out if not given.
        reading: ``split``, ``size``, ``image_column``, ``label_column`` as ``untaint.load`` takes them.

    Raises:
        InputError: data, probes or settings cannot be used, ``out`` was begun with others, or nothing fits into the budget.
        TrainingError: the loss is not finite.
    """
    told = progress or Silent()
    chosen = _preset(preset)
    if budget is not None and (detector or chosen.detector not in LADDER):
        raise SpecError(
            "with a budget the detector is chosen for you. Leave out detector, take the preset fast, or give no budget."
        )
    judge = detector_of(detector or chosen.detector)
    judge.require(chosen)
    rule = rule_of(reject or (detector and judge.usual_rule) or chosen.reject, keep_per_class)
    if model is None:
        require(chosen.watch.model)
    examples, rows, outside = with_probes(load(data, progress=told, **reading), probes, told)
    if marks:  # now, not after an hour of training
        marked(examples, rows, Path(marks))
    task = Task(
        examples=examples,
        probes=rows,
        outside=outside,
        preset=chosen,
        rule=rule,
        scratch=Path(out),
        seed=seed,
        progress=told,
        model=model,
        where=where or device(),
    )
    tried = None
    if budget is not None:
        judge, tried = within(budget, task, retrain)
        if not reject and judge.usual_rule:
            task = replace(task, rule=rule_of(judge.usual_rule, keep_per_class))
    _enough(task, judge)
    settings = ({} if budget is None else {"budget": budget}) | _settings(task, judge)
    with run.RunDirectory(out, settings):
        remember(task.scratch, examples, rows, outside, data, reading)
        found = machine(task, tried)
        task = replace(task, preset=chosen.changed(precision=found.precision))
        _announce(task, judge, found, retrain)
        return conclude(task, judge, judge.score(task), marks, retrain)


def _enough(task: Task, judge: Detector) -> None:
    """Refuse data that are too few for models to learn from."""
    if len(task.examples) < FEWEST and judge.work(task):
        raise InputError(
            f"there are {len(task.examples)} pictures; models learn too little of fewer than {FEWEST} for a verdict by how each is learned. "
            "Look at them yourself, or give --detector pattern (and no budget), which trains nothing."
        )


def _settings(task: Task, judge: Detector) -> dict[str, Any]:
    """Return what a run is made from; a folder that was begun with anything else is refused."""
    return {
        "kind": "scan",
        "data": task.examples.fingerprint,
        "probes": hashlib.sha256(task.probes.tobytes() + task.outside.tobytes()).hexdigest(),
        "preset": dataclasses.asdict(task.preset),
        "detector": spec.text(DEFENSES.name_of(judge), judge),
        "reject": rule_text(task.rule),
        "model": "custom" if task.model else task.preset.watch.model,
        "seed": task.seed,
    }


def _announce(task: Task, judge: Detector, found: Trial, retrain: bool) -> None:
    """Say how long what is still to be done will take."""
    stages = [stage for stage, *_ in judge.work(task)] + ["model"] * retrain
    left = [stage for stage in stages if run.finished(task.scratch / stage) is None]
    seconds = seconds_of(task, judge, retrain, found)
    if len(left) < len(stages):
        task.progress.say(f"{len(stages) - len(left)} of {len(stages)} stages are done already.")
    if seconds > 2:
        task.progress.say(
            f"{len(left)} models to train, about {minutes_text(seconds)} ({found.precision}). Ctrl-C is safe: the same command goes on."
        )


def train(
    examples: Examples,
    *,
    out: str | Path | None = None,
    preset: str | Preset = "fast",
    model: Callable[[], nn.Module] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    where: torch.device | None = None,
    after_epoch: Callable[[nn.Module, int], None] | None = None,
    defense: str | Defense | None = None,
    probes: Any = None,
    set_aside: Any = (),
) -> nn.Module:
    """Return a model trained from scratch, with augmentation, on the members of ``examples``.

    A plain ``nn.Module`` in eval mode for float pictures in [0, 1]. ``out``: a folder to keep it
    in (``untaint.load_model`` gives it back), resumable. ``after_epoch``: is given the model, in eval mode, and the number of
    each epoch that is trained now, from 0, to look at it. ``defense``: a training that resists poison, ``name:key=value,...``, such as ``eigenguard`` or ``d-st``;
    ``probes``: for it, pictures known to be clean, as ``scan`` takes them; ``set_aside``: rows left out, for one that unlearns them.
    """
    chosen = _preset(preset)
    told = progress or Silent()
    if model is None:
        require(chosen.retrain.model)
    if defense is not None:
        if after_epoch is not None:
            raise SpecError("after_epoch looks at a plain training, not at one by a defence. Leave out one of them.")
        return _resist(examples, resisting(defense), out, chosen, probes, set_aside, model, seed, told, where)
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return fit(
                examples,
                chosen.retrain,
                Path(folder),
                seed=seed,
                model=model,
                where=where,
                progress=told,
                after_epoch=after_epoch,
            )
    recipe = dataclasses.asdict(replace(chosen.retrain, model="custom") if model else chosen.retrain)
    settings = {"kind": "model", "data": examples.fingerprint, "recipe": recipe, "seed": seed}
    with run.RunDirectory(out, settings) as folder:
        return fit(
            examples,
            chosen.retrain,
            folder.path,
            seed=seed,
            model=model,
            where=where,
            progress=told,
            after_epoch=after_epoch,
        )


def _resist(
    examples: Examples,
    judge: Defense,
    out: str | Path | None,
    chosen: Preset,
    probes: Any,
    set_aside: Any,
    model: Callable[[], nn.Module] | None,
    seed: int,
    told: Progress,
    where: torch.device | None,
) -> nn.Module:
    """Return the model that a defence makes, kept in ``out`` if there is one."""
    whole, rows = examples, np.empty(0, dtype=np.int64)
    if probes is not None:
        whole, rows, _ = with_probes(examples, probes, told)
    with tempfile.TemporaryDirectory() if out is None else contextlib.nullcontext(out) as folder:
        return resist(
            whole,
            judge,
            Path(folder),
            probes=rows,
            set_aside=np.asarray(set_aside, dtype=np.int64),
            preset=chosen,
            model=model,
            seed=seed,
            progress=told,
            where=where,
        )


def _preset(given: str | Preset) -> Preset:
    return preset(given) if isinstance(given, str) else given


def detector_of(given: str | Detector) -> Detector:
    """Return the detector of that name and these options, or the one given."""
    made = DEFENSES.build(given) if isinstance(given, str) else given
    if not isinstance(made, Detector):
        raise SpecError(f"'{given}' does not score examples. Give a detector, such as badloss or cross-examination.")
    return made


def rule_of(given: str | Rule, keep_per_class: float | None) -> Rule:
    """Return the rule of that text, or the one given; it keeps a share of each class if asked to.

    One that decides by itself how many go leaves no class without pictures.
    """
    made = parse_rule(given) if isinstance(given, str) else given
    if keep_per_class is None and isinstance(made, FalseDiscovery):
        keep_per_class = KEPT
    return made if keep_per_class is None else KeepPerClass(rule=made, at_least=keep_per_class)
