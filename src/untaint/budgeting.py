"""Which scan fits into a given time: the best of a few, from the default down to one that trains nothing in order to score."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from untaint import run
from untaint.defenses import DEFENSES, Detector, Task
from untaint.errors import InputError, SpecError
from untaint.training.device import Trial

__all__ = ["LADDER", "machine", "minutes_text", "seconds_of", "within"]

# the best first; what each is worth is asked by experiments/cost.toml
LADDER = {
    "cross-examination": "the default scan",
    "cross-examination:views=whitened": "one with half as many watchers",
    "pattern": "one by pixels alone",
}
BESIDES = 1.15  # times as long as its models takes a scan as a whole


def within(minutes: float, task: Task, retrain: bool) -> tuple[Detector, Trial | None]:
    """Return the best detector with which a scan takes so many minutes here; the run's own if it was begun with as many.

    The trial by which that was found out is returned too, if one was needed. Raises InputError if even the quickest takes longer.
    """
    if not minutes > 0:
        raise SpecError(f"budget is {minutes:g} minutes; give a number above zero.")
    begun = Path(task.scratch) / "settings.json"
    if begun.exists():
        settings = run.read_sealed(begun)
        if settings.get("budget") == minutes:
            return _detector(settings["detector"]), None
    found = task.trial()
    took = {}
    for text, called in LADDER.items():
        judge = _detector(text)
        took[called] = BESIDES * seconds_of(task, judge, retrain, found)
        if took[called] <= 60 * minutes:
            best, longest = next(iter(took.items()))
            more = f" ({best} takes about {minutes_text(longest)})" if called != best else ""
            task.progress.say(f"Within {minutes:g} minutes: {called}, {minutes_text(took[called])}{more}.")
            return judge, found
    less = "leave out the clean model (--no-retrain), or give fewer pictures" if retrain else "or give fewer pictures"
    raise InputError(
        f"the quickest scan of these {len(task.examples):,} pictures takes about {minutes_text(min(took.values()))} here, "
        f"more than the {minutes:g} minutes of the budget. Give more, {less}."
    )


def seconds_of(task: Task, judge: Detector, retrain: bool, found: Trial) -> float:
    """Return how long the models that a run has still to train will take."""
    left = [work for stage, *work in judge.work(task) if run.finished(task.scratch / stage) is None]
    if retrain and run.finished(task.scratch / "model") is None:
        left.append([len(task.examples) * task.preset.retrain.epochs, 0])
    return sum(training * found.train + recording * found.evaluate for training, recording in left)


def machine(task: Task, tried: Trial | None = None) -> Trial:
    """Return the trial of this run: made once (or ``tried`` already) and written down, so that a resumed run computes alike."""
    known = task.scratch / "machine.json"
    if known.exists():
        return Trial(**run.read_sealed(known))
    found = tried or task.trial()
    run.write_sealed(known, dataclasses.asdict(found))
    return found


def minutes_text(seconds: float) -> str:
    """Say how long something takes."""
    if seconds < 10:
        return "some seconds"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _detector(text: str) -> Detector:
    made = DEFENSES.build(text)
    assert isinstance(made, Detector)
    return made
