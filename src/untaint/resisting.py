"""A model trained on everything by a defence that resists poison while it trains, for people: what ``untaint train --defense`` does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint import run, spec
from untaint.budgeting import machine
from untaint.defenses import DEFENSES, Defense, Detector, Mender, Task
from untaint.errors import SpecError
from untaint.examples import Examples
from untaint.progress import Progress
from untaint.recipe import Preset
from untaint.scores import parse_rule
from untaint.training.checkpoint import load_model, save_changed
from untaint.training.device import device

__all__ = ["resist", "resisting"]

STAGES = "stages"  # folder in a model's own, of the models on the way to it


def resist(
    examples: Examples,
    judge: Defense,
    out: Path,
    *,
    probes: NDArray[np.int64],
    set_aside: NDArray[np.int64],
    preset: Preset,
    model: Callable[[], nn.Module] | None,
    seed: int,
    progress: Progress,
    where: torch.device | None,
) -> nn.Module:
    """Return the model that a defence makes of ``examples``, and leave it in ``out``; resumes if interrupted.

    ``probes``: rows known to be clean, perhaps none. ``set_aside``: rows that are not among the examples, for a defence that unlearns them.
    """
    rows = np.concatenate([probes, [-1], set_aside])
    settings = {
        "kind": "model",
        "data": examples.fingerprint,
        "recipe": asdict(replace(preset.retrain, model="custom") if model else preset.retrain),
        "defense": spec.text(DEFENSES.name_of(judge), judge),
        "known": hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest(),
        "seed": seed,
    }
    with run.RunDirectory(out, settings) as folder:
        if run.finished(folder.path) is not None:
            return load_model(folder.path, model() if model else None)
        task = Task(
            examples=examples,
            probes=probes,
            set_aside=set_aside,
            preset=preset,
            rule=parse_rule(preset.reject),
            scratch=folder.path / STAGES,
            seed=seed,
            progress=progress,
            model=model,
            where=where or device(),
        )
        task.scratch.mkdir(exist_ok=True)
        task = replace(task, preset=preset.changed(precision=machine(task).precision))
        source = judge.defend(task).model
        assert source is not None
        made = load_model(source, model() if model else None)
        save_changed(folder.path, made, source)
        return made


def resisting(given: str | Defense) -> Defense:
    """Return the defence of that name and these options; raises SpecError for one that finds pictures, or mends a model that is there."""
    made = DEFENSES.build(given) if isinstance(given, str) else given
    if isinstance(made, Detector):
        raise SpecError(f"'{given}' finds pictures: untaint scan DATA --detector {given} --out FOLDER.")
    if isinstance(made, Mender):
        raise SpecError(
            f"'{given}' mends a model that is trained: untaint repair MODEL DATA --defense {given} --probes FILE --out FOLDER."
        )
    return made
