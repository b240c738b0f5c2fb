"""Commands that train models and measure them: train, evaluate."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from untaint import terminal
from untaint.arguments import given, option
from untaint.cli.options import Augmentation, Columns, Data, Json, Model, Precision, Quiet, Reading, Seed

if TYPE_CHECKING:
    from untaint.recipe import Preset

__all__ = ["evaluate", "train"]


def train(
    data: Data,
    /,
    *,
    out: Annotated[Path, given("The model's folder. The same command goes on where it was interrupted.", "FOLDER")],
    without: Annotated[
        Path | None, option("A file of keys to leave out, such as a scan's rejected.txt.", "FILE")
    ] = None,
    marks: Annotated[
        Path | None, option("Pictures marked in a report: poison is left out too, fine is put back.", "FILE")
    ] = None,
    preset: Annotated[str, option("fast or paper: how the model is trained.", "NAME")] = "fast",
    model: Model = None,
    epochs: Annotated[int | None, option("How many epochs.", "N")] = None,
    augment: Annotated[
        Augmentation | None, option("How pictures are varied; crop where left and right differ, as on signs.")
    ] = None,
    precision: Precision = None,
    reading: Reading,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Train a model from scratch on DATA without some pictures; resumes if interrupted.

    Example: untaint train photos/train --without runs/photos/rejected.txt --out runs/clean
    """
    from untaint import recipe
    from untaint.findings import left_out
    from untaint.scanning import train as run_train
    from untaint.sources import load

    bars = terminal.progress(quiet)
    examples = load(data, **asdict(reading), progress=bars)
    kept = examples.without(left_out(examples, without, marks))
    chosen: Preset = recipe.preset(preset).changed(model=model, augment=augment, precision=precision)
    if epochs is not None:
        chosen = replace(chosen, retrain=replace(chosen.retrain, epochs=epochs, horizon=None))
    run_train(kept, out=out, preset=chosen, seed=seed, progress=bars)
    facts = {"out": str(out), "trained_on": len(kept), "left_out": len(examples) - len(kept)}
    if as_json:
        print(json.dumps(facts))
    else:
        print(f"\nTrained on {len(kept):,} pictures, {len(examples) - len(kept):,} left out: {out}")
        print(f"next           untaint evaluate {shlex.quote(str(out))} TEST_DATA")
    return 0


def evaluate(
    model: Positional[Annotated[Path, given("A folder written by `untaint train` or `untaint scan`.", "MODEL")]],
    data: Data,
    /,
    *,
    split: Annotated[
        str | None, option("Which part; if not given, test where the data has parts, else all.", "PART")
    ] = None,
    columns: Columns,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Tell how often MODEL is right on DATA, over all and per class.

    On triggered pictures, labelled with an attack's target, this is the attack success rate.

    Example: untaint evaluate runs/clean photos/test
    """
    from untaint.sources import load, open_source
    from untaint.sources.opening import open_test
    from untaint.training.checkpoint import load_model, read_card
    from untaint.training.evaluate import evaluate as run_evaluate
    from untaint.training.evaluate import relabelled

    network, card = load_model(model), read_card(model)
    bars = terminal.progress(quiet)
    part = open_test(data, **asdict(columns)) if split is None else open_source(data, split=split, **asdict(columns))
    examples = load(part, size=card["size"][1], fewest_classes=1, progress=bars)
    found = run_evaluate(network, relabelled(examples, card["class_names"]))
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        lines = [(name, f"{share:.1%}") for name, share in found["per_class"].items() if share is not None]
        print(terminal.table(("class", "right"), lines[:50]))
        print(f"\n{found['accuracy']:.2%} of {found['pictures']:,} pictures are labelled right.")
    return 0
