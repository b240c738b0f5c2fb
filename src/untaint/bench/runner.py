"""Runs a grid: each cell once, the models of a setting shared by its defences, several processes side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from untaint import run
from untaint.bench.case import Case, outline, prepare, read
from untaint.bench.grid import Defender, Grid, Setting
from untaint.bench.identity import differences, digest, file_name, origin
from untaint.bench.measures import bands, behaviour, detection, histogram, removal, vouching
from untaint.concluding import versions
from untaint.defenses import DEFENSES, Defense, Detector, Outcome, Task
from untaint.defenses.badloss import BaDLoss
from untaint.defenses.oracle import Oracle
from untaint.errors import InputError, RunError, UntaintError
from untaint.examples import Examples
from untaint.progress import Progress, Silent
from untaint.recipe import Precision
from untaint.scores import parse_rule
from untaint.training.checkpoint import load_model
from untaint.training.cost import NAME, Meter, cost_of
from untaint.training.device import device, hardware
from untaint.trajectories import Trajectories

__all__ = ["Cell", "Runner", "cells_of", "results_of"]

AFTER = "then"  # folder of what a second defence leaves


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One defence in one setting, and the file of its result.

    ``origin``: settings, recipes and the versions that are raised by hand. ``data``: hash of the
    pictures, None if they were not read: then a result is taken on trust to be of the same ones.
    """

    setting: Setting
    defender: Defender
    origin: dict[str, Any]
    path: Path
    data: str | None = None

    def result(self, progress: Progress | None = None) -> dict[str, Any] | None:
        """Return what was found, or None if it is still to be found; a file that was altered is named and not counted."""
        if not self.path.exists():
            return None
        try:
            facts = run.read_sealed(self.path, "It does not count; the cell is to be run again.")
        except RunError as error:
            (progress or Silent()).say(str(error))
            return None
        odd = differences(facts.get("origin"), self.origin)
        if self.data not in (None, facts.get("data")):
            odd.append("the pictures are others")
        if odd and progress is not None:
            progress.say(f"{self.path} is older ({'; '.join(odd[:3])}); the cell is to be run again.")
        return None if odd else facts


def cells_of(grid: Grid, results: Path) -> list[Cell]:
    """Return the cells of a grid in order, and where their results are kept; reads no pictures."""
    return [
        Cell(
            setting=setting,
            defender=defender,
            origin=origin(setting, defender),
            path=results / file_name(setting, defender),
        )
        for setting, defenders in grid.cells
        for defender in defenders
    ]


class Runner:
    """Runs the cells of a grid and keeps a JSON file for each.

    ``results``: the folder of these files; ``work``: where models lie while the cells of their setting
    are run (removed afterwards unless ``keep``). ``retry``: run cells that failed again. Any number of
    processes may run the same grid on the same folders: each takes a setting that nobody else is at.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        results: Path,
        work: Path,
        progress: Progress | None = None,
        keep: bool = False,
        retry: bool = False,
        where: torch.device | None = None,
    ) -> None:
        self.grid, self.results, self.work, self.keep, self.retry = grid, results, work, keep, retry
        self.progress = progress or Silent()
        self.where = where or device()
        self._data: dict[str, tuple[Examples, Examples]] = {}
        self._hashes: dict[str, str] = {}
        self._seconds: list[float] = []
        self._precisions: dict[tuple[Any, ...], Precision] = {}

    def data(self, name: str) -> tuple[Examples, Examples]:
        """Return the training and test pictures of a data set, read once."""
        if name not in self._data:
            self._data[name] = train, test = read(self.grid.sources[name], self.progress)
            self._hashes[name] = digest([train.fingerprint, test.fingerprint])
            if train.class_names != test.class_names:
                raise InputError(
                    f"the classes of '{name}' differ in its training and test part. Give parts of one data set."
                )
        return self._data[name]

    def check(self) -> None:
        """Raise InputError for the first setting that cannot be; looks at labels only, before anything is run."""
        for setting, _ in self.grid.cells:
            try:
                outline(setting, self.data(setting.data)[0])
            except InputError as error:
                raise InputError(f"{setting.title()}, seed {setting.seed}: {error}") from error

    def run(self) -> int:
        """Run every cell that has no result; returns how many are left to other processes."""
        self.check()
        planned: dict[Setting, list[Cell]] = {}
        for cell in cells_of(self.grid, self.results):
            planned.setdefault(cell.setting, []).append(replace(cell, data=self._hashes[cell.setting.data]))
        cells = [cell for some in planned.values() for cell in some]
        done = sum(self._finished(cell, self.progress) for cell in cells)
        self.progress.say(f"{len(cells)} cells, {done} of them done before.")
        busy = 0
        for setting, some in planned.items():
            if all(map(self._finished, some)):
                continue
            with self._claim(setting) as mine:
                if mine:
                    self._run_setting(setting, some, lambda: len(cells) - sum(map(self._finished, cells)))
                else:
                    busy += len(some) - sum(map(self._finished, some))
        return busy

    def _finished(self, cell: Cell, progress: Progress | None = None) -> bool:
        facts = cell.result(progress)
        return facts is not None and not (self.retry and "error" in facts)

    @contextmanager
    def _claim(self, setting: Setting) -> Iterator[bool]:
        """Hold the setting's claim file while it is run; False if another process does. A killed process holds nothing."""
        path = self.work / "claims" / digest(dataclasses.asdict(setting))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a")  # noqa: SIM115 - closed below
        except OSError as error:
            raise run.explain(error, path) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def _run_setting(self, setting: Setting, cells: list[Cell], left: Callable[[], int]) -> None:
        missing = [cell for cell in cells if not self._finished(cell)]  # another process may have finished some
        if not missing:
            return
        folder = self.work / digest([dataclasses.asdict(setting), self._hashes[setting.data]])[:16]
        case = prepare(setting, *self.data(setting.data), self.progress)
        for cell in missing:
            begin = time.monotonic()
            self.progress.say(
                f"{setting.title()}, seed {setting.seed}: {cell.defender.called}{self._time_left(left())}"
            )
            try:
                found = self._run_cell(case, cell, folder)
            except RunError:
                raise  # a full disk or an altered model is no finding
            except UntaintError as error:
                found = {"error": str(error)}
                self.progress.say(f"failed: {error}")
            run.write_sealed(cell.path, {**_identity(cell, self.where), **found})
            self._seconds.append(time.monotonic() - begin)
        if not self.keep:
            shutil.rmtree(folder, ignore_errors=True)

    def _time_left(self, cells: int) -> str:
        if not self._seconds:
            return f" ({cells} cells to go)"
        minutes = sum(self._seconds) / len(self._seconds) * cells / 60
        return f" ({cells} cells to go, about {minutes:.0f} minutes)" if minutes >= 1 else f" ({cells} cells to go)"

    def _run_cell(self, case: Case, cell: Cell, folder: Path) -> dict[str, Any]:
        judge, task = self._asked(case, cell, folder)
        begin, meter = time.time(), Meter()
        if cell.defender.then and isinstance(judge, Detector):
            outcome = _handed_on(judge.examine(task), DEFENSES.build(cell.defender.then), task)
        elif case.setting.detect_only and isinstance(judge, Detector):
            outcome = judge.examine(task)
        else:
            outcome = judge.defend(task)
        cost = meter.cost()  # of the defence alone; what measuring it cost is apart
        folders = [path for place in (task.scratch, task.scratch / AFTER) for path in sorted(place.glob("*"))]
        stages = {str(path.relative_to(task.scratch)): cost_of(path) for path in folders}
        trained = sum(cost_of(path).core_seconds for path in folders if _since(path / NAME, begin))
        return {
            "cost": cost.facts(),
            "besides": round(max(0.0, cost.core_seconds - trained), 1),  # core seconds that went into no model
            "stages": {name: cost.facts() for name, cost in stages.items() if cost.seconds},
            "precision": task.preset.watch.precision,
            **self._measured(case, judge, outcome, task.scratch),
        }

    def _asked(self, case: Case, cell: Cell, folder: Path) -> tuple[Defense, Task]:
        """Return a cell's defence, and what it is to work on."""
        recipes, judge = case.setting.recipes(), DEFENSES.build(cell.defender.defence)
        rule = cell.defender.rule or (judge.usual_rule if isinstance(judge, Detector) else None) or recipes.reject
        if isinstance(judge, Oracle):
            judge = judge.told(case.ledger.poisoned())
        task = Task(
            examples=case.examples,
            probes=case.probes,
            preset=recipes,
            rule=parse_rule(rule),
            scratch=folder / digest(cell.origin)[:16],
            store=folder / "models",
            seed=case.setting.seed,
            progress=self.progress,
            where=self.where,
        )
        return judge, replace(task, preset=recipes.changed(precision=self._precision(task)))

    def _measured(self, case: Case, judge: Defense, outcome: Outcome, scratch: Path) -> dict[str, Any]:
        """Return the figures of what a defence gave back, by the ledger and the test pictures."""
        meter = Meter()
        found: dict[str, Any] = {
            "rows": len(case.examples),
            "attacks": list(case.ledger.attacks),
            "poisoned": {name: len(case.ledger.poisoned(number)) for number, name in enumerate(case.names)},
        }
        if outcome.scores is not None and outcome.verdict is not None:
            found |= {"detection": detection(case, outcome.scores), "removal": removal(case, outcome.verdict)}
            found["histogram"] = histogram(case, outcome.scores)
            found["probes"] = vouching(case, outcome.scores, outcome.verdict)
        if isinstance(judge, BaDLoss):  # its watcher trained on everything, as in the paper's figures
            found["bands"] = bands(case, Trajectories(scratch / judge.stages[0] / "trajectories"))
        if outcome.model is not None:
            found["model"] = behaviour(case, load_model(outcome.model), self.where)
        return {**found, "measuring": meter.cost().facts()}

    def _precision(self, task: Task) -> Precision:
        """Return the faster precision for the models of a task, tried once for all tasks of the kind."""
        recipe, shape = task.preset.watch, task.examples.images.shape[1:]
        kind = (recipe.model, recipe.precision, shape, len(task.examples.class_names))
        if kind not in self._precisions:
            self._precisions[kind] = task.trial().precision
        return self._precisions[kind]


def _since(path: Path, begin: float) -> bool:
    """Tell whether a file was written after a moment: a model's cost, in this cell and not for another defence before."""
    return path.exists() and path.stat().st_mtime >= begin


def _handed_on(found: Outcome, other: Defense, task: Task) -> Outcome:
    """Return what was found, with the model that another defence makes of what is kept."""
    assert found.verdict is not None
    kept = task.examples.take(np.setdiff1d(task.examples.rows, found.verdict.rows))
    made = other.defend(replace(task, examples=kept, set_aside=found.verdict.rows, scratch=task.scratch / AFTER))
    return replace(found, model=made.model)


def _identity(cell: Cell, where: torch.device) -> dict[str, Any]:
    return {
        "origin": cell.origin,
        "data": cell.data,
        "title": cell.setting.title(),
        "defence": cell.defender.text,
        "hardware": hardware(where),
        "versions": versions(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the commit that the code is of, if it lies in a repository; only noted, never compared."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=5).stdout.strip() or None
    return None


def results_of(grid: Grid, results: Path, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Return the results of a grid's cells that there are, in its order, each with what the grid calls its defence.

    Altered and older files are named and not counted.
    """
    told = progress or Silent()
    found = [(cell, cell.result(told)) for cell in cells_of(grid, results)]
    return [{**facts, "called": cell.defender.called} for cell, facts in found if facts is not None]
