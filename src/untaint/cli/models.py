"""Commands that train models and measure them: train, evaluate, spectrum."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction

from untaint import terminal
from untaint.arguments import given, option
from untaint.cli.options import Augmentation, Columns, Data, FolderOfModel, Json, Model, Precision, Quiet, Reading, Seed

if TYPE_CHECKING:
    from untaint.recipe import Preset
    from untaint.spectra import Spectrum

__all__ = ["evaluate", "spectrum", "train"]

STRONGEST = (1, 10, 50)  # so many directions are told of


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
    defense: Annotated[
        str | None,
        option(
            "A training that resists poison, NAME:KEY=VALUE,..., such as d-st or eigenguard; see `untaint list defenses`.",
            "DEFENSE",
        ),
    ] = None,
    probes: Annotated[
        str | None,
        option("For that: pictures of DATA that somebody has looked at, a file of keys, or a folder.", "FILE"),
    ] = None,
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

    Example: untaint train photos/train --defense d-st --out runs/resisted
    """
    from untaint import recipe
    from untaint.errors import SpecError
    from untaint.findings import left_out
    from untaint.scanning import train as run_train
    from untaint.sources import load

    bars = terminal.progress(quiet)
    examples = load(data, **asdict(reading), progress=bars)
    gone = left_out(examples, without, marks)
    kept = examples.without(gone)
    chosen: Preset = recipe.preset(preset).changed(model=model, augment=augment, precision=precision)
    if epochs is not None:
        chosen = replace(chosen, retrain=replace(chosen.retrain, epochs=epochs, horizon=None))
    if probes is not None and defense is None:
        raise SpecError("--probes are for a --defense that needs them, and none is given. Name one, or leave them out.")
    run_train(kept, out=out, preset=chosen, seed=seed, progress=bars, defense=defense, probes=probes, set_aside=gone)
    facts = {"out": str(out), "trained_on": len(kept), "left_out": len(examples) - len(kept)}
    if as_json:
        print(json.dumps(facts))
    else:
        print(f"\nTrained on {len(kept):,} pictures, {len(examples) - len(kept):,} left out: {out}")
        print(f"next           untaint evaluate {shlex.quote(str(out))} TEST_DATA")
    return 0


def evaluate(
    model: FolderOfModel,
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


def spectrum(
    model: FolderOfModel,
    data: Data,
    /,
    *,
    attack: Annotated[
        UseAppendAction[list[str]],
        given("The trigger looked at, NAME:KEY=VALUE,...; may be given several times.", "ATTACK"),
    ],
    out: Annotated[Path, given("The folder of spectrum.svg and of spectrum.npz with its figures.", "FOLDER")],
    at: Annotated[str, option("The layer, by its name in the network.", "LAYER")] = "before-pool",
    k: Annotated[int, option("How many directions count as strong in the scatter plots.", "K")] = 10,
    share: Annotated[float, option("Of pictures with the trigger in a batch as it comes.", "SHARE")] = 0.05,
    pictures: Annotated[int, option("How many are looked at.", "N")] = 1000,
    split: Annotated[
        str | None, option("Which part; if not given, test where the data has parts, else all.", "PART")
    ] = None,
    columns: Columns,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Show what a layer of MODEL sees of a trigger: its singular values, and in which directions a trigger lies.

    DATA are clean pictures. They are looked at as they are and with each trigger laid over.

    Example: untaint spectrum runs/photos/model photos/test --attack patch:target=0 --out runs/spectrum
    """
    import numpy as np

    from untaint import run
    from untaint.attacks import ATTACKS
    from untaint.poisoning import attack_names, fixed, triggered
    from untaint.sources import load, open_source
    from untaint.sources.opening import open_test
    from untaint.spectra import draw, look
    from untaint.training.checkpoint import load_model, read_card
    from untaint.training.evaluate import relabelled

    network, card = load_model(model), read_card(model)
    bars = terminal.progress(quiet)
    made = [fixed(ATTACKS.build(text)) for text in attack]
    part = open_test(data, **asdict(columns)) if split is None else open_source(data, split=split, **asdict(columns))
    clean = relabelled(load(part, size=card["size"][1], fewest_classes=1, progress=bars), card["class_names"])
    shown = {name: triggered(clean, one) for name, one in zip(attack_names(made), made, strict=True)}
    found = look(network, clean, shown, at, k=k, share=share, most=pictures, seed=seed, progress=bars)
    picture = draw(found, out / "spectrum.svg")
    with run.written(out / "spectrum.npz") as file:
        np.savez(file, allow_pickle=False, **found.arrays())
    if as_json:
        print(json.dumps({"out": str(out), "layer": found.layer, "rank": found.rank, "triggers": _told(found)}))
    else:
        print(terminal.table(("", "of clean pictures", "with the trigger"), _lines(found), left=True))
        print(
            f"\nThe effective rank of all {found.pictures:,} clean pictures at {found.layer} is {found.rank:.0f} of {found.width:,}."
        )
        print(f"written        {picture} and spectrum.npz beside it")
        print(
            f"next           open {shlex.quote(str(picture))}; look at another layer with --at (a wrong name is answered with those there are)"
        )
    return 0


def _told(found: Spectrum) -> dict[str, dict[str, object]]:
    """Return what JSON says of each trigger."""
    return {
        name: {
            "rank": one.rank,
            "clean_rank": one.clean_rank,
            "energy": {count: float(one.energy[:count].sum()) for count in STRONGEST},
            "clean_energy": {count: float(one.clean_energy[:count].sum()) for count in STRONGEST},
            "removed": list(found.removed),
            "success": one.success.tolist(),
            "accuracy": one.accuracy.tolist(),
        }
        for name, one in found.shown.items()
    }


def _lines(found: Spectrum) -> list[tuple[str, str, str]]:
    """Return what a table says of each trigger."""
    lines = []
    for name, one in found.shown.items():
        lines.append((f"{name}: effective rank", f"{one.clean_rank:.0f}", f"{one.rank:.0f}"))
        for count in STRONGEST:
            lines.append(
                (
                    f"{name}: energy in the {count} strongest",
                    f"{one.clean_energy[:count].sum():.0%}",
                    f"{one.energy[:count].sum():.0%} of its change",
                )
            )
        for count in (0, *STRONGEST):
            if count in found.removed:
                place = found.removed.index(count)
                without = f" without the {count} strongest" if count else ""
                lines.append(
                    (
                        f"{name}: taken for the right class, the target{without}",
                        f"{one.accuracy[place]:.1%}",
                        f"{one.success[place]:.1%}",
                    )
                )
    return lines
